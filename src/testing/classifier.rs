//! The case tables of the classifier: softmax cross-entropy of rows of logits, and the whole op with products on the host.

use super::buffer::{Behind, Buffer, decode, encode};
use super::compare::within_budget;
use super::random::Random;
use super::{Check, Outputs, ladder_checks, round};
use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::ops::cuda::classifier::{self as kernels, CLASSIFIER};
use crate::ops::cuda::ladder::Version;
use crate::ops::{Classifier, ClassifierGradients, Gemm, IGNORE};
use crate::tensor::{DType, View};

/// Rows of normal logits of `mean` and `scale`, rounded to bf16. Targets are the first token, the last, one that is not trained on, and any, in turn.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    /// C
    pub rows: usize,
    /// V
    pub width: usize,
    pub mean: f64,
    pub scale: f64,
    /// Every third logit but the targets' is minus infinity.
    pub masked: bool,
    pub gradients: bool,
}

const PLAIN: Case = Case { name: "", rows: 4, width: 1000, mean: 0.0, scale: 2.0, masked: false, gradients: true };

pub const CASES: [Case; 18] = [
    Case { name: "two logits", rows: 1, width: 2, ..PLAIN },
    Case { name: "one vector", rows: 1, width: 8, ..PLAIN },
    Case { name: "one vector, losses only", rows: 5, width: 8, gradients: false, ..PLAIN },
    Case { name: "odd", rows: 5, width: 127, ..PLAIN },
    Case { name: "odd, losses only", rows: 3, width: 129, gradients: false, ..PLAIN },
    Case { name: "a thousand", rows: 9, ..PLAIN },
    Case { name: "one past a warp's vectors", rows: 4, width: 257, ..PLAIN },
    Case { name: "a prime", rows: 4, width: 5003, ..PLAIN },
    Case { name: "non-zero mean", mean: 100.0, ..PLAIN },
    Case { name: "large logits", scale: 1e4, ..PLAIN },
    Case { name: "huge logits", scale: 1e30, ..PLAIN },
    Case { name: "tiny logits", scale: 1e-6, ..PLAIN },
    Case { name: "equal logits", mean: 3.0, scale: 0.0, ..PLAIN },
    Case { name: "minus infinity", masked: true, ..PLAIN },
    Case { name: "minus infinity, odd", width: 333, masked: true, ..PLAIN },
    Case { name: "one vector more than shared memory keeps", rows: 2, width: 49_160, ..PLAIN },
    Case { name: "odd, more than shared memory keeps", rows: 1, width: 57_345, ..PLAIN },
    Case { name: "Qwen2.5", rows: 2, width: 151_936, ..PLAIN },
];

/// Of the norm and of the largest value: what f32 sums and approximate exponentials may add to the budget.
const ATOL: f64 = 4e-6;

/// Every version on every case.
pub fn checks() -> Vec<Check> {
    let describe = |case: &Case| format!("{} ({} x {})", case.name, case.rows, case.width);
    let mut checks = ladder_checks("classifier", &CLASSIFIER, &CASES, describe, run);
    let describe = |case: &Planted| case.name.into();
    checks.extend(ladder_checks("classifier", &CLASSIFIER, &PLANTED, describe, run_planted));
    let describe = |case: &OpCase| format!("op: {} tokens in chunks of {}, V = {}", case.tokens, case.chunk, case.vocabulary);
    checks.extend(ladder_checks("classifier", &CLASSIFIER, &OPS, describe, run_op));
    checks
}

