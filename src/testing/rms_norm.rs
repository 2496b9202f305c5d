//! The case table of fused residual addition and RMSNorm: every version of the kernels, on the emulator or a GPU, answers to it.

use super::buffer::{Behind, Buffer};
use super::compare::within_budget;
use super::random::Random;
use super::{Check, Outputs, ladder_checks, round};
use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::ops::cuda::ladder::Version;
use crate::ops::cuda::rms_norm::{self as kernels, BACKWARD, FORWARD};
use crate::ops::{Residual, RmsNorm, RmsNormBackward};
use crate::tensor::DType;

/// One problem. Inputs are normal values of `mean` and `scale`, rounded to bf16.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    /// T
    pub rows: usize,
    /// D
    pub width: usize,
    pub mean: f64,
    pub scale: f64,
    pub eps: f32,
    /// Forward: something is added to x. Backward: the result is added to what dsum holds.
    pub add: bool,
}

const PLAIN: Case = Case { name: "", rows: 3, width: 64, mean: 0.0, scale: 1.0, eps: 1e-6, add: true };

pub const CASES: [Case; 20] = [
    Case { name: "one element", rows: 1, width: 1, ..PLAIN },
    Case { name: "one row", rows: 1, width: 896, ..PLAIN },
    Case { name: "one vector", rows: 2, width: 8, ..PLAIN },
    Case { name: "narrower than a vector", rows: 5, width: 7, ..PLAIN },
    Case { name: "one element past a warp", rows: 4, width: 33, ..PLAIN },
    Case { name: "odd", rows: 4, width: 113, ..PLAIN },
    Case { name: "odd, nothing added", rows: 4, width: 201, add: false, ..PLAIN },
    Case { name: "Qwen2.5 0.5B", rows: 9, width: 896, ..PLAIN },
    Case { name: "Qwen2.5 1.5B, nothing added", rows: 5, width: 1536, add: false, ..PLAIN },
    Case { name: "one short of full warps", rows: 3, width: 1023, ..PLAIN },
    Case { name: "one past full warps", rows: 3, width: 1025, ..PLAIN },
    Case { name: "Qwen2.5 7B", rows: 2, width: 3584, ..PLAIN },
    Case { name: "wider than a block's registers", rows: 1, width: 8200, ..PLAIN },
    Case { name: "more rows than partial sums", rows: 700, width: 24, ..PLAIN },
    // Groups of two warps, each with several rows of a partial sum: what they share must be free again for the next row.
    Case { name: "several rows a group", rows: 2100, width: 520, ..PLAIN },
    Case { name: "non-zero mean", rows: 6, width: 520, mean: 30.0, ..PLAIN },
    Case { name: "large magnitude", rows: 3, width: 264, scale: 1e15, ..PLAIN },
    Case { name: "eps dominates", rows: 3, width: 264, scale: 1e-6, eps: 1e-5, ..PLAIN },
    Case { name: "zeros", rows: 2, width: 72, scale: 0.0, ..PLAIN },
    Case { name: "nothing added, more rows than partial sums", rows: 300, width: 40, add: false, ..PLAIN },
];

/// Of the norm and of the largest value: what f32 statistics may add to the budget.
const ATOL: f64 = 2e-6;

/// Every version on every case.
pub fn checks() -> Vec<Check> {
    let describe = |case: &Case| format!("{} ({} x {})", case.name, case.rows, case.width);
    let mut checks = ladder_checks("rms_norm", &FORWARD, &CASES, describe, forward);
    checks.extend(ladder_checks("rms_norm", &BACKWARD, &CASES, describe, backward));
    checks
}

