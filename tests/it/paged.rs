//! What makes a sample's tokens a function of the sample alone: a token gets the same bits from RoPE into pages and attention over them whatever is
//! beside it, however wide the page table is, and, in a prompt, whatever chunk it comes in.

use limo_engine::bench::dry::{Dry, Noted};
use limo_engine::device::Launcher;
use limo_engine::device::emulator::Emulator;
use limo_engine::error::Result;
use limo_engine::ops::cpu::{Cpu, CpuBf16};
use limo_engine::ops::cuda::Cuda;
use limo_engine::ops::cuda::paged_attention::{DECODE, DecodeVersion, decode};
use limo_engine::ops::*;
use limo_engine::tensor::{DType, Tensor};
use limo_engine::testing::buffer::encode;
use limo_engine::testing::random::Random;

/// The CPU in both storages with heads of `dims`, and the emulator, which knows heads of 64 and 128.
fn backends(dims: &[usize], mut test: impl FnMut(&dyn Ops, usize)) {
    for &dim in dims {
        test(&Cpu, dim);
        test(&CpuBf16, dim);
        match Emulator::plain(1) {
            Ok(emulator) if dim >= 64 => test(&Cuda::emulated(emulator), dim),
            Ok(_) => {}
            Err(error) => println!("skipped 1: {error}"),
        }
    }
}

fn tensor(ops: &dyn Ops, dtype: DType, shape: &[usize], values: &[f32]) -> Tensor {
    let mut tensor = Tensor::alone(ops.allocator(), dtype, shape).unwrap();
    ops.upload(&encode(dtype, values), tensor.view_mut()).unwrap();
    tensor
}

fn integers(ops: &dyn Ops, shape: &[usize], values: &[i32]) -> Tensor {
    let mut tensor = Tensor::alone(ops.allocator(), DType::I32, shape).unwrap();
    ops.upload(bytemuck::cast_slice(values), tensor.view_mut()).unwrap();
    tensor
}

fn bytes(ops: &dyn Ops, tensor: &Tensor) -> Vec<u8> {
    let mut bytes = vec![0; tensor.bytes()];
    ops.synchronize().unwrap();
    ops.download(tensor.view(), &mut bytes).unwrap();
    bytes
}

/// Pages of a sequence, and a cache of which every page holds something.
fn cache(ops: &dyn Ops, pages: usize, heads: HeadLayout) -> Tensor {
    let shape = [pages, 1, 2, heads.kv * PAGE * heads.dim];
    tensor(ops, ops.dtype(), &shape, &Random::new(5).normals(shape.iter().product(), 0.3, 1.0))
}

/// The results of these sequences' last tokens, a row each, computed in batches of `batch` over tables of `width` pages.
fn decoded(ops: &dyn Ops, heads: HeadLayout, lengths: &[usize], batch: usize, width: usize) -> Vec<Vec<u8>> {
    let pages = lengths.iter().map(|length| length.div_ceil(PAGE)).sum();
    let cache = cache(ops, pages, heads);
    let row = heads.fused() * heads.dim;
    let qkv = Random::new(6).normals(lengths.len() * row, 0.1, 1.0);
    let mut next = 0;
    let tables: Vec<Vec<i32>> = lengths
        .iter()
        .map(|length| {
            let own: Vec<i32> = (next..).take(length.div_ceil(PAGE)).collect();
            next += own.len() as i32;
            own.into_iter().rev().chain(std::iter::repeat(0)).take(width).collect()
        })
        .collect();
    let all: Vec<usize> = (0..lengths.len()).collect();
    let mut rows = Vec::new();
    for part in all.chunks(batch) {
        let (first, s) = (part[0], part.len());
        let held: Vec<i32> = part.iter().map(|&sequence| lengths[sequence] as i32).collect();
        let qkv = tensor(ops, ops.dtype(), &[s, heads.fused(), heads.dim], &qkv[first * row..(first + s) * row]);
        let scratch = PagedAttention::scratch_bytes(ops.dtype(), s, width, heads);
        let mut scratch = Tensor::alone(ops.allocator(), DType::U8, &[scratch]).unwrap();
        let mut out = Tensor::alone(ops.allocator(), ops.dtype(), &[s, heads.query, heads.dim]).unwrap();
        ops.paged_attention(PagedAttention {
            qkv: qkv.view(),
            heads,
            queries: PagedQueries::Last,
            cache: cache.view(),
            layer: 0,
            pages: integers(ops, &[s, width], &tables[first..first + s].concat()).view(),
            lengths: integers(ops, &[s], &held).view(),
            scratch: scratch.view_mut(),
            out: out.view_mut(),
        })
        .unwrap();
        let bytes = bytes(ops, &out);
        rows.extend(bytes.chunks_exact(bytes.len() / s).map(<[u8]>::to_vec));
    }
    rows
}

