//! Ops as launches of our own kernels: a wrapper checks the op, fills the parameter block and computes the grid. What launches
//! is a [`Launcher`](crate::device::Launcher): the CUDA driver or the emulator.

pub mod adamw;
pub mod attention;
mod backend;
pub mod bias;
pub mod classifier;
pub mod elementwise;
pub mod embedding;
pub mod gemm;
pub mod ladder;
pub mod paged_attention;
pub mod params;
pub mod rms_norm;
pub mod rope;
pub mod sampling;
pub mod square_sums;
pub mod swiglu;

pub use backend::Cuda;
