//! What each micro-kernel of `kernels/conformance/` must write, computed without it.

use super::{THREADS, WARP, WORDS};
use half::bf16;

/// Output words for the input words.
pub enum Reference {
    /// These words.
    Words(fn(&[u32]) -> Vec<u32>),
    /// These f32. Which NaN an instruction returns is the processor's choice.
    Floats(fn(&[u32]) -> Vec<f32>),
    /// These values, each as far off as it says: the exact result, and the error that the instruction's documentation allows.
    Near(fn(&[u32]) -> Vec<Near>),
}

#[derive(Clone, Copy)]
pub struct Near {
    pub value: f64,
    pub error: f64,
}

impl Reference {
    /// The first word that is wrong, with what was expected there.
    pub fn mismatch(&self, input: &[u32], output: &[u32]) -> Option<(usize, String)> {
        let wrong = |i: usize, expected: String| Some((i, expected));
        match self {
            Reference::Words(expected) => {
                let expected = expected(input);
                let at = (0..expected.len()).find(|&i| output[i] != expected[i])?;
                wrong(at, format!("{:#010x}", expected[at]))
            }
            Reference::Floats(expected) => {
                let expected = expected(input);
                let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                let at = (0..expected.len()).find(|&i| !same(f32::from_bits(output[i]), expected[i]))?;
                wrong(at, format!("{:#010x} ({:e})", expected[at].to_bits(), expected[at]))
            }
            Reference::Near(expected) => {
                let expected = expected(input);
                let near = |given: f64, Near { value, error }: Near| {
                    given == value || given.is_nan() && value.is_nan() || (given - value).abs() <= error
                };
                let at = (0..expected.len()).find(|&i| !near(f32::from_bits(output[i]).into(), expected[i]))?;
                wrong(at, format!("{:e} within {:e}", expected[at].value, expected[at].error))
            }
        }
    }
}

fn value(input: &[u32], index: usize) -> f32 {
    f32::from_bits(input[index % WORDS])
}

fn floats(of: impl Fn(usize) -> f32) -> Vec<f32> {
    (0..WORDS).map(of).collect()
}

pub fn pack_bf16x2(input: &[u32]) -> Vec<u32> {
    let convert = |value: f32| if value.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(value).to_bits()) };
    (0..WORDS).map(|i| convert(value(input, i)) | convert(value(input, i + 1)) << 16).collect()
}

pub fn unpack_bf16(input: &[u32]) -> Vec<u32> {
    input.iter().map(|word| word & 0xffff_0000).collect()
}

pub fn multiply_add(input: &[u32]) -> Vec<f32> {
    floats(|i| value(input, i).mul_add(value(input, i + 1), value(input, i + 2)))
}

pub fn reciprocal_sqrt(input: &[u32]) -> Vec<f32> {
    floats(|i| 1.0 / value(input, i).sqrt())
}

pub fn multiply_high(input: &[u32]) -> Vec<u32> {
    (0..WORDS).map(|i| ((u64::from(input[i]) * u64::from(input[(i + 1) % WORDS])) >> 32) as u32).collect()
}

pub fn square_root(input: &[u32]) -> Vec<f32> {
    floats(|i| value(input, i).sqrt())
}

/// IEEE 754-2019 maximum: NaN wins, and +0 is larger than −0.
pub fn maximum(input: &[u32]) -> Vec<f32> {
    floats(|i| match (value(input, i), value(input, i + WARP)) {
        (a, b) if a.is_nan() || b.is_nan() => f32::NAN,
        (a, b) => {
            if a.total_cmp(&b).is_gt() {
                a
            } else {
                b
            }
        }
    })
}

/// A zero of the same sign for a subnormal number.
fn flushed(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}

/// A result of an instruction that flushes subnormal numbers; `ulps` of f32 allowed.
fn near(exact: f64, ulps: f64) -> Near {
    let smallest = f64::from(f32::MIN_POSITIVE);
    let rounded = exact as f32;
    if !rounded.is_finite() {
        return Near { value: rounded.into(), error: 0.0 };
    }
    // At the border either side will do.
    let exact = if exact.abs() < 0.999 * smallest { 0.0 } else { exact };
    let ulp = (exact.abs().max(smallest).log2().floor() - 23.0).exp2();
    Near { value: exact, error: if exact.abs() < 1.001 * smallest { smallest } else { ulps * ulp } }
}