fn run(launcher: &dyn Launcher, version: &Version, case: &Case, behind: Behind) -> Result<Outputs> {
    let Case { rows, width, .. } = *case;
    let mut random = Random::new((rows * 1_000_003 + width) as u64);
    let targets: Vec<i32> = (0..rows)
        .map(|row| match row % 4 {
            0 => width as i32 - 1,
            1 => 0,
            2 => IGNORE,
            _ => random.below(width) as i32,
        })
        .collect();
    let mut logits: Vec<f32> = (0..rows * width).map(|_| round((case.mean + case.scale * random.normal()) as f32)).collect();
    for (row, logits) in logits.chunks_mut(width).enumerate() {
        let target = targets[row] as usize;
        if targets[row] == IGNORE {
            logits.fill(f32::NAN); // nobody looks
        } else if case.masked {
            (0..width).filter(|&i| i % 3 == 0 && i != target).for_each(|i| logits[i] = f32::NEG_INFINITY);
        }
    }
    let scales: Vec<f32> = (0..rows).map(|_| (0.01 * (1.5 + random.normal())) as f32).collect();
    let (losses, gradients) = launch(launcher, version, behind, width, &logits, &targets, case.gradients.then_some(&scales))?;

    let (mut naive_losses, mut naive_gradients) = (Vec::new(), Vec::new());
    let (mut oracle_losses, mut oracle_gradients) = (Vec::new(), Vec::new());
    for (row, logits) in logits.chunks(width).enumerate() {
        let (target, scale) = (targets[row], scales[row]);
        if target == IGNORE {
            naive_losses.push(0.0);
            oracle_losses.push(0.0);
            naive_gradients.extend(vec![0.0; width]);
            oracle_gradients.extend(vec![0.0; width]);
            continue;
        }
        let target = target as usize;
        let onehot = |i: usize| if i == target { 1.0 } else { 0.0 };
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = logits.iter().map(|x| (x - max).exp()).sum();
        naive_losses.push(sum.ln() + max - logits[target]);
        let softmax = logits.iter().map(|x| (x - max).exp() / sum).enumerate();
        naive_gradients.extend(softmax.map(|(i, p)| round(scale * p - scale * onehot(i) as f32)));
        let wide = |x: f32| f64::from(x) - f64::from(max);
        let sum: f64 = logits.iter().map(|&x| wide(x).exp()).sum();
        oracle_losses.push(sum.ln() - wide(logits[target]));
        let softmax = logits.iter().map(|&x| wide(x).exp() / sum).enumerate();
        oracle_gradients.extend(softmax.map(|(i, p)| f64::from(scale) * (p - onehot(i))));
    }
    within_budget("losses", &losses, &naive_losses, &oracle_losses, ATOL)?;
    if case.gradients {
        within_budget("gradients", &gradients, &naive_gradients, &oracle_gradients, ATOL)?;
    } else if (0..rows * width).any(|i| gradients[i].to_bits() != logits[i].to_bits()) {
        return Err(Error::internal("logits changed though no gradient was asked for"));
    }
    Ok(vec![("losses", losses), ("gradients", visible(gradients))])
}

/// Rows that must not pass as numbers.
#[derive(Debug, Clone, Copy)]
pub struct Planted {
    pub name: &'static str,
    /// V
    pub width: usize,
    pub target: f32,
    /// The last logit.
    pub logit: f32,
}

pub const PLANTED: [Planted; 6] = [
    Planted { name: "target just past the vocabulary", width: 48, target: 48.0, logit: 0.0 },
    Planted { name: "target far past the vocabulary", width: 51, target: 2e9, logit: 0.0 },
    Planted { name: "target below the vocabulary", width: 48, target: -2.0, logit: 0.0 },
    Planted { name: "NaN among the logits", width: 51, target: 0.0, logit: f32::NAN },
    Planted { name: "NaN among many logits", width: 2048, target: 0.0, logit: f32::NAN },
    Planted { name: "infinity among the logits", width: 48, target: 0.0, logit: f32::INFINITY },
];

fn run_planted(launcher: &dyn Launcher, version: &Version, case: &Planted, behind: Behind) -> Result<Outputs> {
    let width = case.width;
    let mut logits = vec![0.5; 2 * width];
    logits[width - 1] = case.logit;
    let targets = [case.target as i32, 3];
    let (losses, gradients) = launch(launcher, version, behind, width, &logits, &targets, Some(&[1.0, 1.0]))?;
    let expected = (width as f32).ln();
    let close = (losses[1] - expected).abs() < 1e-4;
    if !losses[0].is_nan() || !close {
        return Err(Error::internal(format!("losses are {losses:?}, expected NaN and {expected}")));
    }
    Ok(vec![("gradients", visible(gradients))])
}