#[test]
fn a_last_token_does_not_depend_on_the_batch_nor_on_the_table() {
    const LENGTHS: [usize; 16] = [1, 1100, 64, 513, 2, 65, 63, 512, 128, 300, 7, 1025, 129, 1, 90, 200];
    backends(&[16, 32, 64, 128], |ops, dim| {
        let heads = HeadLayout { query: 14, kv: 2, dim };
        let whole = decoded(ops, heads, &LENGTHS, 16, 18);
        for (batch, width) in [(16, 40), (3, 18), (1, 18), (1, 33)] {
            let again = decoded(ops, heads, &LENGTHS, batch, width);
            let same = (0..16).filter(|&sequence| again[sequence] == whole[sequence]).count();
            assert_eq!(same, 16, "{}, heads of {dim}: batches of {batch}, tables of {width}", ops.device());
        }
        // A sequence that one split holds, where the table has room for no other.
        let short: Vec<usize> = LENGTHS.iter().copied().filter(|&length| length <= PagedAttention::SPLIT).collect();
        let (narrow, wide) = (decoded(ops, heads, &short, 5, 8), decoded(ops, heads, &short, 5, 9));
        assert_eq!(narrow, wide, "{}, heads of {dim}", ops.device());
    });
}

/// The results of a prompt's tokens and what they leave in the cache, where RoPE and attention get `chunk` of them at a time, beside another sequence or alone.
fn prefilled(ops: &dyn Ops, heads: HeadLayout, length: usize, chunk: usize, beside: bool) -> (Vec<u8>, Vec<u8>) {
    const OTHER: usize = 70;
    let pages = length.div_ceil(PAGE);
    let width = pages.max(OTHER.div_ceil(PAGE));
    let mut cache = cache(ops, pages + 2, heads);
    let row = heads.fused() * heads.dim;
    let prompt = Random::new(7).normals(length * row, 0.1, 1.0);
    let half = heads.dim / 2;
    let angles: Vec<f32> = (0..length * half).map(|i| (i / half) as f32 * 0.9f32.powi((i % half) as i32)).collect();
    let table = |f: fn(f32) -> f32| tensor(ops, DType::F32, &[length, half], &angles.iter().map(|&x| f(x)).collect::<Vec<_>>());
    let (cos, sin) = (table(f32::cos), table(f32::sin));
    let own: Vec<i32> = (0..pages as i32).rev().collect();
    let at = |position: usize| own[position / PAGE] * PAGE as i32 + (position % PAGE) as i32;
    let mut out = Vec::new();
    for begin in (0..length).step_by(chunk) {
        let end = length.min(begin + chunk);
        // The other sequence's chunk comes first, so that ours begins at another row.
        let others = if beside { OTHER - 3 } else { 0 };
        let t = others + end - begin;
        let mut values = Random::new(begin as u64).normals(others * row, 0.0, 1.0);
        values.extend(&prompt[begin * row..end * row]);
        let mut qkv = tensor(ops, ops.dtype(), &[t, heads.fused(), heads.dim], &values);
        let positions: Vec<i32> = (0..others as i32).chain(begin as i32..end as i32).collect();
        let rows: Vec<i32> = (0..others).map(|_| -1).chain((begin..end).map(at)).collect();
        ops.paged_rope(PagedRope {
            qkv: qkv.view_mut(),
            heads,
            positions: integers(ops, &[t], &positions).view(),
            rows: integers(ops, &[t], &rows).view(),
            cos: cos.view(),
            sin: sin.view(),
            cache: cache.view_mut(),
            layer: 0,
        })
        .unwrap();
        let padded = |pages: &[i32]| pages.iter().copied().chain(std::iter::repeat(0)).take(width).collect::<Vec<i32>>();
        let (mut cu_seqlens, mut tables, mut lengths) = (vec![0], Vec::new(), Vec::new());
        if beside {
            cu_seqlens.push(others as i32);
            tables.extend(padded(&[pages as i32 + 1, pages as i32]));
            lengths.push(OTHER as i32);
        }
        cu_seqlens.push(t as i32);
        tables.extend(padded(&own));
        lengths.push(end as i32);
        let mut result = Tensor::alone(ops.allocator(), ops.dtype(), &[t, heads.query, heads.dim]).unwrap();
        ops.paged_attention(PagedAttention {
            qkv: qkv.view(),
            heads,
            queries: PagedQueries::Chunks {
                cu_seqlens: integers(ops, &[cu_seqlens.len()], &cu_seqlens).view(),
                cu_seqlens_host: &cu_seqlens,
            },
            cache: cache.view(),
            layer: 0,
            pages: integers(ops, &[lengths.len(), width], &tables).view(),
            lengths: integers(ops, &[lengths.len()], &lengths).view(),
            scratch: Tensor::alone(ops.allocator(), DType::U8, &[0]).unwrap().view_mut(),
            out: result.view_mut(),
        })
        .unwrap();
        let bytes = bytes(ops, &result);
        out.extend(&bytes[bytes.len() / t * others..]);
    }
    (out, bytes(ops, &cache))
}

