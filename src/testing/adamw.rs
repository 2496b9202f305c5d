//! The case table of AdamW: every version and storage must compute the very bits of the CPU backend. What the contract leaves to choose is nothing:
//! the order of operations is torch's, and random numbers are functions of seed, step and place.

use super::buffer::{Behind, Buffer, decode, encode};
use super::random::Random;
use super::{Check, Outputs};
use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::ops::cpu::Cpu;
use crate::ops::cuda::adamw::{self as kernels, ADAMW, Storage, Version};
use crate::ops::{AdamW, Master, Moment, Ops};
use crate::tensor::{DType, Tensor, View, ViewMut};

/// One problem: normal values, the gradient's scaled by `grad`; moments of such gradients, zero before step 1.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    /// N
    pub count: usize,
    pub step: u64,
    pub grad: f32,
    pub weight_decay: f64,
    pub grad_scale: f32,
    pub first: u64,
    /// Takes the place of element 3 of the gradient.
    pub planted: Option<f32>,
}

const PLAIN: Case =
    Case { name: "", count: 264, step: 3, grad: 1e-2, weight_decay: 0.1, grad_scale: 1.0, first: 0, planted: None };

pub const CASES: [Case; 20] = [
    Case { name: "one element", count: 1, ..PLAIN },
    Case { name: "less than a vector", count: 7, ..PLAIN },
    Case { name: "one vector", count: 8, ..PLAIN },
    Case { name: "one short of a block", count: 255, ..PLAIN },
    Case { name: "one block", count: 256, ..PLAIN },
    Case { name: "one past a block", count: 257, ..PLAIN },
    Case { name: "odd", count: 1001, ..PLAIN },
    Case { name: "more than a launch block", count: 2053, ..PLAIN },
    Case { name: "first step", step: 1, ..PLAIN },
    Case { name: "late step", step: 1000, ..PLAIN },
    Case { name: "no decay", weight_decay: 0.0, ..PLAIN },
    Case { name: "clipped", grad_scale: 0.37, ..PLAIN },
    Case { name: "far into the model", first: (5 << 32) + 64, ..PLAIN },
    Case { name: "zero gradient, first step", grad: 0.0, step: 1, ..PLAIN },
    Case { name: "eps dominates", grad: 1e-10, ..PLAIN },
    Case { name: "tiny gradient", grad: 1e-21, ..PLAIN },
    Case { name: "huge gradient", grad: 1e16, ..PLAIN },
    Case { name: "squares overflow", grad: 1e25, ..PLAIN },
    Case { name: "NaN in the gradient", planted: Some(f32::NAN), ..PLAIN },
    Case { name: "infinity in the gradient", planted: Some(f32::INFINITY), count: 300, ..PLAIN },
];

/// Every version on every case, with every storage that it is written for.
pub fn checks() -> Vec<Check> {
    let moments = [DType::F32, DType::Bf16, DType::U8];
    let storages = moments.into_iter().flat_map(|moments| {
        [(true, DType::F32), (true, DType::Bf16), (false, DType::F32), (false, DType::Bf16)].map(|(exact, grad)| Storage {
            moments,
            exact,
            grad,
        })
    });
    let check = |version: &'static Version, storage: Storage, case: &'static Case| {
        let Storage { moments, exact, grad } = storage;
        let master = if exact { "exact" } else { "stochastic" };
        let name = format!("{} ({}), moments {moments}, {master}, gradient {grad}", case.name, case.count);
        Check::new(format!("adamw {}", version.name), name, move |launcher, behind| {
            run(launcher, version, storage, case, behind)
        })
    };
    let pairs = storages.flat_map(|storage| ADAMW.iter().filter(move |v| v.takes(storage)).map(move |v| (v, storage)));
    pairs.flat_map(|(version, storage)| CASES.iter().map(move |case| check(version, storage, case))).collect()
}

/// The operands of an update that it reads and writes, by name.
const STATE: [&str; 6] = ["param", "remainder", "m", "v", "m scales", "v scales"];

