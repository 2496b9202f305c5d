//! `kernels/elementwise/`

use super::Ptr;
use bytemuck::{Pod, Zeroable};
use half::bf16;

/// `elementwise_fill`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct FillParams {
    /// An even address.
    pub out: Ptr<u8>,
    /// Bytes of `out`, even.
    pub bytes: u64,
    /// What every aligned four bytes of `out` shall hold: one f32, or twice one bf16.
    pub word: u64,
}

/// `elementwise_add`, `elementwise_copy`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct ElementsParams {
    /// [count]
    pub x: Ptr<f32>,
    /// [count]
    pub out: Ptr<f32>,
    pub count: u64,
}

/// `elementwise_accumulate_*`. The kernel's name says what `x` holds.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct AccumulateParams {
    /// [count] f32 or bf16
    pub x: Ptr<u8>,
    /// [count]
    pub out: Ptr<bf16>,
    pub count: u64,
    pub seed: u64,
    pub draw: u64,
    /// The number of element 0, even.
    pub first: u64,
}

/// `elementwise_to_bf16`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct ToBf16Params {
    /// [count]
    pub x: Ptr<f32>,
    /// [count]
    pub out: Ptr<bf16>,
    pub count: u64,
}

/// `elementwise_to_f32`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct ToF32Params {
    /// [count]
    pub x: Ptr<bf16>,
    /// [count]
    pub out: Ptr<f32>,
    pub count: u64,
}
