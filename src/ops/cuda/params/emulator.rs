//! `kernels/emulator/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};

/// `planted_*`, the kernels that prove that the emulator finds bugs.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct PlantedParams {
    pub input: Ptr<f32>,
    pub output: Ptr<f32>,
    /// [2] zeros: a counter and a turn.
    pub scratch: Ptr<u32>,
    /// Elements of both.
    pub count: u64,
    /// 1: with the bug; 0: the correct twin.
    pub bug: u64,
}
