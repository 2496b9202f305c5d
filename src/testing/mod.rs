//! What tests, `selftest` and benchmarks share: case tables, random data, guarded buffers, comparison. A case runs on any
//! [`Launcher`](crate::device::Launcher), so the emulator, a GPU and every version of a kernel answer to the same table.

pub mod buffer;
pub mod compare;
pub mod conformance;
pub mod gemm;
pub mod planted;
pub mod random;
pub mod rms_norm;
