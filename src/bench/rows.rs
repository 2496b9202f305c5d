//! Ops that pass once over rows of activations, or over elements: RoPE, SwiGLU, the gradient of a bias, fill, add, accumulate and cast.

use super::models::{Model, TOKENS};
use super::problem::{Device, Operand, Problem, Sets, integers, normal, tensors, zeros};
use super::{Ceiling, Ladder};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::cuda::bias::{BACKWARD as BIAS, bias_backward};
use crate::ops::cuda::elementwise;
use crate::ops::cuda::rope::{ROPE, rope};
use crate::ops::cuda::swiglu::{BACKWARD, FORWARD, swiglu, swiglu_backward};
use crate::ops::{Accumulate, BiasBackward, Cost, HeadLayout, Rope, SwiGlu, SwiGluBackward};
use crate::tensor::DType::{Bf16, F32};
use crate::tensor::Tensor;

pub fn rope_ladders() -> Vec<Ladder> {
    vec![Ladder::new("rope", Ceiling::Copy, ROPE.iter().map(|v| (v.name, v.idea)), rotate)]
}

pub fn swiglu_ladders() -> Vec<Ladder> {
    vec![
        Ladder::new("swiglu", Ceiling::Copy, FORWARD.iter().map(|v| (v.name, v.idea)), activate),
        Ladder::new("swiglu", Ceiling::Copy, BACKWARD.iter().map(|v| (v.name, v.idea)), activate_backward),
    ]
}

pub fn bias_ladders() -> Vec<Ladder> {
    vec![Ladder::new("bias", Ceiling::Copy, BIAS.iter().map(|v| (v.name, v.idea)), bias)]
}

fn rotate<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    fn op<'a>(heads: HeadLayout, [positions, cos, sin]: &'a [Tensor; 3], [qkv]: &'a mut [Tensor; 1]) -> Rope<'a> {
        Rope { qkv: qkv.view_mut(), heads, positions: positions.view(), cos: cos.view(), sin: sin.view(), inverse: false }
    }
    let heads = model.heads;
    let table = || normal(F32, &[TOKENS, heads.dim / 2]);
    let tables = tensors(device.launcher, &[integers((0..TOKENS as i32).collect()), table(), table()])?;
    let mut sets = Sets::new(device.launcher, [normal(Bf16, &[TOKENS, heads.fused(), heads.dim])])?;
    let cost = op(heads, &tables, sets.at(0)).cost();
    let issue = move |version: usize, i| rope(device.launcher, &ROPE[version], op(heads, &tables, sets.at(i)));
    Ok(Problem::new(format!("T {TOKENS}, heads {}:{} x {}", heads.query, heads.kv, heads.dim), cost, issue))
}

fn activate<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    fn op([gate_up, out]: &mut [Tensor; 2]) -> SwiGlu<'_> {
        SwiGlu { gate_up: gate_up.view(), out: out.view_mut() }
    }
    let width = model.feed_forward;
    let mut sets = Sets::new(device.launcher, [normal(Bf16, &[TOKENS, 2 * width]), zeros(Bf16, &[TOKENS, width])])?;
    let cost = op(sets.at(0)).cost();
    let issue = move |version: usize, i| swiglu(device.launcher, &FORWARD[version], op(sets.at(i)));
    Ok(Problem::new(format!("T {TOKENS}, F {width}"), cost, issue))
}

fn activate_backward<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    fn op([gate_up, dout, dgate_up]: &mut [Tensor; 3]) -> SwiGluBackward<'_> {
        SwiGluBackward { gate_up: gate_up.view(), dout: dout.view(), dgate_up: dgate_up.view_mut() }
    }
    let width = model.feed_forward;
    let both = [TOKENS, 2 * width];
    let mut sets = Sets::new(device.launcher, [normal(Bf16, &both), normal(Bf16, &[TOKENS, width]), zeros(Bf16, &both)])?;
    let cost = op(sets.at(0)).cost();
    let issue = move |version: usize, i| swiglu_backward(device.launcher, &BACKWARD[version], op(sets.at(i)));
    Ok(Problem::new(format!("T {TOKENS}, F {width}"), cost, issue))
}

