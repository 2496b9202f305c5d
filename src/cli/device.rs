//! `--device`: which backend runs the model.

use crate::error::{Error, Result};
use crate::ops::Ops;
use crate::ops::cpu::Cpu;
use clap::ValueEnum;

/// What runs the model
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// The GPU where one is visible, else the CPU
    Auto,
    /// The GPU
    Cuda,
    /// The CPU, in f32
    Cpu,
    /// The CUDA kernels on the CPU, for small shapes
    Emulator,
}

impl DeviceChoice {
    /// The backend, or the reason why there is none. `auto` never falls back to the CPU while a GPU is visible.
    pub fn ops(self) -> Result<Box<dyn Ops>> {
        match self {
            DeviceChoice::Cpu => Ok(Box::new(Cpu)),
            DeviceChoice::Auto => match visible_gpus()? {
                0 => Ok(Box::new(Cpu)),
                n => Err(unfinished(&format!("--device auto: {n} GPU(s) are visible, but"))),
            },
            DeviceChoice::Cuda => Err(unfinished("--device cuda:")),
            DeviceChoice::Emulator => Err(unfinished("--device emulator:")),
        }
    }
}

fn visible_gpus() -> Result<usize> {
    Ok(0)
}

fn unfinished(what: &str) -> Error {
    Error::usage(format!(
        "{what} this version runs whole models on the CPU only; its CUDA kernels run under `bench` and `selftest`"
    ))
    .help("pass --device cpu")
}
