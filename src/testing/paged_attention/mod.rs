//! The case tables of attention over pages: the kernels, on the emulator or a GPU, answer to them.

mod attend;
mod rope;

use super::Check;
use super::random::Random;
use crate::ops::{HeadLayout, PAGE};
use crate::tensor::{DType, Tensor};

/// Every version on every case.
pub fn checks() -> Vec<Check> {
    rope::checks().into_iter().chain(attend::checks()).collect()
}

const fn heads([query, kv, dim]: [usize; 3]) -> HeadLayout {
    HeadLayout { query, kv, dim }
}

/// Layers of the caches, and the one that is used.
const LAYERS: usize = 3;
const LAYER: usize = 1;

/// Page tables whose pages lie in no order, in a cache with one page that belongs to nobody.
struct Tables {
    /// N
    pages: usize,
    /// [S, W]; where a sequence has no page, the one that is nobody's.
    table: Vec<i32>,
    /// W
    width: usize,
}

impl Tables {
    /// For sequences of these lengths, `spare` entries wider than the longest asks for.
    fn new(lengths: &[usize], spare: usize, random: &mut Random) -> Self {
        let needed = |length: usize| length.div_ceil(PAGE);
        let width = lengths.iter().copied().map(needed).max().unwrap_or_default().max(1) + spare;
        let used: usize = lengths.iter().copied().map(needed).sum();
        let mut order: Vec<i32> = (0..used as i32).collect();
        random.shuffle(&mut order);
        let mut rest = order.as_slice();
        let mut table = Vec::new();
        for &length in lengths {
            let (own, others) = rest.split_at(needed(length));
            rest = others;
            table.extend(own);
            table.extend(vec![used as i32; width - own.len()]);
        }
        Tables { pages: used + 1, table, width }
    }

    fn shape(&self, heads: HeadLayout) -> [usize; 4] {
        [self.pages, LAYERS, 2, heads.kv * PAGE * heads.dim]
    }

    fn elements(&self, heads: HeadLayout) -> usize {
        self.shape(heads).iter().product()
    }

    /// The row of a sequence's token in the cache.
    fn row(&self, sequence: usize, token: usize) -> usize {
        self.table[sequence * self.width + token / PAGE] as usize * PAGE + token % PAGE
    }
}

/// Where the cache has the element 0 of a head's key (`of_values` 0) or value (1) in a row.
fn element(heads: HeadLayout, row: usize, of_values: usize, head: usize) -> usize {
    let HeadLayout { kv, dim, .. } = heads;
    let (page, token) = (row / PAGE, row % PAGE);
    ((((page * LAYERS + LAYER) * 2 + of_values) * kv + head) * PAGE + token) * dim
}

fn i32s(values: &[i32], shape: &[usize]) -> Tensor {
    Tensor::from_i32(values, shape)
}

fn floats(values: &[i32]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

/// Where a tensor is wanted that nothing is read from.
fn nothing() -> Tensor {
    Tensor::host(DType::U8, &[0])
}