/// Runs a forward version on a case and compares it with the oracle; an error says what is off.
pub fn forward(launcher: &dyn Launcher, version: &Version, case: &Case, behind: Behind) -> Result<Outputs> {
    let (t, d) = (case.rows, case.width);
    let mut random = Random::new(t as u64 * 1_000_003 + d as u64);
    let x = case.values(&mut random, t * d);
    let delta = if case.add { case.values(&mut random, t * d) } else { vec![0.0; t * d] };
    let weight = weights(&mut random, d);

    let filled = |name, shape: &[usize], values: &[f32]| Buffer::new(launcher, behind, name, DType::Bf16, shape, values);
    let (x_buffer, delta_buffer) = (filled("x", &[t, d], &x)?, filled("delta", &[t, d], &delta)?);
    let weight_buffer = filled("weight", &[d], &weight)?;
    let mut sum_buffer = Buffer::poisoned(launcher, behind, "sum", DType::Bf16, &[t, d])?;
    let mut y_buffer = Buffer::poisoned(launcher, behind, "y", DType::Bf16, &[t, d])?;
    let mut rstd_buffer = Buffer::poisoned(launcher, behind, "rstd", DType::F32, &[t])?;
    let residual = Residual { delta: delta_buffer.view(), sum: sum_buffer.view_mut() };
    let op = RmsNorm {
        x: x_buffer.view(),
        residual: case.add.then_some(residual),
        weight: weight_buffer.view(),
        eps: case.eps,
        y: y_buffer.view_mut(),
        rstd: rstd_buffer.view_mut(),
    };
    kernels::rms_norm(launcher, version, op)?;
    launcher.synchronize()?;
    let (sum, y, rstd) = (sum_buffer.read()?, y_buffer.read()?, rstd_buffer.read()?);

    let naive_sum: Vec<f32> = x.iter().zip(&delta).map(|(x, delta)| round(x + delta)).collect();
    let (mut naive_y, mut naive_rstd) = (Vec::new(), Vec::new());
    let (mut oracle_y, mut oracle_rstd) = (Vec::new(), Vec::new());
    for row in naive_sum.chunks(d) {
        let squares: f32 = row.iter().map(|s| s * s).sum();
        let rstd = 1.0 / (squares / d as f32 + case.eps).sqrt();
        naive_y.extend(row.iter().zip(&weight).map(|(s, w)| round(round(s * rstd) * w)));
        naive_rstd.push(rstd);
        let squares: f64 = row.iter().map(|&s| f64::from(s).powi(2)).sum();
        let rstd = 1.0 / (squares / d as f64 + f64::from(case.eps)).sqrt();
        oracle_y.extend(row.iter().zip(&weight).map(|(&s, &w)| f64::from(s) * rstd * f64::from(w)));
        oracle_rstd.push(rstd);
    }
    let mut outputs = Outputs::new();
    if case.add {
        if sum != naive_sum {
            return Err(Error::internal("sum is not x + delta rounded to bf16"));
        }
        outputs.push(("sum", sum));
    }
    // With the rstd that the version itself found, nothing is left to choose.
    let exact = |i: usize| round(round(naive_sum[i] * rstd[i / d]) * weight[i % d]);
    if let Some(i) = (0..t * d).find(|&i| y[i].to_bits() != exact(i).to_bits()) {
        return Err(Error::internal(format!("y[{i}] is {}, not round(round(sum * rstd) * weight) = {}", y[i], exact(i))));
    }
    within_budget("y", &y, &naive_y, &oracle_y, ATOL)?;
    within_budget("rstd", &rstd, &naive_rstd, &oracle_rstd, ATOL)?;
    outputs.extend([("y", y), ("rstd", rstd)]);
    Ok(outputs)
}

