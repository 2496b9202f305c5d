//! Attention over pages against the CPU backend. What no token sees is NaN: the rest of a page, other layers, pages of nobody, key and value heads of the queries.

use super::{LAYER, Tables, element, floats, heads, i32s, nothing};
use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::ops::cpu::Cpu;
use crate::ops::cuda::paged_attention::{self as kernels, DECODE, DecodeVersion, Grid};
use crate::ops::{HeadLayout, Ops, PagedAttention, PagedQueries};
use crate::tensor::{DType, Tensor};
use crate::testing::buffer::{Behind, Buffer};
use crate::testing::compare::within_budget;
use crate::testing::random::Random;
use crate::testing::{Check, Outputs, round};
use std::f32::consts::LOG2_E;

/// One problem. Queries, keys and values are normal values of `mean` and `scale`, rounded to bf16.
struct Case {
    name: &'static str,
    /// Q, K, H
    heads: [usize; 3],
    /// Tokens of each sequence, and how many of them ask. A last token asks alone; 0, 0 pads the batch.
    sequences: &'static [[usize; 2]],
    /// Pages that the table has room for beyond the longest sequence.
    spare: usize,
    mean: f64,
    scale: f64,
}

const fn case(name: &'static str, heads: [usize; 3], sequences: &'static [[usize; 2]]) -> Case {
    Case { name, heads, sequences, spare: 0, mean: 0.0, scale: 1.0 }
}

static LAST: [Case; 17] = [
    case("one token", [1, 1, 64], &[[1, 1]]),
    case("one token, groups of six", [6, 1, 128], &[[1, 1]]),
    case("around a page, groups of two", [4, 2, 64], &[[63, 1], [64, 1], [65, 1], [1, 1], [128, 1]]),
    case("around a split", [2, 1, 64], &[[511, 1], [512, 1], [513, 1]]),
    case("three splits, groups of seven", [7, 1, 128], &[[1030, 1]]),
    case("padding between sequences, groups of five", [10, 2, 64], &[[0, 0], [130, 1], [0, 0], [77, 1], [0, 0]]),
    case("nothing but padding", [2, 1, 128], &[[0, 0], [0, 0]]),
    Case { spare: 30, ..case("a wide table, groups of six", [6, 1, 64], &[[70, 1], [0, 0], [600, 1]]) },
    case("groups of eight", [16, 2, 128], &[[66, 1], [3, 1]]),
    case("groups of sixteen", [16, 1, 64], &[[81, 1]]),
    case("more heads than a tile has rows", [20, 1, 64], &[[70, 1], [0, 0]]),
    case("more sequences than a warp has lanes", [1, 1, 64], &MANY),
    case("Qwen2.5 0.5B", [14, 2, 64], &[[113, 1], [65, 1]]),
    case("Qwen2.5 7B", [28, 4, 128], &[[67, 1]]),
    Case { mean: 1.5, ..case("non-zero mean", [5, 1, 128], &[[100, 1], [39, 1]]) },
    Case { scale: 18.0, ..case("scores of a thousand", [2, 1, 128], &[[129, 1], [520, 1]]) },
    // The highest weight is 2^δ there and is rounded, one error a row (kernels/attention/README.md): many rows, so that both programs have their share.
    Case { scale: 1e4, ..case("scores of 10^8", [16, 2, 64], &[[70, 1], [5, 1], [530, 1], [33, 1], [66, 1], [20, 1]]) },
];

const MANY: [[usize; 2]; 70] = {
    let mut sequences = [[1, 1]; 70];
    sequences[3] = [0, 0];
    sequences[31] = [65, 1];
    sequences[32] = [514, 1];
    sequences[64] = [0, 0];
    sequences[69] = [130, 1];
    sequences
};

static CHUNKS: [Case; 14] = [
    case("one token", [1, 1, 64], &[[1, 1]]),
    case("a prompt of one page", [2, 1, 128], &[[64, 64]]),
    case("a prompt of a page and one, groups of five", [5, 1, 64], &[[65, 65]]),
    case("a prompt of two tiles and one", [1, 1, 128], &[[257, 257]]),
    case("the last of many", [2, 1, 64], &[[513, 1]]),
    case("a chunk behind whole pages", [2, 2, 128], &[[192, 64]]),
    case("chunks that begin one and two short of a page", [2, 1, 64], &[[127, 64], [80, 18]]),
    case("a chunk across pages, groups of seven", [7, 1, 64], &[[200, 70]]),
    case("packed, groups of six", [6, 1, 64], &[[130, 3], [1, 1], [64, 64], [70, 7]]),
    Case { spare: 9, ..case("packed, groups of eight", [16, 2, 64], &[[3, 3], [129, 129]]) },
    case("Qwen2.5 7B", [28, 4, 128], &[[66, 2]]),
    Case { mean: 1.5, ..case("non-zero mean", [4, 2, 128], &[[100, 99], [39, 5]]) },
    Case { scale: 18.0, ..case("scores of a thousand", [1, 1, 128], &[[129, 66]]) },
    Case { scale: 1e4, ..case("scores of 10^8", [2, 1, 64], &[[70, 70], [5, 2]]) },
];

