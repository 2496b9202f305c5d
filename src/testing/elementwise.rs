//! The case table of fill, add, accumulate and cast: each moves elements, so every bit is the CPU backend's. Random numbers are functions of
//! seed, draw and place.

use super::buffer::{Behind, Buffer};
use super::compare::exactly;
use super::random::Random;
use super::{Check, Outputs};
use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::ops::cpu::Cpu;
use crate::ops::cuda::elementwise as kernels;
use crate::ops::{Accumulate, Ops};
use crate::tensor::DType::{Bf16, F32};
use crate::tensor::{DType, Tensor, View, ViewMut};
use half::bf16;

#[derive(Debug, Clone, Copy)]
enum Kind {
    Fill(DType, f32),
    Add,
    /// From, to, and the number of the first element.
    Accumulate(DType, DType, u64),
    Cast(DType, DType),
}

const KINDS: [Kind; 13] = [
    Kind::Fill(F32, 0.1),
    Kind::Fill(F32, f32::NAN),
    Kind::Fill(Bf16, 0.1),
    Kind::Fill(Bf16, -3e38),
    Kind::Add,
    Kind::Accumulate(F32, F32, 0),
    Kind::Accumulate(F32, Bf16, 0),
    Kind::Accumulate(Bf16, Bf16, 6),
    // The number of a pair of elements leaves 32 bits at element 2048.
    Kind::Accumulate(F32, Bf16, (1 << 33) - 2048),
    Kind::Accumulate(Bf16, Bf16, (5 << 40) + 64),
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
            Kind::Accumulate(from, to, _) => format!("elementwise accumulate {from} in {to}"),
            Kind::Cast(from, to) => format!("elementwise cast {from} to {to}"),
        };
        let first = match kind {
            Kind::Accumulate(_, _, first) => format!(", the first is number {first}"),
            _ => String::new(),
        };
        Check::new(table, format!("{count} elements from element {offset} on{first}"), move |launcher, behind| {
            run(launcher, kind, count, offset, behind)
        })
    };
    pairs.map(check).collect()
}

fn run(launcher: &dyn Launcher, kind: Kind, count: usize, offset: usize, behind: Behind) -> Result<Outputs> {
    let (length, mut random) = (offset + count, Random::new((count * 31 + offset) as u64));
    // Magnitudes from 1 down; one of `period` elements is special, the same for `turn` elements.
    let mut values = |from: DType, period: usize, turn: usize| -> Vec<f32> {
        let scale = if from == F32 { 1.0 + 1e-3 } else { 1.0 };
        let normals = random.normals(length, 0.0, 1.0).into_iter().enumerate();
        let scaled = normals.map(|(i, value)| value * scale * 4f32.powi(-((i % period) as i32)));
        scaled.enumerate().map(|(i, value)| if i % period == 2 { SPECIAL[i / turn % SPECIAL.len()] } else { value }).collect()
    };
    let (from, to) = match kind {
        Kind::Fill(dtype, _) => (F32, dtype),
        Kind::Add => (F32, F32),
        Kind::Accumulate(from, to, _) | Kind::Cast(from, to) => (from, to),
    };
    // Every special value meets every other within 12 · 5 · 7 · 12 elements.
    let (x, mut before) = (values(from, 5, 5), values(F32, 7, 5 * 7 * 12));
    if !matches!(kind, Kind::Add | Kind::Accumulate(..)) {
        before.fill(f32::NAN);
    }
    let x_buffer = Buffer::new(launcher, behind, "x", from, &[length], &x)?;
    let mut out_buffer = Buffer::new(launcher, behind, "out", to, &[length], &before)?;
    let (x_view, out_view) = (x_buffer.view().rows(offset..length), out_buffer.view_mut().into_rows(offset..length));
    match kind {
        Kind::Fill(_, value) => kernels::fill(launcher, out_view, value)?,
        Kind::Add => kernels::add(launcher, x_view, out_view)?,
        Kind::Accumulate(_, _, first) => kernels::accumulate(launcher, sum(x_view, out_view, first))?,
        Kind::Cast(..) => kernels::cast(launcher, x_view, out_view)?,
    }
    launcher.synchronize()?;

    let host = |dtype, values: &[f32]| match dtype {
        Bf16 => Tensor::from_f32_as_bf16(values, &[length]),
        _ => Tensor::from_f32(values, &[length]),
    };
    let (x_host, mut expected) = (host(from, &x), host(to, &before));
    let (x_view, out_view) = (x_host.view().rows(offset..length), expected.view_mut().into_rows(offset..length));
    match kind {
        Kind::Fill(F32, value) => Cpu.fill(out_view, value)?,
        Kind::Fill(_, value) => out_view.bf16().fill(bf16::from_f32(value)),
        Kind::Add => Cpu.add(x_view, out_view)?,
        Kind::Accumulate(_, _, first) => Cpu.accumulate(sum(x_view, out_view, first))?,
        Kind::Cast(..) => Cpu.cast(x_view, out_view)?,
    }
    let mut wide = Tensor::host(F32, &[length]);
    Cpu.cast(expected.view(), wide.view_mut())?;
    let out = out_buffer.read()?;
    // Elements before the first are compared too: nobody wrote them.
    exactly("out", &out, wide.view().f32())?;
    let names_its_nan = matches!(kind, Kind::Accumulate(_, Bf16, _));
    if let Some(nan) = out.iter().find(|value| names_its_nan && value.is_nan() && value.to_bits() != 0x7fc0_0000) {
        return Err(Error::internal(format!("a NaN is {:#x}, not 0x7fc0", nan.to_bits() >> 16)));
    }
    Ok(vec![("out", out.into_iter().map(|value| if value.is_nan() { 0.0 } else { value }).collect())])
}

fn sum<'a>(x: View<'a>, out: ViewMut<'a>, first: u64) -> Accumulate<'a> {
    Accumulate { x, out, seed: 0x1234_5678_9abc_def0, draw: (3 << 32) + 7, first }
}
