//! `--device`: which backend runs the model.

use crate::device::driver::Driver;
use crate::device::emulator::Emulator;
use crate::device::gpu::visible_devices;
use crate::device::images::images;
use crate::device::libraries::CUBLASLT;
use crate::error::{Error, Result};
use crate::ops::Ops;
use crate::ops::cpu::Cpu;
use clap::ValueEnum;

/// What runs the model
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// The CPU, unless a GPU is visible, which this version would leave idle: then say so
    Auto,
    /// The GPU (not in this version)
    Cuda,
    /// The CPU, in f32
    Cpu,
    /// The CUDA kernels on the CPU (not in this version)
    Emulator,
}

impl DeviceChoice {
    /// The backend, or the reason why there is none. `auto` never falls back to the CPU while a GPU is visible.
    pub fn ops(self) -> Result<Box<dyn Ops>> {
        match self {
            DeviceChoice::Cpu => Ok(Box::new(Cpu)),
            DeviceChoice::Auto => match visible_devices()? {
                0 => Ok(Box::new(Cpu)),
                n => Err(unfinished(&format!("--device auto: {n} GPU(s) are visible, but"))),
            },
            DeviceChoice::Cuda => {
                open_gpu()?;
                CUBLASLT.find()?;
                Err(unfinished("--device cuda:"))
            }
            DeviceChoice::Emulator => Err(unfinished("--device emulator:")),
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

fn unfinished(what: &str) -> Error {
    Error::usage(format!(
        "{what} this version runs whole models on the CPU only; its CUDA kernels run under `bench` and `selftest`"
    ))
    .help("pass --device cpu")
}
