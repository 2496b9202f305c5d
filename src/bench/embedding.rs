//! Rows of the embedding table and their gradient, for ids drawn evenly from the vocabulary of each model.

use super::models::{Model, TOKENS};
use super::problem::{Device, Problem, Sets, normal, tensors, zeros};
use super::{Ceiling, Ladder};
use crate::error::Result;
use crate::ops::cuda::embedding::{self as kernels, BACKWARD, FORWARD};
use crate::ops::{Embedding, EmbeddingBackward};
use crate::tensor::DType::{Bf16, F32, I32};
use crate::tensor::Tensor;
use crate::testing::random::Random;

pub fn ladders() -> Vec<Ladder> {
    vec![
        Ladder::new("embedding", Ceiling::Copy, FORWARD.iter().map(|v| (v.name, v.idea)), forward),
        Ladder::new("embedding", Ceiling::Copy, BACKWARD.iter().map(|v| (v.name, v.idea)), backward),
    ]
}

fn shape(model: &Model) -> String {
    format!("T {TOKENS}, V {}, D {}", model.vocabulary, model.hidden)
}

/// Other ids a set, or a cache would hold the rows of the last launch.
fn draw(random: &mut Random, model: &Model) -> Vec<i32> {
    (0..TOKENS).map(|_| random.below(model.vocabulary) as i32).collect()
}

fn forward<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    fn op<'a>(table: &'a Tensor, [ids, out]: &'a mut [Tensor; 2]) -> Embedding<'a> {
        Embedding { table: table.view(), ids: ids.view(), out: out.view_mut() }
    }
    let [table] = tensors(device.launcher, &[normal(Bf16, &[model.vocabulary, model.hidden])])?;
    let mut sets = Sets::new(device.launcher, [zeros(I32, &[TOKENS]), zeros(Bf16, &[TOKENS, model.hidden])])?;
    let mut random = Random::new(1);
    for [ids, _] in &mut sets {
        device.launcher.upload(bytemuck::cast_slice(&draw(&mut random, model)), ids.view_mut())?;
    }
    let cost = op(&table, sets.at(0)).cost();
    let issue = move |version: usize, i| kernels::embedding(device.launcher, &FORWARD[version], op(&table, sets.at(i)));
    Ok(Problem::new(shape(model), cost, issue))
}

fn backward<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    fn op<'a>(dtable: &'a mut Tensor, [dout, ids, order]: &'a mut [Tensor; 3]) -> EmbeddingBackward<'a> {
        EmbeddingBackward { dout: dout.view(), ids: ids.view(), order: order.view(), dtable: dtable.view_mut() }
    }
    let [mut dtable] = tensors(device.launcher, &[zeros(F32, &[model.vocabulary, model.hidden])])?;
    let operands = [normal(Bf16, &[TOKENS, model.hidden]), zeros(I32, &[TOKENS]), zeros(I32, &[TOKENS])];
    let mut sets = Sets::new(device.launcher, operands)?;
    let mut random = Random::new(2);
    for [_, ids, order] in &mut sets {
        let drawn = draw(&mut random, model);
        let mut sorted: Vec<i32> = (0..TOKENS as i32).collect();
        sorted.sort_by_key(|&t| drawn[t as usize]);
        device.launcher.upload(bytemuck::cast_slice(&drawn), ids.view_mut())?;
        device.launcher.upload(bytemuck::cast_slice(&sorted), order.view_mut())?;
    }
    let cost = op(&mut dtable, sets.at(0)).cost();
    let issue =
        move |version: usize, i| kernels::embedding_backward(device.launcher, &BACKWARD[version], op(&mut dtable, sets.at(i)));
    Ok(Problem::new(shape(model), cost, issue))
}
