//! Fill, add, accumulate, cast: launches of `kernels/elementwise/`.

use super::ladder::{VECTOR, launch};
use super::params::{AccumulateParams, ElementsParams, FillParams, Ptr, ToBf16Params, ToF32Params};
use crate::device::{Launch, Launcher};
use crate::error::{Error, Result};
use crate::ops::Accumulate;
use crate::ops::args::{expect_dtype, expect_shape};
use crate::tensor::{DType, View, ViewMut};
use bytemuck::bytes_of;
use half::bf16;

const THREADS: u32 = 256;

/// Sets every element, f32 or bf16, to `value`, rounded.
pub fn fill(launcher: &dyn Launcher, out: ViewMut, value: f32) -> Result<()> {
    let word = match out.dtype() {
        DType::F32 => value.to_bits(),
        DType::Bf16 => u32::from(bf16::from_f32(value).to_bits()) * 0x1_0001,
        other => return Err(Error::internal(format!("fill: out holds {other}, expected f32 or bf16"))),
    };
    if out.elements() == 0 {
        return Ok(());
    }
    let params = FillParams { out: Ptr::new(out.address()), bytes: out.bytes() as u64, word: word.into() };
    // One vector more than the bytes fill: neither end need be aligned.
    let launch = threads("fill", out.bytes().div_ceil(16) + 1)?;
    // SAFETY: the kernel's own parameter block, over this view.
    unsafe { launcher.launch("elementwise_fill", launch, bytes_of(&params)) }
}

/// out += x, both f32 of one shape.
pub fn add(launcher: &dyn Launcher, x: View, out: ViewMut) -> Result<()> {
    expect_shape("add", "x", x.shape(), out.shape())?;
    expect_dtype("add", "x", x.dtype(), DType::F32)?;
    expect_dtype("add", "out", out.dtype(), DType::F32)?;
    elements(launcher, "add", ["elementwise_add", "elementwise_add_any"], x, out)
}

/// The contribution of a micro-batch joins the gradient; see [`Accumulate`].
pub fn accumulate(launcher: &dyn Launcher, op: Accumulate) -> Result<()> {
    op.check()?;
    let Accumulate { x, out, seed, draw, first } = op;
    let kernels = match (x.dtype(), out.dtype()) {
        (_, DType::F32) => return add(launcher, x, out),
        (DType::F32, _) => ["elementwise_accumulate_f32", "elementwise_accumulate_f32_any"],
        _ => ["elementwise_accumulate_bf16", "elementwise_accumulate_bf16_any"],
    };
    let count = out.elements();
    if count == 0 {
        return Ok(());
    }
    let (kernel, launch) = select("accumulate", kernels, &x, &out)?;
    let (x, out) = (Ptr::new(x.address()), Ptr::new(out.address()));
    let params = AccumulateParams { x, out, count: count as u64, seed, draw, first };
    // SAFETY: the kernel's own parameter block, over views of `count` elements of the types that it is chosen by.
    unsafe { launcher.launch(kernel, launch, bytes_of(&params)) }
}

/// out = x of one shape, f32 to bf16, to nearest with ties to even, bf16 to f32, or f32 to f32.
pub fn cast(launcher: &dyn Launcher, x: View, out: ViewMut) -> Result<()> {
    expect_shape("cast", "x", x.shape(), out.shape())?;
    let kernels = match (x.dtype(), out.dtype()) {
        (DType::F32, DType::Bf16) => ["elementwise_to_bf16", "elementwise_to_bf16_any"],
        (DType::Bf16, DType::F32) => ["elementwise_to_f32", "elementwise_to_f32_any"],
        (DType::F32, DType::F32) => ["elementwise_copy", "elementwise_copy_any"],
        (from, to) => return Err(Error::internal(format!("cast: no kernel from {from} to {to}"))),
    };
    elements(launcher, "cast", kernels, x, out)
}

/// Of the kernel for aligned addresses and the one for any, that which takes these, and its launch.
fn select<'a>(op: &str, kernels: [&'a str; 2], x: &View, out: &ViewMut) -> Result<(&'a str, Launch)> {
    let aligned = [x.address(), out.address()].iter().all(|address| address.is_multiple_of(16));
    Ok((kernels[usize::from(!aligned)], threads(op, out.elements().div_ceil(VECTOR as usize))?))
}

fn elements(launcher: &dyn Launcher, op: &str, kernels: [&str; 2], x: View, out: ViewMut) -> Result<()> {
    let (count, [from, to]) = (out.elements() as u64, [x.address(), out.address()]);
    if count == 0 {
        return Ok(());
    }
    let (kernel, launch) = select(op, kernels, &x, &out)?;
    // SAFETY: each kernel's own parameter block, over views of `count` elements of the types that the caller chose it by.
    unsafe {
        match (x.dtype(), out.dtype()) {
            (DType::F32, DType::Bf16) => {
                let params = ToBf16Params { x: Ptr::new(from), out: Ptr::new(to), count };
                launcher.launch(kernel, launch, bytes_of(&params))
            }
            (DType::Bf16, _) => {
                let params = ToF32Params { x: Ptr::new(from), out: Ptr::new(to), count };
                launcher.launch(kernel, launch, bytes_of(&params))
            }
            _ => {
                let params = ElementsParams { x: Ptr::new(from), out: Ptr::new(to), count };
                launcher.launch(kernel, launch, bytes_of(&params))
            }
        }
    }
}

/// As many threads, in whole blocks.
fn threads(op: &str, count: usize) -> Result<Launch> {
    match i32::try_from(count.div_ceil(THREADS as usize)) {
        Ok(blocks) => Ok(launch(blocks as u32, THREADS, 0)),
        Err(_) => Err(Error::internal(format!("{op}: {count} threads are beyond one launch"))),
    }
}
