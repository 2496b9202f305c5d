//! The case table of attention, which both directions share: every version of the kernels, on the emulator or a GPU, answers to it.

mod backward;
mod forward;

pub use backward::backward;
pub use forward::forward;

use super::random::Random;
use super::{Check, Outputs, round};
use crate::device::Launcher;
use crate::error::Result;
use crate::ops::HeadLayout;
use crate::ops::cuda::attention::{BACKWARD, FORWARD};
use crate::testing::buffer::Behind;

/// One problem. Queries, keys and values are normal values of `mean` and `scale`, rounded to bf16.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub name: &'static str,
    /// Tokens of each sequence.
    pub lengths: &'static [usize],
    pub heads: HeadLayout,
    pub mean: f64,
    pub scale: f64,
    /// A key in the midst of every sequence outweighs all others.
    pub dominated: bool,
}

const fn case(name: &'static str, lengths: &'static [usize], [query, kv, dim]: [usize; 3]) -> Case {
    Case { name, lengths, heads: HeadLayout { query, kv, dim }, mean: 0.0, scale: 1.0, dominated: false }
}

pub const CASES: [Case; 20] = [
    case("one token", &[1], [1, 1, 64]),
    case("two tokens", &[2], [2, 1, 128]),
    case("one short of a tile", &[63], [2, 2, 64]),
    case("one tile", &[64], [1, 1, 128]),
    case("one past a tile", &[65], [5, 1, 64]),
    case("one short of two tiles", &[127], [1, 1, 128]),
    case("two tiles", &[128], [2, 1, 64]),
    case("one past two tiles", &[129], [6, 1, 64]),
    case("odd", &[239], [2, 1, 128]),
    case("several tiles", &[322], [2, 1, 64]),
    case("odd, heads of Qwen2.5 0.5B", &[113], [14, 2, 64]),
    case("packed", &[1, 65, 2, 129], [2, 2, 128]),
    case("packed, groups of eight", &[3, 64, 1, 66], [8, 1, 64]),
    case("packed, groups of five", &[64, 128, 1], [10, 2, 64]),
    case("packed, a token each", &[1; 40], [2, 1, 64]),
    Case { mean: 1.5, ..case("non-zero mean", &[100, 39], [4, 2, 128]) },
    Case { scale: 18.0, ..case("scores of a thousand", &[129], [1, 1, 128]) },
    Case { scale: 1e4, ..case("scores of 10^8", &[70, 5], [2, 1, 64]) },
    Case { mean: 0.5, dominated: true, ..case("a key outweighs all others", &[150, 40], [2, 1, 128]) },
    Case { scale: 0.0, mean: 0.25, ..case("equal keys", &[130], [1, 1, 64]) },
];

/// Every version on every case.
pub fn checks() -> Vec<Check> {
    let recomputable = |case: &&Case| case.scale <= backward::LARGEST_SCALE;
    let forward_checks = FORWARD.iter().enumerate().flat_map(|(i, v)| ladder(v.name, i, v, CASES.iter(), forward));
    let backward_checks =
        BACKWARD.iter().enumerate().flat_map(|(i, v)| ladder(v.name, i, v, CASES.iter().filter(recomputable), backward));
    forward_checks.chain(backward_checks).collect()
}

/// The first versions of a ladder multiply element by element, and each product is two accesses or more.
const SCALAR_VERSIONS: usize = 2;
const MOST_CHECKED_PRODUCTS: usize = 700_000;

/// A version, called `name`, the `index`-th of its ladder, on each of the cases.
fn ladder<V: Sync>(
    name: &'static str,
    index: usize,
    version: &'static V,
    cases: impl Iterator<Item = &'static Case>,
    run: fn(&dyn Launcher, &V, &Case, Behind) -> Result<Outputs>,
) -> impl Iterator<Item = Check> {
    cases.map(move |case| {
        let HeadLayout { query, kv, dim } = case.heads;
        let extent = format!("{} of {} tokens, heads {query}:{kv} x {dim}", case.lengths.len(), case.tokens());
        let run = move |launcher: &dyn Launcher, behind| run(launcher, version, case, behind);
        let heavy = index < SCALAR_VERSIONS && case.products() > MOST_CHECKED_PRODUCTS;
        Check { heavy, ..Check::new(format!("attention {name}"), format!("{} ({extent})", case.name), run) }
    })
}

impl Case {
    /// T
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// Multiply-adds of the scores.
    fn products(&self) -> usize {
        let pairs: usize = self.lengths.iter().map(|n| n * (n + 1) / 2).sum();
        pairs * self.heads.query * self.heads.dim
    }

    /// [S + 1] where sequences begin, and T.
    pub fn cu_seqlens(&self) -> Vec<i32> {
        let ends = self.lengths.iter().scan(0, |end, &length| {
            *end += length as i32;
            Some(*end)
        });
        std::iter::once(0).chain(ends).collect()
    }

    /// [T, Q + 2K, H], as bf16 holds it.
    pub fn qkv(&self) -> Vec<f32> {
        let HeadLayout { query, kv, dim } = self.heads;
        let row = self.heads.fused() * dim;
        let mut random = Random::new((self.tokens() * 1009 + row) as u64);
        let mut qkv: Vec<f32> =
            (0..self.tokens() * row).map(|_| round((self.mean + self.scale * random.normal()) as f32)).collect();
        if self.dominated {
            for (&begin, &length) in self.cu_seqlens().iter().zip(self.lengths) {
                // Queries lean towards the mean's sign, so a key of large values along it outweighs the rest.
                let token = begin as usize + length / 2;
                qkv[token * row..][query * dim..(query + kv) * dim].fill(8.0);
            }
        }
        qkv
    }
}
