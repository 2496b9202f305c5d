//! The case table of attention over a cache: the kernels, on the emulator or a GPU, answer to it.

use super::buffer::{Behind, Buffer};
use super::compare::{exactly, within_budget};
use super::random::Random;
use super::{Check, Outputs, round};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::cpu::Cpu;
use crate::ops::cuda::cached_attention as kernels;
use crate::ops::{CacheUse, CachedAttention, HeadLayout, Ops};
use crate::tensor::{DType, Tensor};

struct Case {
    name: &'static str,
    /// Q, K, H
    heads: [usize; 3],
    /// Slots and tokens of each.
    cache: [usize; 2],
    /// Of each sequence: slot, tokens that it holds, new tokens.
    sequences: &'static [[i32; 3]],
    mean: f64,
    scale: f64,
}

const PLAIN: Case = Case { name: "", heads: [2, 1, 32], cache: [1, 8], sequences: &[[0, 0, 1]], mean: 0.0, scale: 1.0 };

static CASES: [Case; 10] = [
    Case { name: "one token", ..PLAIN },
    Case { name: "one element a head", heads: [3, 3, 1], cache: [2, 5], sequences: &[[1, 2, 3]], ..PLAIN },
    Case { name: "a prompt", heads: [4, 2, 8], cache: [1, 40], sequences: &[[0, 0, 39]], ..PLAIN },
    Case { name: "a full slot", heads: [2, 2, 16], cache: [2, 20], sequences: &[[1, 13, 7]], ..PLAIN },
    Case { name: "one token each", heads: [6, 1, 40], cache: [3, 30], sequences: &[[2, 29, 1], [0, 5, 1], [1, 0, 1]], ..PLAIN },
    Case {
        name: "a sequence without new tokens",
        cache: [4, 12],
        sequences: &[[3, 4, 0], [1, 3, 5], [0, 2, 0], [2, 0, 2]],
        ..PLAIN
    },
    Case { name: "Qwen2.5 0.5B", heads: [14, 2, 64], cache: [2, 70], sequences: &[[1, 66, 2], [0, 3, 1]], ..PLAIN },
    Case { name: "Qwen2.5 7B", heads: [28, 4, 128], cache: [1, 40], sequences: &[[0, 33, 1]], ..PLAIN },
    Case { name: "the widest head", heads: [2, 1, 256], cache: [1, 9], sequences: &[[0, 6, 2]], ..PLAIN },
    Case { name: "non-zero mean, large scores", cache: [1, 50], sequences: &[[0, 40, 3]], mean: 3.0, scale: 8.0, ..PLAIN },
];

/// Of the norm and of the largest value: what approximate exponentials may add to the budget.
const ATOL: f64 = 4e-6;

/// Every case.
pub fn checks() -> Vec<Check> {
    let check = |case: &'static Case| {
        let described = format!("{} ({:?}, cache {:?})", case.name, case.heads, case.cache);
        Check::new("cached_attention".into(), described, move |launcher, behind| run(launcher, case, behind))
    };
    CASES.iter().map(check).collect()
}

fn run(launcher: &dyn Launcher, case: &Case, behind: Behind) -> Result<Outputs> {
    let [query, kv, dim] = case.heads;
    let (heads, [slots, capacity]) = (HeadLayout { query, kv, dim }, case.cache);
    let mut cu_seqlens = vec![0];
    case.sequences.iter().for_each(|[_, _, new]| cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + new));
    let (used, cached): (Vec<i32>, Vec<i32>) = case.sequences.iter().map(|&[slot, cached, _]| (slot, cached)).unzip();
    let tokens = cu_seqlens[case.sequences.len()] as usize;
    let (shape, out_shape, cache_shape) = ([tokens, heads.fused(), dim], [tokens, query, dim], [slots, capacity, kv, dim]);
    let mut random = Random::new((tokens * 10_007 + dim) as u64);
    let qkv = random.normals(shape.iter().product(), case.mean, case.scale);
    // What a slot does not hold is NaN: reading it would show.
    let mut filled = || {
        let mut values = random.normals(cache_shape.iter().product(), case.mean, case.scale);
        for (i, value) in values.iter_mut().enumerate() {
            let (slot, token) = (i / (capacity * kv * dim), i / (kv * dim) % capacity);
            let held = case.sequences.iter().find(|[s, ..]| *s as usize == slot).map_or(0, |[_, cached, _]| *cached as usize);
            if token >= held {
                *value = f32::NAN;
            }
        }
        values
    };
    let (keys, values) = (filled(), filled());

    let integers = |name, numbers: &[i32]| {
        let floats: Vec<f32> = numbers.iter().map(|&n| n as f32).collect();
        Buffer::new(launcher, behind, name, DType::I32, &[numbers.len()], &floats)
    };
    let [cu_buffer, slots_buffer, cached_buffer] =
        [integers("cu_seqlens", &cu_seqlens)?, integers("slots", &used)?, integers("cached", &cached)?];
    let host = CacheUse { cu_seqlens: &cu_seqlens, slots: &used, cached: &cached };
    let qkv_buffer = Buffer::new(launcher, behind, "qkv", DType::Bf16, &shape, &qkv)?;
    let mut keys_buffer = Buffer::new(launcher, behind, "keys", DType::Bf16, &cache_shape, &keys)?;
    let mut values_buffer = Buffer::new(launcher, behind, "values", DType::Bf16, &cache_shape, &values)?;
    let mut out_buffer = Buffer::poisoned(launcher, behind, "out", DType::Bf16, &out_shape)?;
    let op = CachedAttention {
        qkv: qkv_buffer.view(),
        heads,
        cu_seqlens: cu_buffer.view(),
        slots: slots_buffer.view(),
        cached: cached_buffer.view(),
        host,
        keys: keys_buffer.view_mut(),
        values: values_buffer.view_mut(),
        out: out_buffer.view_mut(),
    };
    kernels::cached_attention(launcher, op)?;
    launcher.synchronize()?;

    let (mut keys, mut values) = (Tensor::from_f32(&keys, &cache_shape), Tensor::from_f32(&values, &cache_shape));
    let mut oracle = Tensor::host(DType::F32, &out_shape);
    let [cu, slots, held] = [&cu_seqlens, &used, &cached].map(|numbers| Tensor::from_i32(numbers, &[numbers.len()]));
    Cpu.cached_attention(CachedAttention {
        qkv: Tensor::from_f32(&qkv, &shape).view(),
        heads,
        cu_seqlens: cu.view(),
        slots: slots.view(),
        cached: held.view(),
        host,
        keys: keys.view_mut(),
        values: values.view_mut(),
        out: oracle.view_mut(),
    })?;
    exactly("keys", &keys_buffer.read()?, keys.view().f32())?;
    exactly("values", &values_buffer.read()?, values.view().f32())?;
    let (out, oracle) = (out_buffer.read()?, oracle.view().f32());
    let naive: Vec<f32> = oracle.iter().map(|&value| round(value)).collect();
    let oracle: Vec<f64> = oracle.iter().map(|&value| value.into()).collect();
    within_budget("out", &out, &naive, &oracle, ATOL)?;
    Ok(vec![("out", out)])
}