/// The only bias of Qwen2 is that of the fused projection.
fn bias<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    fn op<'a>([dbias, partials]: &'a mut [Tensor; 2], [dy]: &'a mut [Tensor; 1]) -> BiasBackward<'a> {
        BiasBackward { dy: dy.view(), dbias: dbias.view_mut(), partials: partials.view_mut() }
    }
    let width = model.heads.fused() * model.heads.dim;
    let mut sums = tensors(device.launcher, &[zeros(F32, &[width]), zeros(F32, &[BiasBackward::PARTIALS, width])])?;
    let mut sets = Sets::new(device.launcher, [normal(Bf16, &[TOKENS, width])])?;
    let cost = op(&mut sums, sets.at(0)).cost();
    let issue = move |version: usize, i| bias_backward(device.launcher, &BIAS[version], op(&mut sums, sets.at(i)));
    Ok(Problem::new(format!("T {TOKENS}, N {width}"), cost, issue))
}

/// What one elementwise op does with its input and output.
type Elementwise = fn(&dyn Launcher, &mut [Tensor; 2]) -> Result<()>;

/// Over as many elements as the largest matrix of a layer has.
pub fn elementwise_ladders() -> Vec<Ladder> {
    type Pair = fn(&[usize]) -> [Operand; 2];
    // How often `out` passes: written, or read and written.
    let ops: [(&str, &str, usize, Pair, Elementwise); 8] = [
        (
            "fill",
            "16-byte stores",
            1,
            |n| [zeros(F32, &[0]), zeros(F32, n)],
            |launcher, [_, out]| elementwise::fill(launcher, out.view_mut(), 0.0),
        ),
        (
            "add",
            "out += x: eight elements a thread",
            2,
            |n| [normal(F32, n), normal(F32, n)],
            |launcher, [x, out]| elementwise::add(launcher, x.view(), out.view_mut()),
        ),
        (
            "accumulate f32 in f32",
            "the same through the op that sums gradients",
            2,
            |n| [normal(F32, n), normal(F32, n)],
            accumulate,
        ),
        (
            "accumulate f32 in bf16",
            "out += x, rounded stochastically: two elements a draw",
            2,
            |n| [normal(F32, n), normal(Bf16, n)],
            accumulate,
        ),
        (
            "accumulate bf16 in bf16",
            "the same, x as another rank sends it",
            2,
            |n| [normal(Bf16, n), normal(Bf16, n)],
            accumulate,
        ),
        ("cast f32 to bf16", "eight elements a thread", 1, |n| [normal(F32, n), zeros(Bf16, n)], cast),
        ("cast bf16 to f32", "eight elements a thread", 1, |n| [normal(Bf16, n), zeros(F32, n)], cast),
        ("cast f32 to f32", "a copy, eight elements a thread", 1, |n| [normal(F32, n), zeros(F32, n)], cast),
    ];
    let ladder = |(name, idea, passes, operands, run): (&'static str, &'static str, usize, Pair, Elementwise)| {
        Ladder::new("elementwise", Ceiling::Copy, [(name, idea)], move |device, model| {
            let n = 2 * model.feed_forward * model.hidden;
            let mut sets = Sets::new(device.launcher, operands(&[n]))?;
            let [x, out] = sets.at(0);
            let cost = Cost { flops: 0.0, bytes: (x.bytes() + passes * out.bytes()) as f64 };
            Ok(Problem::new(format!("N {n}"), cost, move |_, i| run(device.launcher, sets.at(i))))
        })
    };
    ops.map(ladder).into_iter().collect()
}

fn accumulate(launcher: &dyn Launcher, [x, out]: &mut [Tensor; 2]) -> Result<()> {
    elementwise::accumulate(launcher, Accumulate { x: x.view(), out: out.view_mut(), seed: 1, draw: 1, first: 0 })
}

fn cast(launcher: &dyn Launcher, [x, out]: &mut [Tensor; 2]) -> Result<()> {
    elementwise::cast(launcher, x.view(), out.view_mut())
}