/// Losses, and what stands in the place of `logits` afterwards.
fn launch(
    launcher: &dyn Launcher,
    version: &Version,
    behind: Behind,
    width: usize,
    logits: &[f32],
    targets: &[i32],
    scales: Option<&[f32]>,
) -> Result<(Vec<f32>, Vec<f32>)> {
    let rows = targets.len();
    let bytes = bytemuck::cast_slice(targets);
    let mut targets_buffer = Buffer::poisoned(launcher, behind, "targets", DType::I32, &[rows])?;
    launcher.upload(bytes, targets_buffer.view_mut())?;
    let mut logits_buffer = Buffer::new(launcher, behind, "logits", DType::Bf16, &[rows, width], logits)?;
    let scales = scales.map(|scales| Buffer::new(launcher, behind, "scales", DType::F32, &[rows], scales)).transpose()?;
    let mut losses = Buffer::poisoned(launcher, behind, "losses", DType::F32, &[rows])?;
    let (targets, scales) = (targets_buffer.view(), scales.as_ref().map(Buffer::view));
    kernels::cross_entropy(launcher, version, logits_buffer.view_mut(), targets, scales, losses.view_mut())?;
    launcher.synchronize()?;
    Ok((losses.read()?, logits_buffer.read()?))
}

/// NaN is no bits that two runs could share.
fn visible(values: Vec<f32>) -> Vec<f32> {
    values.into_iter().map(|x| if x.is_nan() { f32::INFINITY } else { x }).collect()
}

/// The whole op.
#[derive(Debug, Clone, Copy)]
pub struct OpCase {
    /// T
    pub tokens: usize,
    /// D
    pub hidden: usize,
    /// V
    pub vocabulary: usize,
    /// C
    pub chunk: usize,
    pub gradients: bool,
}

pub const OPS: [OpCase; 4] = [
    OpCase { tokens: 11, hidden: 6, vocabulary: 21, chunk: 4, gradients: true },
    OpCase { tokens: 8, hidden: 16, vocabulary: 40, chunk: 4, gradients: true },
    OpCase { tokens: 3, hidden: 8, vocabulary: 64, chunk: 5, gradients: true },
    OpCase { tokens: 11, hidden: 6, vocabulary: 21, chunk: 4, gradients: false },
];

