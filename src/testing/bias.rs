//! The case table of the bias gradient: every version of the kernels, on the emulator or a GPU, answers to it.

use super::buffer::{Behind, Buffer};
use super::compare::{same_nans, within_budget};
use super::random::Random;
use super::{Check, Outputs, ladder_checks};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::cpu::Cpu;
use crate::ops::cuda::bias::{self as kernels, BACKWARD};
use crate::ops::cuda::ladder::Version;
use crate::ops::{BiasBackward, Ops};
use crate::tensor::{DType, Tensor};

/// One problem. Rows are normal values of `mean` and `scale`, rounded to bf16.
struct Case {
    name: &'static str,
    /// T
    rows: usize,
    /// N
    width: usize,
    mean: f64,
    scale: f64,
}

const PLAIN: Case = Case { name: "", rows: 3, width: 64, mean: 0.0, scale: 1.0 };

static CASES: [Case; 12] = [
    Case { name: "one element", rows: 1, width: 1, ..PLAIN },
    Case { name: "no row", rows: 0, width: 24, ..PLAIN },
    Case { name: "narrower than a vector", rows: 70, width: 7, ..PLAIN },
    Case { name: "one vector", rows: 65, width: 8, ..PLAIN },
    Case { name: "odd", rows: 129, width: 113, ..PLAIN },
    Case { name: "one past a tile", rows: 5, width: 257, ..PLAIN },
    Case { name: "a row a warp", rows: 512, width: 40, ..PLAIN },
    Case { name: "one row more than warps", rows: 513, width: 264, ..PLAIN },
    Case { name: "more rows than are loaded at once", rows: 4500, width: 16, ..PLAIN },
    Case { name: "Qwen2.5 0.5B", rows: 33, width: 1152, ..PLAIN },
    Case { name: "non-zero mean", rows: 600, width: 24, mean: 30.0, ..PLAIN },
    Case { name: "large magnitude", rows: 70, width: 24, scale: 1e30, ..PLAIN },
];

/// Of the norm and of the largest value: what another order of f32 additions may add to the budget.
const ATOL: f64 = 1e-6;

/// Every version on every case.
pub fn checks() -> Vec<Check> {
    let describe = |case: &Case| format!("{} ({} x {})", case.name, case.rows, case.width);
    ladder_checks("bias", &BACKWARD, &CASES, describe, backward)
}

fn backward(launcher: &dyn Launcher, version: &Version, case: &Case, behind: Behind) -> Result<Outputs> {
    let (t, n) = (case.rows, case.width);
    let mut random = Random::new((t * 10_007 + n) as u64);
    let mut dy = random.normals(t * n, case.mean, case.scale);
    if n > 1 && t > 0 {
        dy[n - 1] = f32::NAN; // spoils the last column, nothing else
    }
    let before = random.normals(n, 0.0, case.scale);
    // A buffer has a row at least; the op is given as many as the case has.
    let padded: Vec<f32> = if t == 0 { vec![f32::NAN; n] } else { dy.clone() };
    let dy_buffer = Buffer::new(launcher, behind, "dy", DType::Bf16, &[t.max(1), n], &padded)?;
    let mut dbias_buffer = Buffer::new(launcher, behind, "dbias", DType::F32, &[n], &before)?;
    let mut partials_buffer = Buffer::poisoned(launcher, behind, "partials", DType::F32, &[BiasBackward::PARTIALS, n])?;
    let op =
        BiasBackward { dy: dy_buffer.view().rows(0..t), dbias: dbias_buffer.view_mut(), partials: partials_buffer.view_mut() };
    kernels::bias_backward(launcher, version, op)?;
    launcher.synchronize()?;
    partials_buffer.read()?;

    let mut naive = Tensor::from_f32(&before, &[n]);
    Cpu.bias_backward(BiasBackward {
        dy: Tensor::from_f32(&dy, &[t, n]).view(),
        dbias: naive.view_mut(),
        partials: Tensor::host(DType::F32, &[BiasBackward::PARTIALS, n]).view_mut(),
    })?;
    let mut oracle: Vec<f64> = before.iter().map(|&value| value.into()).collect();
    dy.iter().enumerate().for_each(|(i, &value)| oracle[i % n] += f64::from(value));
    oracle.iter_mut().filter(|sum| sum.is_nan()).for_each(|sum| *sum = 0.0);
    let (mut dbias, mut naive) = (dbias_buffer.read()?, naive.view().f32().to_vec());
    same_nans("dbias", &mut dbias, &mut naive)?;
    within_budget("dbias", &dbias, &naive, &oracle, ATOL)?;
    Ok(vec![("dbias", dbias)])
}