fn run(launcher: &dyn Launcher, version: &Version, storage: Storage, case: &Case, behind: Behind) -> Result<Outputs> {
    let n = case.count;
    let (grad, state) = operands(storage, case);
    let grad_buffer = Buffer::new(launcher, behind, "grad", storage.grad, &[n], &grad)?;
    let buffers = STATE.into_iter().zip(&state);
    let buffers = buffers.map(|(name, (dtype, values))| Buffer::new(launcher, behind, name, *dtype, &[values.len()], values));
    let mut buffers = buffers.collect::<Result<Vec<_>>>()?;
    let views = buffers.iter_mut().map(Buffer::view_mut).collect();
    kernels::adamw(launcher, version, op(storage, case, grad_buffer.view(), views))?;
    launcher.synchronize()?;

    let host = |dtype: DType, values: &[f32]| {
        let mut tensor = Tensor::host(dtype, &[values.len()]);
        tensor.view_mut().raw_bytes().copy_from_slice(&encode(dtype, values));
        tensor
    };
    let host_grad = host(storage.grad, &grad);
    let mut hosts: Vec<Tensor> = state.iter().map(|(dtype, values)| host(*dtype, values)).collect();
    let views = hosts.iter_mut().map(Tensor::view_mut).collect();
    Cpu.adamw(op(storage, case, host_grad.view(), views))?;

    let mut outputs = Outputs::new();
    for ((name, buffer), expected) in STATE.into_iter().zip(&buffers).zip(&hosts) {
        let (found, expected) = (buffer.read()?, decode(expected.dtype(), expected.view().raw_bytes()));
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        if let Some(i) = (0..found.len()).find(|&i| !same(found[i], expected[i])) {
            return Err(Error::internal(format!("{name}[{i}] is {:e}, not {:e}", found[i], expected[i])));
        }
        // NaN is no bits that two runs could share.
        outputs.push((name, found.into_iter().map(|x| if x.is_nan() { f32::INFINITY } else { x }).collect()));
    }
    let visible = |name| outputs.iter().any(|(n, values)| *n == name && values.iter().any(|x| !x.is_finite()));
    if case.planted.is_some() && !(visible("param") && n > 3) {
        return Err(Error::internal("what is no number in the gradient is a number in the parameter"));
    }
    Ok(outputs)
}

/// The gradient, and type and values of what [`STATE`] names; an absent operand is empty.
fn operands(storage: Storage, case: &Case) -> (Vec<f32>, Vec<(DType, Vec<f32>)>) {
    let n = case.count;
    let mut random = Random::new(n as u64 * 1_000_003 + case.step);
    let mut grad: Vec<f32> = (0..n).map(|_| case.grad * random.normal() as f32).collect();
    if let Some(planted) = case.planted {
        grad[3] = planted;
    }
    let param = (0..n).map(|_| 0.02 * random.normal() as f32).collect();
    let remainder = (0..if storage.exact { n } else { 0 }).map(|_| random.below(1 << 16) as f32).collect();
    let started = if case.step > 1 { 1.0 } else { 0.0 };
    let scale = started * case.grad;
    let (m, v, scales): (Vec<f32>, Vec<f32>, [Vec<f32>; 2]) = if storage.moments == DType::U8 {
        let codes = |random: &mut Random| (0..n).map(|_| started * random.below(256) as f32).collect();
        let exponent = scale.max(1e-30).log2().floor() as i32;
        let blocks = n.div_ceil(Moment::BLOCK);
        let scales = [exponent, (2 * exponent).clamp(-126, 126)].map(|e| vec![2f32.powi(e); blocks]);
        (codes(&mut random), codes(&mut random), scales)
    } else {
        let m = (0..n).map(|_| 0.3 * scale * random.normal() as f32).collect();
        (m, (0..n).map(|_| (scale * random.normal() as f32).powi(2)).collect(), [Vec::new(), Vec::new()])
    };
    let [m_scales, v_scales] = scales;
    let state = [
        (DType::Bf16, param),
        (DType::U16, remainder),
        (storage.moments, m),
        (storage.moments, v),
        (DType::F32, m_scales),
        (DType::F32, v_scales),
    ];
    (grad, state.into())
}

/// `views` are those of [`STATE`].
fn op<'a>(storage: Storage, case: &Case, grad: View<'a>, views: Vec<ViewMut<'a>>) -> AdamW<'a> {
    let views: [ViewMut<'a>; 6] = views.try_into().unwrap_or_else(|_| panic!("a view for each of {STATE:?}"));
    let [param, remainder, m, v, m_scales, v_scales] = views;
    let scaled = |scales| (storage.moments == DType::U8).then_some(scales);
    AdamW {
        param,
        master: if storage.exact { Master::Remainder(remainder) } else { Master::None },
        grad,
        m: Moment { values: m, scales: scaled(m_scales) },
        v: Moment { values: v, scales: scaled(v_scales) },
        step: case.step,
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: case.weight_decay,
        grad_scale: case.grad_scale,
        seed: 0x1234_5678_9abc_def0,
        first: case.first,
    }
}
