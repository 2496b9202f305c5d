//! `--device`: which backend runs the model.

use crate::device::driver::Driver;
use crate::device::emulator::Emulator;
use crate::device::gpu::visible_devices;
use crate::device::images::images;
use crate::device::{Launcher, Stream};
use crate::error::{Error, Result};
use crate::ops::Ops;
use crate::ops::cpu::{Cpu, CpuBf16};
use crate::ops::cuda::Cuda;
use clap::ValueEnum;

/// What runs the model
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// The first visible GPU, or the reason why it cannot be used; the CPU where none is visible
    Auto,
    /// The first visible GPU, in bf16
    Cuda,
    /// The CPU, in f32 if --dtype does not say otherwise
    Cpu,
    /// The CUDA kernels' own source on the CPU, in bf16: for small models
    Emulator,
}

/// The element type of weights and activations
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Storage {
    /// On the CPU
    F32,
    /// Everywhere; on the CPU it is slow, and there to check GPUs
    Bf16,
}

/// A device that a rank computes on.
pub struct Opened {
    pub ops: Box<dyn Ops>,
    /// Its second queue, which moves what ranks exchange; none on a CPU, which moves it at once.
    pub queue: Option<Box<dyn Launcher>>,
}

impl DeviceChoice {
    /// What it stands for here: `auto` never falls back to the CPU while a GPU is visible.
    pub fn resolve(self) -> Result<DeviceChoice> {
        Ok(match self {
            DeviceChoice::Auto if visible_devices()? > 0 => DeviceChoice::Cuda,
            DeviceChoice::Auto => DeviceChoice::Cpu,
            device => device,
        })
    }

    /// The backend, or the reason why there is none.
    pub fn ops(self, dtype: Option<Storage>) -> Result<Box<dyn Ops>> {
        self.open(dtype, 0).map(|opened| opened.ops)
    }

    /// The same with GPU `ordinal`, where it is one.
    pub fn open(self, dtype: Option<Storage>, ordinal: usize) -> Result<Opened> {
        match (self.resolve()?, dtype) {
            (DeviceChoice::Cpu, None | Some(Storage::F32)) => Ok(Opened { ops: Box::new(Cpu), queue: None }),
            (DeviceChoice::Cpu, Some(Storage::Bf16)) => Ok(Opened { ops: Box::new(CpuBf16), queue: None }),
            (_, Some(Storage::F32)) => {
                Err(Error::usage("--dtype f32: the CUDA kernels store bf16").help("leave --dtype out, or pass --device cpu"))
            }
            (DeviceChoice::Emulator, _) => {
                let emulator = Emulator::plain(0)?;
                let queue = Some(emulator.on(Stream::Copy));
                Ok(Opened { ops: Box::new(Cuda::emulated(emulator)), queue })
            }
            (DeviceChoice::Auto | DeviceChoice::Cuda, _) => {
                let driver = Driver::open(ordinal, images()?)?;
                let queue = Some(driver.on(Stream::Copy));
                Ok(Opened { ops: Box::new(Cuda::on_gpu(driver)?), queue })
            }
        }
    }
}

/// What runs single kernels
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KernelDevice {
    /// The first visible GPU
    Auto,
    /// The first visible GPU, or the reason why it cannot be used
    Cuda,
    /// The kernels' own source on the CPU, every access checked
    Emulator,
}

/// The first visible GPU with the kernels of this binary, or what is missing.
pub fn open_gpu() -> Result<Driver> {
    Driver::open(0, images()?)
}

/// The kernels of this binary on the CPU, with every access checked.
pub fn open_emulator() -> Result<Emulator> {
    Emulator::checked(0)
}
