//! The planted bugs of `kernels/emulator/planted.cu`: proof that the checked emulator finds what it claims to find.

use super::buffer::{Behind, Buffer};
use crate::device::{Launch, Launcher};
use crate::error::Result;
use crate::ops::cuda::params::{PlantedParams, Ptr};
use crate::tensor::DType;

/// A kernel with a bug that a flag switches on.
pub struct Planted {
    pub kernel: &'static str,
    /// What the report must say.
    pub finding: &'static str,
    blocks: u32,
    /// Elements of input and output.
    count: usize,
}

/// Threads of a block.
const THREADS: u32 = 128;

pub const PLANTED: [Planted; 6] = [
    Planted { kernel: "planted_race", finding: "race: no barrier orders", blocks: 1, count: 128 },
    Planted { kernel: "planted_block_race", finding: "race: nothing orders", blocks: 2, count: 256 },
    Planted { kernel: "planted_out_of_bounds", finding: "out of bounds: ", blocks: 1, count: 100 },
    Planted { kernel: "planted_unwritten_read", finding: "unwritten read: ", blocks: 1, count: 128 },
    Planted { kernel: "planted_divergent_barrier", finding: "divergent barrier: ", blocks: 1, count: 128 },
    Planted { kernel: "planted_wrong_order", finding: "race within a warp: ", blocks: 1, count: 128 },
];

/// Runs the kernel, with its bug or as its correct twin, and returns its output.
pub fn run(launcher: &dyn Launcher, planted: &Planted, bug: bool) -> Result<Vec<f32>> {
    let values: Vec<f32> = (0..planted.count).map(|i| i as f32 + 1.0).collect();
    let shape = [planted.count];
    let input = Buffer::new(launcher, Behind::Nothing, "input", DType::F32, &shape, &values)?;
    let output = Buffer::poisoned(launcher, Behind::Nothing, "output", DType::F32, &shape)?;
    let params = PlantedParams {
        input: Ptr::new(input.view().address()),
        output: Ptr::new(output.view().address()),
        count: planted.count as u64,
        bug: bug.into(),
    };
    let launch = Launch { grid: [planted.blocks, 1, 1], block: [THREADS, 1, 1], shared_bytes: 4 * THREADS };
    // SAFETY: the kernel's own parameter block. Its planted accesses stay within the emulator's red zones.
    unsafe { launcher.launch(planted.kernel, launch, bytemuck::bytes_of(&params))? };
    output.read()
}