/// Of the norm and of the largest value: what f32 sums in another order may add to the budget.
const ATOL: f64 = 2e-6;

/// More than this many products of version 1 are too many for an emulator that looks at each access.
const MOST_CHECKED_PRODUCTS: usize = 700_000;

pub fn checks() -> Vec<Check> {
    let decode = DECODE.iter().flat_map(|version| {
        LAST.iter().map(move |case| Check {
            heavy: matches!(version.grid, Grid::Heads) && case.products() > MOST_CHECKED_PRODUCTS,
            ..Check::new(format!("paged_attention {}", version.name), case.describe(), move |launcher, behind| {
                last(launcher, version, case, behind)
            })
        })
    });
    let prefill = CHUNKS.iter().map(|case| {
        let run = move |launcher: &dyn Launcher, behind| chunks(launcher, case, behind);
        Check::new("paged_attention prefill".to_string(), case.describe(), run)
    });
    decode.chain(prefill).collect()
}

impl Case {
    fn describe(&self) -> String {
        format!("{} ({} sequences, heads {:?})", self.name, self.sequences.len(), self.heads)
    }

    fn products(&self) -> usize {
        self.sequences.iter().map(|[tokens, _]| tokens * self.heads[0] * self.heads[2]).sum()
    }

    fn lengths(&self) -> Vec<usize> {
        self.sequences.iter().map(|&[tokens, _]| tokens).collect()
    }
}

/// What a case gives to every implementation.
struct Inputs {
    heads: HeadLayout,
    tables: Tables,
    lengths: Vec<i32>,
    /// [T, Q + 2K, H], as bf16 holds it.
    qkv: Vec<f32>,
    /// [N, L, 2, K · PAGE · H], NaN where no token sees it.
    cache: Vec<f32>,
}

impl Inputs {
    /// For `tokens` that ask.
    fn new(case: &Case, tokens: usize) -> Self {
        let heads = heads(case.heads);
        let HeadLayout { query, kv, dim } = heads;
        let mut random = Random::new((tokens * 1009 + heads.fused() * dim) as u64);
        let lengths = case.lengths();
        let tables = Tables::new(&lengths, case.spare, &mut random);
        let mut qkv = random.normals(tokens * heads.fused() * dim, case.mean, case.scale);
        qkv.chunks_exact_mut(heads.fused() * dim).for_each(|row| row[query * dim..].fill(f32::NAN));
        let mut cache = vec![f32::NAN; tables.elements(heads)];
        for (sequence, &length) in lengths.iter().enumerate() {
            for (token, head) in (0..length).flat_map(|token| (0..2 * kv).map(move |head| (token, head))) {
                let at = element(heads, tables.row(sequence, token), head / kv, head % kv);
                cache[at..at + dim].copy_from_slice(&random.normals(dim, case.mean, case.scale));
            }
        }
        Inputs { heads, tables, lengths: lengths.iter().map(|&length| length as i32).collect(), qkv, cache }
    }

    fn tokens(&self) -> usize {
        self.qkv.len() / (self.heads.fused() * self.heads.dim)
    }

    fn out_shape(&self) -> [usize; 3] {
        [self.tokens(), self.heads.query, self.heads.dim]
    }

    /// What `issue` writes, given the operands on a device.
    fn run(
        &self,
        launcher: &dyn Launcher,
        behind: Behind,
        cu_seqlens: Option<&[i32]>,
        issue: impl Fn(PagedAttention) -> Result<()>,
    ) -> Result<Vec<f32>> {
        let (heads, s) = (self.heads, self.lengths.len());
        let new = |name, dtype, shape: &[usize], values: &[f32]| Buffer::new(launcher, behind, name, dtype, shape, values);
        let qkv = new("qkv", DType::Bf16, &[self.tokens(), heads.fused(), heads.dim], &self.qkv)?;
        let cache = new("cache", DType::Bf16, &self.tables.shape(heads), &self.cache)?;
        let pages = new("pages", DType::I32, &[s, self.tables.width], &floats(&self.tables.table))?;
        let lengths = new("lengths", DType::I32, &[s], &floats(&self.lengths))?;
        let host = cu_seqlens.unwrap_or_default();
        let bounds = new("cu_seqlens", DType::I32, &[host.len()], &floats(host))?;
        let queries = match cu_seqlens {
            None => PagedQueries::Last,
            Some(host) => PagedQueries::Chunks { cu_seqlens: bounds.view(), cu_seqlens_host: host },
        };
        let bytes = PagedAttention::scratch_bytes(DType::Bf16, s, self.tables.width, heads);
        let mut scratch = Buffer::poisoned(launcher, behind, "scratch", DType::U8, &[bytes])?;
        let mut out = Buffer::poisoned(launcher, behind, "out", DType::Bf16, &self.out_shape())?;
        issue(PagedAttention {
            qkv: qkv.view(),
            heads,
            queries,
            cache: cache.view(),
            layer: LAYER,
            pages: pages.view(),
            lengths: lengths.view(),
            scratch: scratch.view_mut(),
            out: out.view_mut(),
        })?;
        launcher.synchronize()?;
        scratch.read()?;
        out.read()
    }

