//! limo-engine: full-parameter fine-tuning of Qwen2-family models on long reasoning chains, over handwritten CUDA kernels.
//!
//! docs/tour.md follows a row of data from its file to a kernel. tests/it/architecture.rs says which module may import which.

pub mod bench;
pub mod cli;
pub mod comm;
pub mod config;
pub mod curation;
pub mod data;
pub mod device;
pub mod error;
pub mod grading;
pub mod io;
pub mod model;
pub mod ops;
pub mod sample;
pub mod tensor;
pub mod testing;
pub mod train;
pub mod zero;