/// PTX ISA, ex2.approx.ftz.f32: 2 ulp.
pub fn exp2_approximate(input: &[u32]) -> Vec<Near> {
    let exponent = |i: usize| if i.is_multiple_of(2) { 160.0 * value(input, i) } else { value(input, i) };
    (0..WORDS).map(|i| near(f64::from(exponent(i)).exp2(), 2.0)).collect()
}

/// PTX ISA, lg2.approx.ftz.f32: 2⁻²² absolute between 0.5 and 2, relative elsewhere.
pub fn log2_approximate(input: &[u32]) -> Vec<Near> {
    let argument = |i: usize| flushed(if i.is_multiple_of(2) { 2.0 * value(input, i) } else { value(input, i) });
    let logarithm = |x: f32| {
        let exact = f64::from(x).log2();
        let relative = if (0.5..=2.0).contains(&x) { 1.0 } else { exact.abs() };
        if exact.is_finite() { Near { value: exact, error: relative * 0.5f64.powi(22) } } else { near(exact, 0.0) }
    };
    (0..WORDS).map(|i| logarithm(argument(i))).collect()
}

/// PTX ISA, rcp.approx.ftz.f32: 1 ulp.
pub fn reciprocal_approximate(input: &[u32]) -> Vec<Near> {
    (0..WORDS).map(|i| near(1.0 / f64::from(flushed(value(input, i))), 1.0)).collect()
}

/// The base is a multiple of 1024, and the second carve starts 16 bytes behind it.
pub fn shared_base(input: &[u32]) -> Vec<u32> {
    input.iter().enumerate().map(|(i, &word)| if i % 2 == 0 { 16 } else { word }).collect()
}

/// Word i from lane `source(round, lane)` of its warp.
fn shuffled(input: &[u32], source: impl Fn(usize, usize) -> usize) -> Vec<u32> {
    (0..WORDS).map(|i| input[i / WARP * WARP + source(i / THREADS, i % WARP) % WARP]).collect()
}

pub fn shuffle_xor(input: &[u32]) -> Vec<u32> {
    shuffled(input, |round, lane| lane ^ round)
}

pub fn shuffle_from(input: &[u32]) -> Vec<u32> {
    shuffled(input, |round, lane| 5 * lane + round)
}

pub fn warp_ballot(input: &[u32]) -> Vec<u32> {
    let vote = |i: usize| {
        let lanes = input[i / WARP * WARP..][..WARP].iter().enumerate();
        lanes.fold(0, |bits, (lane, word)| bits | (word >> (i / THREADS) & 1) << lane)
    };
    (0..WORDS).map(vote).collect()
}

pub fn reversed(input: &[u32], round: usize) -> Vec<u32> {
    input.chunks(round).flat_map(|words| words.iter().rev().copied()).collect()
}

/// Of each round: the 64-bit sum of the words with the same last five bits, its lower half in even places and its upper half in odd ones.
pub fn additions(input: &[u32]) -> Vec<u32> {
    let round = |words: &[u32]| {
        let mut sums = [0u64; WARP];
        words.iter().for_each(|&word| sums[word as usize % WARP] += u64::from(word));
        let halves = words.iter().enumerate().map(|(i, &word)| (sums[word as usize % WARP] >> (32 * (i % 2))) as u32);
        halves.collect::<Vec<_>>()
    };
    input.chunks(THREADS).flat_map(round).collect()
}

/// Chunks of four words, reversed within rounds of a chunk a thread; every fifth is zero.
pub fn copies(input: &[u32]) -> Vec<u32> {
    let chunk = |i: usize| {
        let from = i / THREADS * THREADS + THREADS - 1 - i % THREADS;
        let words = [0, 1, 2, 3].map(|word| input[4 * from + word]);
        if from.is_multiple_of(5) { [0; 4] } else { words }
    };
    (0..WORDS / 4).flat_map(chunk).collect()
}

