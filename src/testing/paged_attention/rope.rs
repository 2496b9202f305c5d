//! RoPE into pages against the CPU backend: the same products and sums in the same order, so only the final rounding is added.

use super::{LAYER, Tables, heads, i32s};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::cpu::Cpu;
use crate::ops::cuda::paged_attention as kernels;
use crate::ops::{Ops, PagedRope};
use crate::tensor::{DType, Tensor};
use crate::testing::buffer::{Behind, Buffer};
use crate::testing::compare::exactly;
use crate::testing::random::Random;
use crate::testing::{Check, Outputs, round};

struct Case {
    name: &'static str,
    /// Q, K, H
    heads: [usize; 3],
    /// Tokens of each sequence that the cache has room for.
    lengths: &'static [usize],
    /// Sequence and token of each of the T; none pads the batch.
    tokens: &'static [Option<(usize, usize)>],
    mean: f64,
    scale: f64,
}

const PLAIN: Case = Case { name: "", heads: [2, 1, 64], lengths: &[1], tokens: &[Some((0, 0))], mean: 0.0, scale: 1.0 };

static CASES: [Case; 7] = [
    Case { name: "one token", ..PLAIN },
    Case {
        name: "both sides of a page's end",
        heads: [3, 1, 128],
        lengths: &[130],
        tokens: &[Some((0, 63)), Some((0, 64)), Some((0, 127)), Some((0, 128))],
        ..PLAIN
    },
    Case {
        name: "more tokens than a block has warps, some pad the batch",
        heads: [5, 1, 64],
        lengths: &[70, 1, 200],
        tokens: &[
            Some((2, 199)),
            None,
            Some((0, 0)),
            Some((0, 1)),
            Some((1, 0)),
            None,
            Some((2, 3)),
            Some((2, 4)),
            Some((2, 5)),
            Some((0, 69)),
            None,
        ],
        ..PLAIN
    },
    Case { name: "nothing but padding", tokens: &[None, None], ..PLAIN },
    Case { name: "Qwen2.5 0.5B", heads: [14, 2, 64], lengths: &[90, 90], tokens: &[Some((1, 89)), Some((0, 77))], ..PLAIN },
    Case { name: "Qwen2.5 7B", heads: [28, 4, 128], lengths: &[20, 5], tokens: &[Some((0, 19)), Some((1, 4))], ..PLAIN },
    Case { name: "non-zero mean, large magnitude", lengths: &[7], tokens: &[Some((0, 6))], mean: 30.0, scale: 1e30, ..PLAIN },
];

pub fn checks() -> Vec<Check> {
    let check = |case: &'static Case| {
        let described = format!("{} ({} x {:?})", case.name, case.tokens.len(), case.heads);
        Check::new("paged_attention rope".into(), described, move |launcher, behind| run(launcher, case, behind))
    };
    CASES.iter().map(check).collect()
}

/// Positions that the tables have.
const POSITIONS: usize = 256;

fn run(launcher: &dyn Launcher, case: &Case, behind: Behind) -> Result<Outputs> {
    let heads = heads(case.heads);
    let (t, half) = (case.tokens.len(), heads.dim / 2);
    let mut random = Random::new((t * 10_007 + heads.dim) as u64);
    let tables = Tables::new(case.lengths, 0, &mut random);
    let (shape, cache_shape) = ([t, heads.fused(), heads.dim], tables.shape(heads));
    let qkv = random.normals(shape.iter().product(), case.mean, case.scale);
    let positions: Vec<i32> = case.tokens.iter().map(|token| token.map_or(0, |(_, token)| token as i32)).collect();
    let rows: Vec<i32> = case.tokens.iter().map(|token| token.map_or(-1, |(s, token)| tables.row(s, token) as i32)).collect();
    let angle = |i: usize| ((i / half) as f64 * 1e4f64.powf(-((i % half) as f64) / half as f64)) as f32;
    let (sin, cos): (Vec<f32>, Vec<f32>) = (0..POSITIONS * half).map(|i| angle(i).sin_cos()).unzip();

    let integers = |name, values: &[i32]| Buffer::new(launcher, behind, name, DType::I32, &[t], &super::floats(values));
    let (positions_buffer, rows_buffer) = (integers("positions", &positions)?, integers("rows", &rows)?);
    let angles = |name, values: &[f32]| Buffer::new(launcher, behind, name, DType::F32, &[POSITIONS, half], values);
    let (cos_buffer, sin_buffer) = (angles("cos", &cos)?, angles("sin", &sin)?);
    let mut qkv_buffer = Buffer::new(launcher, behind, "qkv", DType::Bf16, &shape, &qkv)?;
    // Whatever is not written stays NaN.
    let mut cache_buffer = Buffer::poisoned(launcher, behind, "cache", DType::Bf16, &cache_shape)?;
    let op = PagedRope {
        qkv: qkv_buffer.view_mut(),
        heads,
        positions: positions_buffer.view(),
        rows: rows_buffer.view(),
        cos: cos_buffer.view(),
        sin: sin_buffer.view(),
        cache: cache_buffer.view_mut(),
        layer: LAYER,
    };
    kernels::rope(launcher, op)?;
    launcher.synchronize()?;

    let mut expected = Tensor::from_f32(&qkv, &shape);
    let mut cache = Tensor::from_f32(&vec![f32::NAN; tables.elements(heads)], &cache_shape);
    let table = [POSITIONS, half];
    Cpu.paged_rope(PagedRope {
        qkv: expected.view_mut(),
        heads,
        positions: i32s(&positions, &[t]).view(),
        rows: i32s(&rows, &[t]).view(),
        cos: Tensor::from_f32(&cos, &table).view(),
        sin: Tensor::from_f32(&sin, &table).view(),
        cache: cache.view_mut(),
        layer: LAYER,
    })?;
    let rounded = |tensor: &Tensor| -> Vec<f32> { tensor.view().f32().iter().map(|&value| round(value)).collect() };
    let (turned, cached) = (qkv_buffer.read()?, cache_buffer.read()?);
    exactly("qkv", &turned, &rounded(&expected))?;
    exactly("cache", &cached, &rounded(&cache))?;
    Ok(vec![("qkv", turned), ("cache", cached.into_iter().filter(|value| !value.is_nan()).collect())])
}
