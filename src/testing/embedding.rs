//! The case table of the token embedding: every version of the kernels, on the emulator or a GPU, answers to it.

use super::buffer::{Behind, Buffer};
use super::compare::exactly;
use super::random::Random;
use super::{Check, Outputs, ladder_checks};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::cpu::Cpu;
use crate::ops::cuda::embedding::{self as kernels, BACKWARD, FORWARD};
use crate::ops::cuda::ladder::Version;
use crate::ops::{Embedding, EmbeddingBackward, Ops};
use crate::tensor::{DType, Tensor};

/// One problem: token `i` has the id that `id` gives.
struct Case {
    name: &'static str,
    /// T
    tokens: usize,
    /// D
    width: usize,
    /// V
    vocabulary: usize,
    id: fn(i: usize, random: &mut Random) -> i32,
}

static CASES: [Case; 14] = [
    Case { name: "one element", tokens: 1, width: 1, vocabulary: 1, id: |_, _| 0 },
    Case { name: "one vector", tokens: 3, width: 8, vocabulary: 5, id: |_, random| random.below(5) as i32 },
    Case { name: "narrower than a vector", tokens: 40, width: 7, vocabulary: 9, id: |_, random| random.below(9) as i32 },
    Case { name: "odd", tokens: 33, width: 113, vocabulary: 11, id: |_, random| random.below(11) as i32 },
    Case { name: "every id once", tokens: 65, width: 24, vocabulary: 65, id: |i, _| (i * 7 % 65) as i32 },
    Case { name: "one id", tokens: 131, width: 24, vocabulary: 3, id: |_, _| 2 },
    Case { name: "runs of a window", tokens: 96, width: 16, vocabulary: 4, id: |i, _| (i % 3) as i32 },
    Case { name: "runs over windows", tokens: 200, width: 16, vocabulary: 4, id: |i, _| if i % 50 < 49 { 1 } else { 3 } },
    Case { name: "a short run, then a long one", tokens: 90, width: 40, vocabulary: 2, id: |i, _| (i > 30) as i32 },
    Case { name: "one vector past a tile", tokens: 20, width: 264, vocabulary: 7, id: |_, random| random.below(7) as i32 },
    Case { name: "Qwen2.5 0.5B", tokens: 37, width: 896, vocabulary: 50, id: |i, random| (i % 3 * random.below(17)) as i32 },
    Case { name: "one past a tile", tokens: 5, width: 1025, vocabulary: 3, id: |_, random| random.below(3) as i32 },
    Case { name: "ids outside", tokens: 70, width: 16, vocabulary: 5, id: |_, random| random.below(9) as i32 - 2 },
    Case { name: "all ids outside", tokens: 40, width: 16, vocabulary: 5, id: |i, _| if i % 2 == 0 { -1 } else { i32::MAX } },
];

/// Every version on every case.
pub fn checks() -> Vec<Check> {
    let describe = |case: &Case| format!("{} ({} x {} of {})", case.name, case.tokens, case.width, case.vocabulary);
    let mut checks = ladder_checks("embedding", &FORWARD, &CASES, describe, forward);
    checks.extend(ladder_checks("embedding", &BACKWARD, &CASES, describe, backward));
    checks
}

impl Case {
    /// [T], and the same for the CPU backend, where ids outside the table are a row behind it.
    fn ids(&self, random: &mut Random) -> [Vec<i32>; 2] {
        let ids: Vec<i32> = (0..self.tokens).map(|i| (self.id)(i, random)).collect();
        let known = |&id: &i32| if (0..self.vocabulary as i32).contains(&id) { id } else { self.vocabulary as i32 };
        let known = ids.iter().map(known).collect();
        [ids, known]
    }
}

fn integers<'a>(launcher: &'a dyn Launcher, behind: Behind, name: &'static str, values: &[i32]) -> Result<Buffer<'a>> {
    let mut buffer = Buffer::poisoned(launcher, behind, name, DType::I32, &[values.len()])?;
    launcher.upload(bytemuck::cast_slice(values), buffer.view_mut())?;
    Ok(buffer)
}

fn forward(launcher: &dyn Launcher, version: &Version, case: &Case, behind: Behind) -> Result<Outputs> {
    let (t, d, v) = (case.tokens, case.width, case.vocabulary);
    let mut random = Random::new((t * 10_007 + d) as u64);
    let [ids, known] = case.ids(&mut random);
    let mut table = random.normals(v * d, 0.0, 1.0);
    let table_buffer = Buffer::new(launcher, behind, "table", DType::Bf16, &[v, d], &table)?;
    let ids_buffer = integers(launcher, behind, "ids", &ids)?;
    let mut out_buffer = Buffer::poisoned(launcher, behind, "out", DType::Bf16, &[t, d])?;
    let op = Embedding { table: table_buffer.view(), ids: ids_buffer.view(), out: out_buffer.view_mut() };
    kernels::embedding(launcher, version, op)?;
    launcher.synchronize()?;

    table.resize((v + 1) * d, 0.0);
    let mut expected = Tensor::host(DType::F32, &[t, d]);
    Cpu.embedding(Embedding {
        table: Tensor::from_f32(&table, &[v + 1, d]).view(),
        ids: Tensor::from_i32(&known, &[t]).view(),
        out: expected.view_mut(),
    })?;
    let out = out_buffer.read()?;
    exactly("out", &out, expected.view().f32())?;
    Ok(vec![("out", out)])
}

/// The occurrences of an id are added one by one in order, as on the CPU: the same bits.
fn backward(launcher: &dyn Launcher, version: &Version, case: &Case, behind: Behind) -> Result<Outputs> {
    let (t, d, v) = (case.tokens, case.width, case.vocabulary);
    let mut random = Random::new((t * 10_009 + d) as u64);
    let [ids, known] = case.ids(&mut random);
    let mut order: Vec<i32> = (0..t as i32).collect();
    order.sort_by_key(|&at| ids[at as usize]);
    let dout = random.normals(t * d, 0.3, 1.0);
    let before = random.normals((v + 1) * d, 0.0, 1.0);
    let dout_buffer = Buffer::new(launcher, behind, "dout", DType::Bf16, &[t, d], &dout)?;
    let (ids_buffer, order_buffer) = (integers(launcher, behind, "ids", &ids)?, integers(launcher, behind, "order", &order)?);
    let mut dtable_buffer = Buffer::new(launcher, behind, "dtable", DType::F32, &[v, d], &before[..v * d])?;
    let op = EmbeddingBackward {
        dout: dout_buffer.view(),
        ids: ids_buffer.view(),
        order: order_buffer.view(),
        dtable: dtable_buffer.view_mut(),
    };
    kernels::embedding_backward(launcher, version, op)?;
    launcher.synchronize()?;

    let mut expected = Tensor::from_f32(&before, &[v + 1, d]);
    Cpu.embedding_backward(EmbeddingBackward {
        dout: Tensor::from_f32(&dout, &[t, d]).view(),
        ids: Tensor::from_i32(&known, &[t]).view(),
        order: Tensor::from_i32(&order, &[t]).view(),
        dtable: expected.view_mut(),
    })?;
    let dtable = dtable_buffer.read()?;
    exactly("dtable", &dtable, &expected.view().f32()[..v * d])?;
    Ok(vec![("dtable", dtable)])
}
