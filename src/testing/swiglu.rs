//! The case table of SwiGLU: every version of the kernels, on the emulator or a GPU, answers to it.

use super::buffer::{Behind, Buffer};
use super::compare::{same_nans, within_budget};
use super::random::Random;
use super::{Check, Outputs, ladder_checks, round};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::cpu::Cpu;
use crate::ops::cuda::ladder::Version;
use crate::ops::cuda::swiglu::{self as kernels, BACKWARD, FORWARD};
use crate::ops::{Ops, SwiGlu, SwiGluBackward};
use crate::tensor::{DType, Tensor};

/// One problem. Gates and ups are normal values of `mean` and `scale`, rounded to bf16.
struct Case {
    name: &'static str,
    /// T
    rows: usize,
    /// F
    width: usize,
    mean: f64,
    scale: f64,
    /// Some gates and ups are NaN.
    nan: bool,
}

const PLAIN: Case = Case { name: "", rows: 3, width: 64, mean: 0.0, scale: 1.5, nan: false };

static CASES: [Case; 14] = [
    Case { name: "one element", rows: 1, width: 1, ..PLAIN },
    Case { name: "one vector", rows: 1, width: 8, ..PLAIN },
    Case { name: "narrower than a vector", rows: 5, width: 7, ..PLAIN },
    Case { name: "odd", rows: 9, width: 113, ..PLAIN },
    Case { name: "one short of a tile", rows: 2, width: 511, ..PLAIN },
    Case { name: "one tile", rows: 3, width: 512, ..PLAIN },
    Case { name: "one vector past a tile", rows: 3, width: 520, ..PLAIN },
    Case { name: "more rows than a block has warps", rows: 21, width: 264, ..PLAIN },
    Case { name: "Qwen2.5 0.5B", rows: 2, width: 4864, ..PLAIN },
    Case { name: "non-zero mean", rows: 3, width: 264, mean: 6.0, ..PLAIN },
    Case { name: "closed gates", rows: 3, width: 264, mean: -70.0, scale: 15.0, ..PLAIN },
    Case { name: "large magnitude", rows: 3, width: 264, scale: 1e15, ..PLAIN },
    Case { name: "the largest bf16", rows: 2, width: 72, mean: 1e38, scale: 5e37, ..PLAIN },
    Case { name: "NaN", rows: 3, width: 72, nan: true, ..PLAIN },
];

/// Of the norm and of the largest value: what f32 arithmetic may add to the budget.
const ATOL: f64 = 2e-6;

/// Every version on every case.
pub fn checks() -> Vec<Check> {
    let describe = |case: &Case| format!("{} ({} x {})", case.name, case.rows, case.width);
    let mut checks = ladder_checks("swiglu", &FORWARD, &CASES, describe, forward);
    checks.extend(ladder_checks("swiglu", &BACKWARD, &CASES, describe, backward));
    checks
}

impl Case {
    /// [T, 2F]
    fn gate_up(&self, random: &mut Random) -> Vec<f32> {
        let mut values = random.normals(self.rows * 2 * self.width, self.mean, self.scale);
        if self.nan {
            values.iter_mut().step_by(13).for_each(|value| *value = f32::NAN);
        }
        values
    }
}

fn forward(launcher: &dyn Launcher, version: &Version, case: &Case, behind: Behind) -> Result<Outputs> {
    let (t, f) = (case.rows, case.width);
    let gate_up = case.gate_up(&mut Random::new((t * 10_007 + f) as u64));
    let gate_up_buffer = Buffer::new(launcher, behind, "gate_up", DType::Bf16, &[t, 2 * f], &gate_up)?;
    let mut out_buffer = Buffer::poisoned(launcher, behind, "out", DType::Bf16, &[t, f])?;
    kernels::swiglu(launcher, version, SwiGlu { gate_up: gate_up_buffer.view(), out: out_buffer.view_mut() })?;
    launcher.synchronize()?;

    let mut oracle = Tensor::host(DType::F32, &[t, f]);
    Cpu.swiglu(SwiGlu { gate_up: Tensor::from_f32(&gate_up, &[t, 2 * f]).view(), out: oracle.view_mut() })?;
    let mut out = out_buffer.read()?;
    compare("out", &mut out, oracle.view().f32())?;
    Ok(vec![("out", out)])
}

fn backward(launcher: &dyn Launcher, version: &Version, case: &Case, behind: Behind) -> Result<Outputs> {
    let (t, f) = (case.rows, case.width);
    let mut random = Random::new((t * 10_009 + f) as u64);
    let (gate_up, dout) = (case.gate_up(&mut random), random.normals(t * f, 0.1, 1.0));
    let gate_up_buffer = Buffer::new(launcher, behind, "gate_up", DType::Bf16, &[t, 2 * f], &gate_up)?;
    let dout_buffer = Buffer::new(launcher, behind, "dout", DType::Bf16, &[t, f], &dout)?;
    let mut dgate_up_buffer = Buffer::poisoned(launcher, behind, "dgate_up", DType::Bf16, &[t, 2 * f])?;
    let op = SwiGluBackward { gate_up: gate_up_buffer.view(), dout: dout_buffer.view(), dgate_up: dgate_up_buffer.view_mut() };
    kernels::swiglu_backward(launcher, version, op)?;
    launcher.synchronize()?;

    let mut oracle = Tensor::host(DType::F32, &[t, 2 * f]);
    Cpu.swiglu_backward(SwiGluBackward {
        gate_up: Tensor::from_f32(&gate_up, &[t, 2 * f]).view(),
        dout: Tensor::from_f32(&dout, &[t, f]).view(),
        dgate_up: oracle.view_mut(),
    })?;
    let mut dgate_up = dgate_up_buffer.read()?;
    compare("dgate_up", &mut dgate_up, oracle.view().f32())?;
    Ok(vec![("dgate_up", dgate_up)])
}

/// The budget is what one rounding of the oracle costs. What overflows there must overflow here.
fn compare(what: &str, values: &mut [f32], oracle: &[f32]) -> Result<()> {
    let mut naive: Vec<f32> = oracle.iter().map(|&value| round(value)).collect();
    same_nans(what, values, &mut naive)?;
    let mut oracle: Vec<f64> = oracle.iter().map(|&value| if value.is_nan() { 0.0 } else { value.into() }).collect();
    for i in 0..values.len() {
        if naive[i].is_infinite() && values[i] == naive[i] {
            (values[i], naive[i], oracle[i]) = (0.0, 0.0, 0.0);
        }
    }
    within_budget(what, values, &naive, &oracle, ATOL)
}
