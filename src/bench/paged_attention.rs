//! Attention over pages while sampling: steps of one token a sequence, chunks of prompts, and RoPE into pages, with the heads of each model.

use super::models::{Model, TOKENS};
use super::problem::{Device, Problem, Sets, integers, normal, tensors, zeros};
use super::{Ceiling, Ladder};
use crate::error::Result;
use crate::ops::cuda::paged_attention::{DECODE, decode, prefill, rope};
use crate::ops::{HeadLayout, PAGE, PagedAttention, PagedQueries, PagedRope};
use crate::tensor::DType::{Bf16, F32, U8};
use crate::tensor::Tensor;
use crate::testing::random::Random;

/// One step of decoding.
#[derive(Clone, Copy)]
struct Step {
    sequences: usize,
    /// Tokens of each.
    length: usize,
    /// Query heads a key/value head; none: the model's.
    group: Option<usize>,
    /// Of the cache: a page holds all layers, so the more there are, the further the next page lies.
    layers: usize,
}

const fn step(sequences: usize, length: usize) -> Step {
    Step { sequences, length, group: None, layers: 1 }
}

const STEPS: [Step; 11] = [
    step(64, 1024),
    step(256, 1024),
    step(64, 4096),
    step(256, 4096),
    step(64, 16_384),
    step(256, 16_384),
    Step { group: Some(5), ..step(64, 4096) },
    Step { group: Some(6), ..step(64, 4096) },
    Step { group: Some(7), ..step(64, 4096) },
    Step { group: Some(8), ..step(64, 4096) },
    Step { layers: 16, ..step(64, 4096) },
];

pub fn ladders() -> Vec<Ladder> {
    const FAMILY: &str = "paged_attention";
    let turn = [("rope", "queries in place, keys and values to their pages, a warp a token")];
    let chunks = [("prefill", "32 queries a warp, a page a tile of keys")];
    let mut ladders = vec![Ladder::new(FAMILY, Ceiling::Copy, turn, rotate)];
    ladders.extend(STEPS.map(|step| {
        let versions = DECODE.iter().map(|version| (version.name, version.idea));
        Ladder::new(FAMILY, Ceiling::Copy, versions, move |device, model| last(device, model.heads, step))
    }));
    ladders.push(Ladder::new(FAMILY, Ceiling::Product, chunks, chunked));
    ladders
}

/// Numbers of pages in no order, as a cache in use has them.
fn scattered(pages: usize) -> Vec<i32> {
    let mut order: Vec<i32> = (0..pages as i32).collect();
    Random::new(3).shuffle(&mut order);
    order
}

fn last<'a>(device: Device<'a>, heads: HeadLayout, step: Step) -> Result<Problem<'a>> {
    let Step { sequences, length, group, layers } = step;
    let heads = HeadLayout { query: group.map_or(heads.query, |group| group * heads.kv), ..heads };
    let width = length.div_ceil(PAGE);
    let lengths = integers(vec![length as i32; sequences]);
    let [pages, lengths] = tensors(device.launcher, &[integers(scattered(sequences * width)), lengths])?;
    let operands = [
        normal(Bf16, &[sequences, heads.fused(), heads.dim]),
        normal(Bf16, &[sequences * width, layers, 2, heads.kv * PAGE * heads.dim]),
        zeros(U8, &[PagedAttention::scratch_bytes(Bf16, sequences, width, heads)]),
        zeros(Bf16, &[sequences, heads.query, heads.dim]),
    ];
    fn op<'a>(
        heads: HeadLayout,
        [pages, lengths]: [&'a Tensor; 2],
        [qkv, cache, scratch, out]: &'a mut [Tensor; 4],
    ) -> PagedAttention<'a> {
        PagedAttention {
            qkv: qkv.view(),
            heads,
            queries: PagedQueries::Last,
            cache: cache.view(),
            layer: 0,
            pages: pages.view().reshape(&[lengths.shape()[0], pages.shape()[0] / lengths.shape()[0]]),
            lengths: lengths.view(),
            scratch: scratch.view_mut(),
            out: out.view_mut(),
        }
    }
    let mut sets = Sets::new(device.launcher, operands)?;
    let cached = (sequences * length) as f64;
    let cost = op(heads, [&pages, &lengths], sets.at(0)).cost(cached, cached);
    let issue = move |version: usize, i| decode(device.launcher, &DECODE[version], op(heads, [&pages, &lengths], sets.at(i)));
    let HeadLayout { query, kv, dim } = heads;
    let shape = format!("{sequences} sequences of {length}, heads {query}:{kv} x {dim}, pages of {layers} layers");
    Ok(Problem::new(shape, cost, issue))
}