/// Runs a backward version on a case and compares it with the oracle; an error says what is off.
pub fn backward(launcher: &dyn Launcher, version: &Version, case: &Case, behind: Behind) -> Result<Outputs> {
    let (t, d) = (case.rows, case.width);
    let mut random = Random::new(t as u64 * 1_000_033 + d as u64);
    let sum = case.values(&mut random, t * d);
    let weight = weights(&mut random, d);
    let gradient = |random: &mut Random, n: usize| -> Vec<f32> { (0..n).map(|_| round(random.normal() as f32)).collect() };
    let dy = gradient(&mut random, t * d);
    let above = gradient(&mut random, t * d);
    let dweight_before = gradient(&mut random, d);
    let squares = |row: &[f32]| row.iter().map(|&s| f64::from(s).powi(2)).sum::<f64>();
    let rstd: Vec<f32> =
        sum.chunks(d).map(|row| (1.0 / (squares(row) / d as f64 + f64::from(case.eps)).sqrt()) as f32).collect();

    let filled = |name, dtype, shape: &[usize], values: &[f32]| Buffer::new(launcher, behind, name, dtype, shape, values);
    let dy_buffer = filled("dy", DType::Bf16, &[t, d], &dy)?;
    let sum_buffer = filled("sum", DType::Bf16, &[t, d], &sum)?;
    let weight_buffer = filled("weight", DType::Bf16, &[d], &weight)?;
    let rstd_buffer = filled("rstd", DType::F32, &[t], &rstd)?;
    let mut dweight_buffer = filled("dweight", DType::F32, &[d], &dweight_before)?;
    let mut dsum_buffer = match case.add {
        true => filled("dsum", DType::Bf16, &[t, d], &above)?,
        false => Buffer::poisoned(launcher, behind, "dsum", DType::Bf16, &[t, d])?,
    };
    let partials_shape = [RmsNormBackward::PARTIALS, d];
    let mut partials_buffer = Buffer::poisoned(launcher, behind, "partials", DType::F32, &partials_shape)?;
    let op = RmsNormBackward {
        dy: dy_buffer.view(),
        sum: sum_buffer.view(),
        weight: weight_buffer.view(),
        rstd: rstd_buffer.view(),
        dsum: dsum_buffer.view_mut(),
        accumulate: case.add,
        dweight: dweight_buffer.view_mut(),
        partials: partials_buffer.view_mut(),
    };
    kernels::rms_norm_backward(launcher, version, op)?;
    launcher.synchronize()?;
    partials_buffer.read()?;
    let (dsum, dweight) = (dsum_buffer.read()?, dweight_buffer.read()?);

    let before = |i: usize| if case.add { above[i] } else { 0.0 };
    let (mut naive_dsum, mut naive_dweight) = (Vec::new(), dweight_before.clone());
    let mut oracle_dsum = Vec::new();
    let mut oracle_dweight: Vec<f64> = dweight_before.iter().map(|&v| v.into()).collect();
    for (row, &r) in rstd.iter().enumerate() {
        let at = |i: usize| row * d + i;
        let mean = (0..d).map(|i| dy[at(i)] * weight[i] * (sum[at(i)] * r)).sum::<f32>() / d as f32;
        let wide = |v: f32| f64::from(v);
        let wide_mean = (0..d).map(|i| wide(dy[at(i)]) * wide(weight[i]) * wide(sum[at(i)]) * wide(r)).sum::<f64>() / d as f64;
        for i in 0..d {
            let (dy, s, w, above) = (dy[at(i)], sum[at(i)], weight[i], before(at(i)));
            naive_dsum.push(round(above + r * (dy * w - s * r * mean)));
            naive_dweight[i] += dy * round(s * r);
            oracle_dsum.push(wide(above) + wide(r) * (wide(dy) * wide(w) - wide(s) * wide(r) * wide_mean));
            // Rounding x̂ is part of the contract: y was computed of the rounded value.
            oracle_dweight[i] += wide(dy) * wide(round(s * r));
        }
    }
    within_budget("dsum", &dsum, &naive_dsum, &oracle_dsum, ATOL)?;
    within_budget("dweight", &dweight, &naive_dweight, &oracle_dweight, ATOL)?;
    Ok(vec![("dsum", dsum), ("dweight", dweight)])
}

impl Case {
    fn values(&self, random: &mut Random, n: usize) -> Vec<f32> {
        (0..n).map(|_| round((self.mean + self.scale * random.normal()) as f32)).collect()
    }
}

/// Around one, as trained weights are.
fn weights(random: &mut Random, n: usize) -> Vec<f32> {
    (0..n).map(|_| round((1.0 + 0.3 * random.normal()) as f32)).collect()
}
