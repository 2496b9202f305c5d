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

const fn planted(kernel: &'static str, finding: &'static str, blocks: u32, count: usize) -> Planted {
    Planted { kernel, finding, blocks, count }
}

/// Bugs that are found whatever the order.
pub const PLANTED: [Planted; 16] = [
    planted("planted_race", "race: no barrier orders", 1, 128),
    planted("planted_early_sum", "race: no barrier orders", 1, 128),
    planted("planted_block_race", "race: nothing orders", 2, 256),
    planted("planted_out_of_bounds", "out of bounds: ", 1, 100),
    planted("planted_unwritten_read", "unwritten read: ", 1, 128),
    planted("planted_divergent_barrier", "divergent barrier: ", 1, 128),
    planted("planted_wrong_order", "race within a warp: ", 1, 128),
    planted("planted_missing_wait", "copy under way: ", 1, 512),
    planted("planted_wrong_group", "copy under way: ", 1, 512),
    planted("planted_missing_copy_barrier", "race: no barrier orders", 1, 512),
    planted("planted_buffer_reused", "race: no barrier orders", 1, 512),
    planted("planted_abandoned_copy", "copy under way: the thread ends", 1, 512),
    planted("planted_missing_turn", "race: nothing orders", 4, 512),
    planted("planted_early_turn", "race: nothing orders", 4, 512),
    planted("planted_missing_lane", "divergent warp: ", 1, 128),
    planted("planted_early_fragment", "race within a warp: ", 1, 512),
];

/// Found in orders in which not all blocks are resident at once.
pub const TURN_WITHOUT_TICKET: Planted = planted("planted_turn_without_ticket", "deadlock: ", 4, 512);

/// Runs the kernel, with its bug or as its correct twin, and returns its output.
pub fn run(launcher: &dyn Launcher, planted: &Planted, bug: bool) -> Result<Vec<f32>> {
    let values: Vec<f32> = (0..planted.count).map(|i| i as f32 + 1.0).collect();
    let shape = [planted.count];
    let input = Buffer::new(launcher, Behind::Nothing, "input", DType::F32, &shape, &values)?;
    let output = Buffer::poisoned(launcher, Behind::Nothing, "output", DType::F32, &shape)?;
    let scratch = Buffer::new(launcher, Behind::Nothing, "scratch", DType::I32, &[2], &[0.0; 2])?;
    let params = PlantedParams {
        input: Ptr::new(input.view().address()),
        output: Ptr::new(output.view().address()),
        scratch: Ptr::new(scratch.view().address()),
        count: planted.count as u64,
        bug: bug.into(),
    };
    let launch = Launch { grid: [planted.blocks, 1, 1], block: [THREADS, 1, 1], shared_bytes: 16 * THREADS };
    // SAFETY: the kernel's own parameter block. Its planted accesses stay within the emulator's red zones.
    unsafe { launcher.launch(planted.kernel, launch, bytemuck::bytes_of(&params))? };
    output.read()
}
