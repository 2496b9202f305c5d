//! The parameter block of every kernel. `build.rs` turns this file into `params.h`, so both sides of a launch read one definition.
//!
//! Items are plain `repr(C)` structs of fixed-width fields without implicit padding (bytemuck::Pod checks that).

use bytemuck::{Pod, Zeroable};
use half::bf16;
use std::marker::PhantomData;

/// An address that a kernel follows. Zero says that the operand is absent. `kernels/common/types.cuh` has its C++ twin.
#[repr(transparent)]
pub struct Ptr<T>(u64, PhantomData<T>);

impl<T> Ptr<T> {
    pub const NULL: Self = Ptr(0, PhantomData);

    pub fn new(address: u64) -> Self {
        Ptr(address, PhantomData)
    }
}

impl<T> Clone for Ptr<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Ptr<T> {}

// SAFETY: a transparent u64; the phantom type has no bytes.
unsafe impl<T> Zeroable for Ptr<T> {}
unsafe impl<T: 'static> Pod for Ptr<T> {}

/// The partial sums of dweight that [`RmsNormBackwardParams`] leaves behind.
pub const RMS_NORM_PARTIALS: u32 = 256;

/// Elements of a row that one warp keeps in registers: four 16-byte chunks a lane forward, two backward.
pub const RMS_NORM_FORWARD_WARP_WIDTH: u32 = 1024;
pub const RMS_NORM_BACKWARD_WARP_WIDTH: u32 = 512;

/// `rms_norm_forward_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct RmsNormForwardParams {
    /// [T, D]
    pub x: Ptr<bf16>,
    /// [T, D], or null: nothing is added and `sum` is not written.
    pub delta: Ptr<bf16>,
    /// [D]
    pub weight: Ptr<bf16>,
    /// [T, D]
    pub sum: Ptr<bf16>,
    /// [T, D]
    pub y: Ptr<bf16>,
    /// [T]
    pub rstd: Ptr<f32>,
    /// T
    pub rows: u64,
    /// D
    pub width: u32,
    pub eps: f32,
}

/// `rms_norm_backward_*`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct RmsNormBackwardParams {
    /// [T, D]
    pub dy: Ptr<bf16>,
    /// [T, D]
    pub sum: Ptr<bf16>,
    /// [D]
    pub weight: Ptr<bf16>,
    /// [T]
    pub rstd: Ptr<f32>,
    /// [T, D]
    pub dsum: Ptr<bf16>,
    /// [RMS_NORM_PARTIALS, D]
    pub partials: Ptr<f32>,
    /// T
    pub rows: u64,
    /// D
    pub width: u32,
    /// 1: the result is added to `dsum`; 0: it replaces it.
    pub accumulate: u32,
}

/// `rms_norm_weight_gradient`
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct RmsNormWeightGradientParams {
    /// [RMS_NORM_PARTIALS, D]
    pub partials: Ptr<f32>,
    /// [D]
    pub dweight: Ptr<f32>,
    /// D
    pub width: u64,
}

/// `conformance_*`: raw words in, raw words out.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct ConformanceParams {
    pub input: Ptr<u32>,
    pub output: Ptr<u32>,
    /// Words of `input`.
    pub words: u64,
}

/// `planted_*`, the kernels that prove that the emulator finds bugs.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct PlantedParams {
    pub input: Ptr<f32>,
    pub output: Ptr<f32>,
    /// Elements of both.
    pub count: u64,
    /// 1: with the bug; 0: the correct twin.
    pub bug: u64,
}