fn run_op(launcher: &dyn Launcher, version: &Version, case: &OpCase, behind: Behind) -> Result<Outputs> {
    let OpCase { tokens: t, hidden: d, vocabulary: v, chunk, .. } = *case;
    let mut random = Random::new((t * 31 + d * 7 + v) as u64);
    let mut normal = |n: usize| -> Vec<f32> { (0..n).map(|_| round((0.2 + random.normal()) as f32)).collect() };
    let (hidden, head, scales, before) = (normal(t * d), normal(v * d), normal(t), normal(v * d));
    let targets: Vec<f32> = (0..t).map(|i| if i % 3 == 2 { -1.0 } else { (i * 17 % v) as f32 }).collect();

    let filled = |name, dtype, shape: &[usize], values: &[f32]| Buffer::new(launcher, behind, name, dtype, shape, values);
    let hidden_buffer = filled("hidden", DType::Bf16, &[t, d], &hidden)?;
    let head_buffer = filled("head", DType::Bf16, &[v, d], &head)?;
    let (targets_buffer, scales_buffer) =
        (filled("targets", DType::I32, &[t], &targets)?, filled("scales", DType::F32, &[t], &scales)?);
    let mut losses_buffer = Buffer::poisoned(launcher, behind, "losses", DType::F32, &[t])?;
    let mut logits_buffer = Buffer::poisoned(launcher, behind, "logits", DType::Bf16, &[chunk, v])?;
    let mut dhidden_buffer = Buffer::poisoned(launcher, behind, "dhidden", DType::Bf16, &[t, d])?;
    let mut dhead_buffer = filled("dhead", DType::F32, &[v, d], &before)?;
    let gradients = ClassifierGradients {
        scales: scales_buffer.view(),
        dhidden: dhidden_buffer.view_mut(),
        dhead: dhead_buffer.view_mut(),
    };
    let op = Classifier {
        hidden: hidden_buffer.view(),
        head: head_buffer.view(),
        targets: targets_buffer.view(),
        losses: losses_buffer.view_mut(),
        logits: logits_buffer.view_mut(),
        gradients: case.gradients.then_some(gradients),
    };
    kernels::classifier(launcher, version, &|product| host_product(launcher, product), op)?;
    launcher.synchronize()?;
    logits_buffer.read()?;
    let losses = losses_buffer.read()?;

    let reference = |round: fn(f64) -> f64| {
        let wide = |x: f32| f64::from(x);
        let (mut losses, mut dhidden) = (Vec::new(), vec![0.0f64; t * d]);
        let mut dhead: Vec<f64> = before.iter().copied().map(wide).collect();
        for row in 0..t {
            if targets[row] < 0.0 {
                losses.push(0.0);
                continue;
            }
            let dot = |token: usize| (0..d).map(|i| wide(hidden[row * d + i]) * wide(head[token * d + i])).sum();
            let logits: Vec<f64> = (0..v).map(|token| round(dot(token))).collect();
            let lse = logits.iter().map(|x| x.exp()).sum::<f64>().ln();
            losses.push(lse - logits[targets[row] as usize]);
            for token in 0..v {
                let onehot = if token as f32 == targets[row] { 1.0 } else { 0.0 };
                let gradient = round(wide(scales[row]) * ((logits[token] - lse).exp() - onehot));
                for i in 0..d {
                    dhidden[row * d + i] += gradient * wide(head[token * d + i]);
                    dhead[token * d + i] += gradient * wide(hidden[row * d + i]);
                }
            }
        }
        dhidden.iter_mut().for_each(|x| *x = round(*x));
        [losses, dhidden, dhead]
    };
    let exact = reference(|x| x);
    let naive = reference(|x| round(x as f32).into()).map(|values| values.into_iter().map(|x| x as f32).collect::<Vec<_>>());
    let outputs = match case.gradients {
        true => vec![("losses", losses), ("dhidden", dhidden_buffer.read()?), ("dhead", dhead_buffer.read()?)],
        false => vec![("losses", losses)],
    };
    for (((name, found), naive), exact) in outputs.iter().zip(&naive).zip(&exact) {
        within_budget(name, found, naive, exact, ATOL)?;
    }
    Ok(outputs)
}

/// A product of a launcher's bf16 factors on the host, in f64, rounded once.
fn host_product(launcher: &dyn Launcher, op: Gemm) -> Result<()> {
    op.check()?;
    let desc = op.desc();
    let read = |view: View| -> Result<Vec<f32>> {
        let mut bytes = vec![0; view.bytes()];
        launcher.download(view, &mut bytes)?;
        Ok(decode(view.dtype(), &bytes))
    };
    let (a, b) = (read(op.a.view)?, read(op.b.view)?);
    let mut c = if op.accumulate { read(op.c.as_view())? } else { vec![0.0; desc.m * desc.n] };
    for (at, c) in c.iter_mut().enumerate() {
        let (i, j) = (at / desc.n, at % desc.n);
        let a_at = |l: usize| f64::from(if desc.a_transposed { a[l * desc.m + i] } else { a[i * desc.k + l] });
        let b_at = |l: usize| f64::from(if desc.b_transposed { b[j * desc.k + l] } else { b[l * desc.n + j] });
        *c = (f64::from(*c) + (0..desc.k).map(|l| a_at(l) * b_at(l)).sum::<f64>()) as f32;
    }
    launcher.upload(&encode(op.c.dtype(), &c), op.c)
}