#[test]
fn a_prompts_token_does_not_depend_on_its_chunk() {
    const LENGTH: usize = 150;
    backends(&[16, 64, 128], |ops, dim| {
        let heads = HeadLayout { query: 3, kv: 1, dim };
        let whole = prefilled(ops, heads, LENGTH, LENGTH, false);
        for (chunk, beside) in [(1, false), (7, false), (62, false), (64, false), (100, false), (50, true), (LENGTH, true)] {
            let again = prefilled(ops, heads, LENGTH, chunk, beside);
            assert!(again == whole, "{}, heads of {dim}: chunks of {chunk}, beside another: {beside}", ops.device());
        }
    });
}

/// What a step of last tokens launches, with operands that are not there.
fn launches(version: &DecodeVersion, sequences: usize, width: usize, heads: HeadLayout) -> Result<Vec<Noted>> {
    let dry = Dry::default();
    let new = |dtype, shape: &[usize]| Tensor::alone(dry.allocator(), dtype, shape).unwrap();
    let (pages, lengths) = (new(DType::I32, &[sequences, width]), new(DType::I32, &[sequences]));
    let qkv = new(DType::Bf16, &[sequences, heads.fused(), heads.dim]);
    let cache = new(DType::Bf16, &[1, 1, 2, heads.kv * PAGE * heads.dim]);
    let mut scratch = new(DType::U8, &[PagedAttention::scratch_bytes(DType::Bf16, sequences, width, heads)]);
    let mut out = new(DType::Bf16, &[sequences, heads.query, heads.dim]);
    let op = PagedAttention {
        qkv: qkv.view(),
        heads,
        queries: PagedQueries::Last,
        cache: cache.view(),
        layer: 0,
        pages: pages.view(),
        lengths: lengths.view(),
        scratch: scratch.view_mut(),
        out: out.view_mut(),
    };
    decode(&dry, version, op).map(|()| dry.take())
}

const HEADS: HeadLayout = HeadLayout { query: 28, kv: 4, dim: 128 };

#[test]
fn launches_follow_from_shapes_and_splits_are_put_together_where_a_table_has_room_for_two() {
    let grids = |version, sequences, width| -> Vec<[u32; 3]> {
        launches(version, sequences, width, HEADS).unwrap().iter().map(|noted| noted.grid).collect()
    };
    let [naive, splits, live] = &DECODE;
    assert_eq!(grids(naive, 3, 9), [[11, 1, 1]]); // 84 warps
    assert_eq!(grids(splits, 3, 8), [[1, 4, 3]]);
    assert_eq!(grids(splits, 3, 9), [[2, 4, 3], [6, 1, 1]]); // 84 heads of 16 chunks
    assert_eq!(grids(live, 3, 9), [[24, 1, 1], [6, 1, 1]]);
    assert_eq!(grids(live, 256, 512)[0], [263, 1, 1]);
    assert!(grids(live, 0, 9).is_empty());
    // 40 query heads of one key/value head: three runs of at most 16.
    let wide = HeadLayout { query: 40, kv: 1, dim: 64 };
    assert_eq!(launches(splits, 2, 1, wide).unwrap()[0].grid, [1, 3, 2]);
}

#[test]
fn what_no_kernel_of_paged_attention_serves_is_refused_by_name() {
    let refusal = |sequences, heads| launches(&DECODE[2], sequences, 1, heads).unwrap_err().message;
    assert!(refusal(1, HeadLayout { dim: 96, ..HEADS }).contains("heads of 96"));
    assert!(refusal(70_000, HEADS).contains("70000 sequences"));
}
