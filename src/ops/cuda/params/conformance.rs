//! `kernels/conformance/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};

/// `conformance_*`: raw words in, raw words out.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct ConformanceParams {
    pub input: Ptr<u32>,
    pub output: Ptr<u32>,
    /// [2] zeros: a counter and a turn.
    pub scratch: Ptr<u32>,
    /// Words of `input`.
    pub words: u64,
}
