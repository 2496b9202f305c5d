//! The matrix products of a layer and of the head at the shapes of each model, through cuBLASLt: forward, and the gradients of
//! input and weight.

use super::models::{Model, TOKENS};
use super::problem::{Device, Problem, Sets, normal, zeros};
use super::{Ceiling, Ladder};
use crate::error::Result;
use crate::ops::Gemm;
use crate::tensor::DType::{self, Bf16, F32};
use crate::tensor::{View, ViewMut};

/// A linear layer, [outputs, inputs], and the rows that pass through it at once.
struct Layer {
    name: &'static str,
    rows: fn(&Model) -> usize,
    extent: fn(&Model) -> [usize; 2],
}

const LAYERS: [Layer; 5] = [
    Layer { name: "qkv", rows: |_| TOKENS, extent: |m| [m.heads.fused() * m.heads.dim, m.hidden] },
    Layer { name: "attention out", rows: |_| TOKENS, extent: |m| [m.hidden, m.heads.query * m.heads.dim] },
    Layer { name: "gate and up", rows: |_| TOKENS, extent: |m| [2 * m.feed_forward, m.hidden] },
    Layer { name: "down", rows: |_| TOKENS, extent: |m| [m.hidden, m.feed_forward] },
    Layer { name: "head", rows: Model::classifier_rows, extent: |m| [m.vocabulary, m.hidden] },
];

/// One of the three products of a linear layer.
struct Direction {
    name: &'static str,
    about: &'static str,
    /// Shapes of both factors and the result, for T rows, N outputs and K inputs.
    shapes: fn(t: usize, n: usize, k: usize) -> [[usize; 2]; 3],
    result: DType,
    gemm: for<'a> fn(View<'a>, View<'a>, ViewMut<'a>) -> Gemm<'a>,
}

const DIRECTIONS: [Direction; 3] = [
    Direction {
        name: "forward",
        about: "y = x · weightᵀ",
        shapes: |t, n, k| [[t, k], [n, k], [t, n]],
        result: Bf16,
        gemm: |x, weight, y| Gemm::linear(x, weight, None, y),
    },
    Direction {
        name: "input gradient",
        about: "dx = dy · weight",
        shapes: |t, n, k| [[t, n], [n, k], [t, k]],
        result: Bf16,
        gemm: |dy, weight, dx| Gemm::linear_input_gradient(dy, weight, dx),
    },
    Direction {
        name: "weight gradient",
        about: "dweight += dyᵀ · x, in f32",
        shapes: |t, n, k| [[t, n], [t, k], [n, k]],
        result: F32,
        gemm: |dy, x, dweight| Gemm::linear_weight_gradient(dy, x, dweight),
    },
];

pub fn ladders() -> Vec<Ladder> {
    let products = LAYERS.iter().flat_map(|layer| DIRECTIONS.iter().map(move |direction| (layer, direction)));
    let ladder = |(layer, direction): (&'static Layer, &'static Direction)| {
        let version = (format!("{} {}", layer.name, direction.name), direction.about);
        Ladder::new("products", Ceiling::Product, [version], move |device, model| product(device, model, layer, direction))
    };
    products.map(ladder).collect()
}

fn product<'a>(device: Device<'a>, model: &Model, layer: &Layer, direction: &'static Direction) -> Result<Problem<'a>> {
    let (rows, [n, k]) = ((layer.rows)(model), (layer.extent)(model));
    let shapes = (direction.shapes)(rows, n, k);
    let operands = [normal(Bf16, &shapes[0]), normal(Bf16, &shapes[1]), zeros(direction.result, &shapes[2])];
    let mut sets = Sets::new(device.launcher, operands)?;
    let [a, b, c] = sets.at(0);
    let cost = (direction.gemm)(a.view(), b.view(), c.view_mut()).cost();
    let issue = move |_, i| {
        let [a, b, c] = sets.at(i);
        (device.gemm)((direction.gemm)(a.view(), b.view(), c.view_mut()))
    };
    Ok(Problem::new(format!("T {rows}, N {n}, K {k}"), cost, issue))
}