    /// The CPU backend, which keeps weights in f32. It multiplies what a page does not hold yet by 0, so that must be a number.
    fn oracle(&self, cu_seqlens: Option<&[i32]>) -> Result<Vec<f64>> {
        let (heads, s) = (self.heads, self.lengths.len());
        let clean = |values: &[f32]| -> Vec<f32> { values.iter().map(|&v| if v.is_nan() { 0.0 } else { v }).collect() };
        let qkv = Tensor::from_f32(&clean(&self.qkv), &[self.tokens(), heads.fused(), heads.dim]);
        let cache = Tensor::from_f32(&clean(&self.cache), &self.tables.shape(heads));
        let host = cu_seqlens.unwrap_or_default();
        let bounds = i32s(host, &[host.len()]);
        let mut out = Tensor::host(DType::F32, &self.out_shape());
        Cpu.paged_attention(PagedAttention {
            qkv: qkv.view(),
            heads,
            queries: match cu_seqlens {
                None => PagedQueries::Last,
                Some(host) => PagedQueries::Chunks { cu_seqlens: bounds.view(), cu_seqlens_host: host },
            },
            cache: cache.view(),
            layer: LAYER,
            pages: i32s(&self.tables.table, &[s, self.tables.width]).view(),
            lengths: i32s(&self.lengths, &[s]).view(),
            scratch: nothing().view_mut(),
            out: out.view_mut(),
        })?;
        Ok(out.view().f32().iter().map(|&value| value.into()).collect())
    }

    /// Row by row, rounding what tensor cores and storage must: weights (not their sum) and results. `asking` of each sequence's tokens, the last ones, follow one
    /// another.
    fn naive(&self, asking: impl Fn(usize) -> usize) -> Vec<f32> {
        let HeadLayout { query, kv: _, dim } = self.heads;
        let (fused, group, scale) = (self.heads.fused(), self.heads.group(), self.heads.scale() * LOG2_E);
        let mut out = vec![0.0; self.out_shape().iter().product()];
        let mut token = 0;
        for (sequence, &length) in self.lengths.iter().enumerate() {
            let new = asking(sequence);
            for (seen, token) in (length as usize + 1 - new.min(length as usize)..=length as usize).zip(token..) {
                for head in 0..query {
                    let cached = |u: usize, of_values: usize| {
                        &self.cache[element(self.heads, self.tables.row(sequence, u), of_values, head / group)..][..dim]
                    };
                    let q = &self.qkv[(token * fused + head) * dim..][..dim];
                    let dot = |u: usize| q.iter().zip(cached(u, 0)).map(|(q, k)| q * k).sum::<f32>();
                    let scores: Vec<f32> = (0..seen).map(dot).collect();
                    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max) * scale;
                    let weights: Vec<f32> = scores.iter().map(|score| score.mul_add(scale, -highest).exp2()).collect();
                    let sum: f32 = weights.iter().sum();
                    let out = &mut out[(token * query + head) * dim..][..dim];
                    for (u, &weight) in weights.iter().enumerate() {
                        out.iter_mut().zip(cached(u, 1)).for_each(|(out, v)| *out += round(weight) * v);
                    }
                    out.iter_mut().for_each(|out| *out = round(*out / sum));
                }
            }
            token += new;
        }
        out
    }
}

/// Numbers of blocks that share the work in [`Grid::Live`]: none of them may change a bit.
const OTHER_GRIDS: [u32; 2] = [1, 3];

fn last(launcher: &dyn Launcher, version: &DecodeVersion, case: &Case, behind: Behind) -> Result<Outputs> {
    let inputs = Inputs::new(case, case.sequences.len());
    let run = |version: &DecodeVersion| inputs.run(launcher, behind, None, |op| kernels::decode(launcher, version, op));
    let out = run(version)?;
    // A token that pads the batch asks too, and gets zeros: one row a sequence.
    within_budget("out", &out, &inputs.naive(|_| 1), &inputs.oracle(None)?, ATOL)?;
    if let Grid::Live(_) = version.grid {
        for blocks in OTHER_GRIDS {
            let other = run(&DecodeVersion { grid: Grid::Live([blocks; 2]), ..*version })?;
            if other != out {
                return Err(Error::internal(format!("{blocks} blocks compute other bits")));
            }
        }
    }
    Ok(vec![("out", out)])
}

fn chunks(launcher: &dyn Launcher, case: &Case, behind: Behind) -> Result<Outputs> {
    let mut cu_seqlens = vec![0];
    case.sequences.iter().for_each(|[_, new]| cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + *new as i32));
    let inputs = Inputs::new(case, cu_seqlens[case.sequences.len()] as usize);
    let out = inputs.run(launcher, behind, Some(&cu_seqlens), |op| kernels::prefill(launcher, op))?;
    let naive = inputs.naive(|sequence| case.sequences[sequence][1]);
    within_budget("out", &out, &naive, &inputs.oracle(Some(&cu_seqlens))?, ATOL)?;
    Ok(vec![("out", out)])
}
