//! The case table of fill, add and cast: each moves elements, so every bit is the CPU backend's.

use super::buffer::{Behind, Buffer};
use super::compare::exactly;
use super::random::Random;
use super::{Check, Outputs};
use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::ops::Ops;
use crate::ops::cpu::Cpu;
use crate::ops::cuda::elementwise as kernels;
use crate::tensor::DType::{Bf16, F32};
use crate::tensor::{DType, Tensor};

#[derive(Debug, Clone, Copy)]
enum Kind {
    Fill(DType, f32),
    Add,
    Cast(DType, DType),
}

const KINDS: [Kind; 8] = [
    Kind::Fill(F32, 0.1),
    Kind::Fill(F32, f32::NAN),
    Kind::Fill(Bf16, 0.1),
    Kind::Fill(Bf16, -3e38),
    Kind::Add,
    Kind::Cast(F32, Bf16),
    Kind::Cast(Bf16, F32),
    Kind::Cast(F32, F32),
];

/// Elements, and elements before the first, which shift its address.
const EXTENTS: [[usize; 2]; 9] = [[1, 0], [7, 0], [8, 0], [9, 0], [5, 3], [64, 1], [2047, 0], [2049, 4], [5000, 8]];

/// Values at which conversions can go wrong: ties, overflow, subnormals, infinities, NaN.
const SPECIAL: [f32; 12] = [
    1.0 + 1.0 / 256.0,
    1.0 + 3.0 / 256.0,
    -1.0 - 1.0 / 256.0,
    3.3961775e38,
    3.4e38,
    -3.4e38,
    1e-40,
    -1e-45,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
    -0.0,
];

/// Every op at every extent.
pub fn checks() -> Vec<Check> {
    let pairs = KINDS.into_iter().flat_map(|kind| EXTENTS.map(|extent| (kind, extent)));
    let check = |(kind, [count, offset]): (Kind, [usize; 2])| {
        let table = match kind {
            Kind::Fill(dtype, value) => format!("elementwise fill {dtype} with {value:e}"),
            Kind::Add => "elementwise add".to_string(),
            Kind::Cast(from, to) => format!("elementwise cast {from} to {to}"),
        };
        Check::new(table, format!("{count} elements from element {offset} on"), move |launcher, behind| {
            run(launcher, kind, count, offset, behind)
        })
    };
    pairs.map(check).collect()
}

fn run(launcher: &dyn Launcher, kind: Kind, count: usize, offset: usize, behind: Behind) -> Result<Outputs> {
    let (length, mut random) = (offset + count, Random::new((count * 31 + offset) as u64));
    let mut values = |from: DType| -> Vec<f32> {
        let scale = if from == F32 { 1.0 + 1e-3 } else { 1.0 };
        let normal = random.normals(length, 0.0, 1.0).into_iter().map(|value| value * scale);
        normal.enumerate().map(|(i, value)| if i % 5 == 2 { SPECIAL[i / 5 % SPECIAL.len()] } else { value }).collect()
    };
    let (from, to) = match kind {
        Kind::Fill(dtype, _) => (F32, dtype),
        Kind::Add => (F32, F32),
        Kind::Cast(from, to) => (from, to),
    };
    let (x, before) = (values(from), values(F32));
    let x_buffer = Buffer::new(launcher, behind, "x", from, &[length], &x)?;
    let mut out_buffer = match kind {
        Kind::Add => Buffer::new(launcher, behind, "out", to, &[length], &before)?,
        _ => Buffer::poisoned(launcher, behind, "out", to, &[length])?,
    };
    let (x_view, out_view) = (x_buffer.view().rows(offset..length), out_buffer.view_mut().into_rows(offset..length));
    match kind {
        Kind::Fill(_, value) => kernels::fill(launcher, out_view, value)?,
        Kind::Add => kernels::add(launcher, x_view, out_view)?,
        Kind::Cast(..) => kernels::cast(launcher, x_view, out_view)?,
    }
    launcher.synchronize()?;

    let host = |dtype, values: &[f32]| match dtype {
        Bf16 => Tensor::from_f32_as_bf16(values, &[count]),
        _ => Tensor::from_f32(values, &[count]),
    };
    let mut expected = host(to, &before[offset..]);
    let x_host = host(from, &x[offset..]);
    match kind {
        Kind::Fill(F32, value) => Cpu.fill(expected.view_mut(), value)?,
        Kind::Fill(_, value) => expected = host(to, &vec![value; count]),
        Kind::Add => Cpu.add(x_host.view(), expected.view_mut())?,
        Kind::Cast(..) => Cpu.cast(x_host.view(), expected.view_mut())?,
    }
    let mut wide = Tensor::host(F32, &[count]);
    Cpu.cast(expected.view(), wide.view_mut())?;
    let out = out_buffer.read()?;
    let untouched = |value: &f32| value.is_nan() || matches!(kind, Kind::Add);
    if !out[..offset].iter().all(untouched) {
        return Err(Error::internal("elements before the first were written"));
    }
    exactly("out", &out[offset..], wide.view().f32())?;
    Ok(vec![("out", out[offset..].iter().map(|&value| if value.is_nan() { 0.0 } else { value }).collect())])
}
