//! The case table of RoPE: every version of the kernels, on the emulator or a GPU, answers to it.

use super::buffer::{Behind, Buffer};
use super::compare::exactly;
use super::random::Random;
use super::{Check, Outputs, ladder_checks, round};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::cpu::Cpu;
use crate::ops::cuda::ladder::Version;
use crate::ops::cuda::rope::{self as kernels, ROPE};
use crate::ops::{HeadLayout, Ops, Rope};
use crate::tensor::{DType, Tensor};

/// One problem. Elements are normal values of `mean` and `scale`, rounded to bf16; positions are drawn below `positions`.
struct Case {
    name: &'static str,
    /// T
    tokens: usize,
    /// Q, K, H
    heads: [usize; 3],
    /// P
    positions: usize,
    mean: f64,
    scale: f64,
    inverse: bool,
}

const PLAIN: Case = Case { name: "", tokens: 3, heads: [2, 1, 16], positions: 40, mean: 0.0, scale: 1.0, inverse: false };

static CASES: [Case; 14] = [
    Case { name: "one pair", tokens: 1, heads: [1, 1, 2], positions: 1, ..PLAIN },
    Case { name: "odd halves", tokens: 9, heads: [3, 1, 6], ..PLAIN },
    Case { name: "one vector a half", tokens: 5, heads: [2, 2, 16], ..PLAIN },
    Case { name: "halves of a vector and a half", tokens: 3, heads: [4, 2, 24], ..PLAIN },
    Case { name: "lanes left over", tokens: 2, heads: [7, 1, 80], ..PLAIN },
    Case { name: "more tokens than a block has warps", tokens: 17, heads: [2, 1, 32], ..PLAIN },
    Case { name: "Qwen2.5 0.5B", tokens: 9, heads: [14, 2, 64], ..PLAIN },
    Case { name: "Qwen2.5 7B", tokens: 3, heads: [28, 4, 128], ..PLAIN },
    Case { name: "Qwen2.5 7B, inverse", tokens: 3, heads: [28, 4, 128], inverse: true, ..PLAIN },
    Case { name: "a warp a head", tokens: 2, heads: [5, 1, 512], ..PLAIN },
    Case { name: "wider than a warp", tokens: 2, heads: [2, 1, 528], ..PLAIN },
    Case { name: "odd halves, inverse", tokens: 5, heads: [3, 3, 10], inverse: true, ..PLAIN },
    Case { name: "non-zero mean, far positions", tokens: 4, heads: [2, 1, 64], positions: 32768, mean: 30.0, ..PLAIN },
    Case { name: "large magnitude", tokens: 4, heads: [2, 1, 64], scale: 1e37, ..PLAIN },
];

/// Every version on every case.
pub fn checks() -> Vec<Check> {
    let describe = |case: &Case| format!("{} ({} x {:?})", case.name, case.tokens, case.heads);
    ladder_checks("rope", &ROPE, &CASES, describe, turn)
}

/// The kernels do the CPU backend's products and sums in its order, so only the final rounding is added.
fn turn(launcher: &dyn Launcher, version: &Version, case: &Case, behind: Behind) -> Result<Outputs> {
    let [query, kv, dim] = case.heads;
    let heads = HeadLayout { query, kv, dim };
    let (shape, half) = ([case.tokens, heads.fused(), dim], dim / 2);
    let mut random = Random::new((case.tokens * 10_007 + dim) as u64);
    let mut qkv = random.normals(shape.iter().product(), case.mean, case.scale);
    qkv[0] = f32::NAN; // spoils its own pair, nothing else
    let positions: Vec<f32> = (0..case.tokens).map(|_| random.below(case.positions) as f32).collect();
    // The last position is used: its row ends the tables.
    let last = (case.positions - 1) as f32;
    let positions: Vec<f32> = [last].into_iter().chain(positions).take(case.tokens).collect();
    let angle = |i: usize| ((i / half) as f64 * 1e4f64.powf(-((i % half) as f64) / half as f64)) as f32;
    let (sin, cos): (Vec<f32>, Vec<f32>) = (0..case.positions * half).map(|i| angle(i).sin_cos()).unzip();

    let mut qkv_buffer = Buffer::new(launcher, behind, "qkv", DType::Bf16, &shape, &qkv)?;
    let positions_buffer = Buffer::new(launcher, behind, "positions", DType::I32, &[case.tokens], &positions)?;
    let cos_buffer = Buffer::new(launcher, behind, "cos", DType::F32, &[case.positions, half], &cos)?;
    let sin_buffer = Buffer::new(launcher, behind, "sin", DType::F32, &[case.positions, half], &sin)?;
    let op = Rope {
        qkv: qkv_buffer.view_mut(),
        heads,
        positions: positions_buffer.view(),
        cos: cos_buffer.view(),
        sin: sin_buffer.view(),
        inverse: case.inverse,
    };
    kernels::rope(launcher, version, op)?;
    launcher.synchronize()?;

    let mut oracle = Tensor::from_f32(&qkv, &shape);
    let host_positions: Vec<i32> = positions.iter().map(|&p| p as i32).collect();
    Cpu.rope(Rope {
        qkv: oracle.view_mut(),
        heads,
        positions: Tensor::from_i32(&host_positions, &[case.tokens]).view(),
        cos: Tensor::from_f32(&cos, &[case.positions, half]).view(),
        sin: Tensor::from_f32(&sin, &[case.positions, half]).view(),
        inverse: case.inverse,
    })?;
    let expected: Vec<f32> = oracle.view().f32().iter().map(|&value| round(value)).collect();
    let turned = qkv_buffer.read()?;
    exactly("qkv", &turned, &expected)?;
    Ok(vec![("qkv", turned.into_iter().filter(|value| !value.is_nan()).collect())])
}
