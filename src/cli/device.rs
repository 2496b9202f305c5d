//! `--device`: which backend runs the model.

use crate::device::driver::Driver;
use crate::device::emulator::Emulator;
use crate::device::gpu::visible_devices;
use crate::device::images::images;
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

impl DeviceChoice {
    /// The backend, or the reason why there is none. `auto` never falls back to the CPU while a GPU is visible.
    pub fn ops(self, dtype: Option<Storage>) -> Result<Box<dyn Ops>> {
        let device = match self {
            DeviceChoice::Auto if visible_devices()? > 0 => DeviceChoice::Cuda,
            DeviceChoice::Auto => DeviceChoice::Cpu,
            device => device,
        };
        match (device, dtype) {
            (DeviceChoice::Cpu, None | Some(Storage::F32)) => Ok(Box::new(Cpu)),
            (DeviceChoice::Cpu, Some(Storage::Bf16)) => Ok(Box::new(CpuBf16)),
            (_, Some(Storage::F32)) => {
                Err(Error::usage("--dtype f32: the CUDA kernels store bf16").help("leave --dtype out, or pass --device cpu"))
            }
            (DeviceChoice::Emulator, _) => Ok(Box::new(Cuda::emulated(Emulator::plain(0)?))),
            (DeviceChoice::Auto | DeviceChoice::Cuda, _) => Ok(Box::new(Cuda::on_gpu(open_gpu()?)?)),
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
