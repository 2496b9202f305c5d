//! The parameter block of every kernel, a file a folder of `kernels/`. `build.rs` turns each file into a header, `params/rms_norm.h`, so both
//! sides of a launch read one definition.
//!
//! Items are plain `repr(C)` structs of fixed-width fields without implicit padding (bytemuck::Pod checks that).

use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;

mod adamw;
mod attention;
mod bias;
mod classifier;
mod conformance;
mod elementwise;
mod embedding;
mod emulator;
mod paged_attention;
mod rms_norm;
mod rope;
mod sampling;
mod square_sums;
mod swiglu;

pub use adamw::*;
pub use attention::*;
pub use bias::*;
pub use classifier::*;
pub use conformance::*;
pub use elementwise::*;
pub use embedding::*;
pub use emulator::*;
pub use paged_attention::*;
pub use rms_norm::*;
pub use rope::*;
pub use sampling::*;
pub use square_sums::*;
pub use swiglu::*;

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