/// Each round of 128 words is 32 rows of eight bf16; matrix m is made of the rows that lanes 8m to 8m + 7 point at.
fn matrices(input: &[u32], element: fn(usize, usize) -> (usize, usize)) -> Vec<u32> {
    let round = |words: &[u32]| -> Vec<u32> {
        let bf16_at = |matrix: usize, (row, column): (usize, usize)| {
            let pointed_at = (5 * (8 * matrix + row) + 3) % WARP;
            words[4 * pointed_at + column / 2] >> (16 * (column % 2)) & 0xffff
        };
        let register = |i: usize| {
            let (lane, matrix) = (i / 4, i % 4);
            bf16_at(matrix, element(lane, 0)) | bf16_at(matrix, element(lane, 1)) << 16
        };
        (0..4 * WARP).map(register).collect()
    };
    input.chunks(4 * WARP).flat_map(round).collect()
}

pub fn ldmatrix_x4(input: &[u32]) -> Vec<u32> {
    matrices(input, |lane, half| (lane / 4, lane % 4 * 2 + half))
}

pub fn ldmatrix_x4_transposed(input: &[u32]) -> Vec<u32> {
    matrices(input, |lane, half| (lane % 4 * 2 + half, lane / 4))
}

/// d + a · b a round, with the sum of magnitudes; `number` makes an element of a word.
fn products(input: &[u32], number: fn(u32) -> f64) -> Vec<(f64, f64)> {
    let element = |i: usize| {
        let (first, row, column) = (i / 128 * 128, i % 128 / 8, i % 8);
        let at = |ahead: usize| number(input[(first + ahead) % WORDS]);
        let terms = (0..16).map(|k| at(16 * row + k) * at(256 + 8 * k + column)).chain([at(384 + 8 * row + column)]);
        terms.fold((0.0, 0.0), |(sum, magnitudes), term| (sum + term, magnitudes + term.abs()))
    };
    (0..WORDS).map(element).collect()
}

/// Small integers: exact in any order, so only the places of elements matter.
pub fn mma_integers(input: &[u32]) -> Vec<f32> {
    products(input, |word| f64::from(word % 16) - 8.0).into_iter().map(|(sum, _)| sum as f32).collect()
}

/// Values whose sums must be rounded: within 2⁻²⁰ of the sum of magnitudes.
pub fn mma_fractions(input: &[u32]) -> Vec<Near> {
    let number = |word: u32| (f64::from(word % 256) - 128.0) / 128.0 * f64::from(1 << ((word >> 8) % 8));
    let near = |(value, magnitudes): (f64, f64)| Near { value, error: magnitudes * 0.5f64.powi(20) };
    products(input, number).into_iter().map(near).collect()
}

/// Sums over blocks: word i of a block is added to word i of the one before.
pub fn sums_over_blocks(input: &[u32]) -> Vec<u32> {
    let mut sums = input.to_vec();
    for i in THREADS..WORDS {
        sums[i] = sums[i].wrapping_add(sums[i - THREADS]);
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_out_of_tolerance_is_named() {
        let reference = Reference::Near(|_| vec![Near { value: 1.0, error: 1e-3 }, Near { value: f64::NAN, error: 0.0 }]);
        let mismatch = |values: [f32; 2]| reference.mismatch(&[], &values.map(f32::to_bits)).map(|(at, _)| at);
        assert_eq!(mismatch([1.0005, f32::NAN]), None);
        assert_eq!(mismatch([1.01, f32::NAN]), Some(0));
        assert_eq!(mismatch([f32::NAN, f32::NAN]), Some(0));
        assert_eq!(mismatch([1.0, 2.0]), Some(1));
    }

    #[test]
    fn sums_of_fractions_must_be_rounded_and_those_of_integers_need_not() {
        let input: Vec<u32> = (0..WORDS as u32).map(|i| i.wrapping_mul(0x9e37_79b9) >> 3).collect();
        assert!(mma_integers(&input).iter().any(|&sum| sum != 0.0));
        assert!(mma_fractions(&input).iter().any(|near| f64::from(near.value as f32) != near.value));
    }
}