/// Sequences of a prefill step; each has a chunk behind as many tokens as the chunk has.
const PROMPTS: usize = 8;

fn chunked<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    let (heads, chunk) = (model.heads, TOKENS / PROMPTS);
    let (length, width) = (2 * chunk, 2 * chunk / PAGE);
    let host: Vec<i32> = (0..=PROMPTS).map(|prompt| (prompt * chunk) as i32).collect();
    let shared = [integers(scattered(PROMPTS * width)), integers(vec![length as i32; PROMPTS]), integers(host.clone())];
    let [pages, lengths, cu_seqlens] = tensors(device.launcher, &shared)?;
    fn op<'a>(
        heads: HeadLayout,
        [pages, lengths, cu_seqlens]: [&'a Tensor; 3],
        host: &'a [i32],
        [qkv, cache, scratch, out]: &'a mut [Tensor; 4],
    ) -> PagedAttention<'a> {
        PagedAttention {
            qkv: qkv.view(),
            heads,
            queries: PagedQueries::Chunks { cu_seqlens: cu_seqlens.view(), cu_seqlens_host: host },
            cache: cache.view(),
            layer: 0,
            pages: pages.view().reshape(&[PROMPTS, pages.shape()[0] / PROMPTS]),
            lengths: lengths.view(),
            scratch: scratch.view_mut(),
            out: out.view_mut(),
        }
    }
    let operands = [
        normal(Bf16, &[TOKENS, heads.fused(), heads.dim]),
        normal(Bf16, &[PROMPTS * width, 1, 2, heads.kv * PAGE * heads.dim]),
        zeros(U8, &[0]),
        zeros(Bf16, &[TOKENS, heads.query, heads.dim]),
    ];
    let mut sets = Sets::new(device.launcher, operands)?;
    let pairs = PROMPTS * (chunk * chunk + chunk * (chunk + 1) / 2);
    let cost = op(heads, [&pages, &lengths, &cu_seqlens], &host, sets.at(0)).cost(pairs as f64, (PROMPTS * length) as f64);
    let issue = move |_, i| prefill(device.launcher, op(heads, [&pages, &lengths, &cu_seqlens], &host, sets.at(i)));
    let HeadLayout { query, kv, dim } = heads;
    Ok(Problem::new(format!("{PROMPTS} chunks of {chunk} behind {chunk} tokens, heads {query}:{kv} x {dim}"), cost, issue))
}

fn rotate<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    fn op<'a>(
        heads: HeadLayout,
        [positions, rows, cos, sin]: &'a [Tensor; 4],
        [qkv, cache]: &'a mut [Tensor; 2],
    ) -> PagedRope<'a> {
        PagedRope {
            qkv: qkv.view_mut(),
            heads,
            positions: positions.view(),
            rows: rows.view(),
            cos: cos.view(),
            sin: sin.view(),
            cache: cache.view_mut(),
            layer: 0,
        }
    }
    let (heads, pages) = (model.heads, scattered(TOKENS / PAGE));
    let rows = (0..TOKENS).map(|token| pages[token / PAGE] * PAGE as i32 + (token % PAGE) as i32).collect();
    let table = || normal(F32, &[TOKENS, heads.dim / 2]);
    let shared = [integers((0..TOKENS as i32).collect()), integers(rows), table(), table()];
    let tables = tensors(device.launcher, &shared)?;
    let cache = zeros(Bf16, &[TOKENS / PAGE, 1, 2, heads.kv * PAGE * heads.dim]);
    let mut sets = Sets::new(device.launcher, [normal(Bf16, &[TOKENS, heads.fused(), heads.dim]), cache])?;
    let cost = op(heads, &tables, sets.at(0)).cost();
    let issue = move |_, i| rope(device.launcher, op(heads, &tables, sets.at(i)));
    let HeadLayout { query, kv, dim } = heads;
    Ok(Problem::new(format!("T {TOKENS}, heads {query}:{kv} x {dim}"), cost, issue))
}
