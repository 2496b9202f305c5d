//! Conformance of the wrappers of `kernels/common/ptx.cuh`: a micro-kernel for each, whose raw output must be that of a reference written
//! here, on the emulator and on every GPU. Outputs of GPUs are recorded under `tests/fixtures/conformance/`; a wrapper
//! without a record is unproven.

use super::random::Random;
use crate::device::{Launch, Launcher};
use crate::error::{Error, Result};
use crate::ops::cuda::params::{ConformanceParams, Ptr};
use crate::tensor::{DType, Tensor};
use half::bf16;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Threads of the one block: four warps, two named groups.
const THREADS: usize = 128;
const WARP: usize = 32;
/// A round of words for each of the 32 masks of a shuffle.
const WORDS: usize = 32 * THREADS;

/// A wrapper, its micro-kernel and what that must write.
pub struct Wrapper {
    pub name: &'static str,
    kernel: &'static str,
    /// Output words, for the input words.
    reference: fn(&[u32]) -> Vec<u32>,
}

pub const WRAPPERS: [Wrapper; 12] = [
    Wrapper { name: "pack_bf16x2", kernel: "conformance_pack_bf16x2", reference: pack_bf16x2 },
    Wrapper { name: "unpack_bf16", kernel: "conformance_unpack_bf16", reference: |input| map(input, |w| w & 0xffff_0000) },
    Wrapper { name: "multiply_add", kernel: "conformance_multiply_add", reference: multiply_add },
    Wrapper { name: "reciprocal_sqrt", kernel: "conformance_reciprocal_sqrt", reference: reciprocal_sqrt },
    Wrapper { name: "ld128", kernel: "conformance_ld128", reference: <[u32]>::to_vec },
    Wrapper { name: "ld128_stream", kernel: "conformance_ld128_stream", reference: <[u32]>::to_vec },
    Wrapper { name: "st128", kernel: "conformance_st128", reference: <[u32]>::to_vec },
    Wrapper { name: "shared_base", kernel: "conformance_shared_base", reference: shared_base },
    Wrapper { name: "shuffle_xor", kernel: "conformance_shuffle_xor", reference: shuffle_xor },
    Wrapper { name: "block_barrier", kernel: "conformance_block_barrier", reference: |input| reversed(input, THREADS) },
    Wrapper { name: "named_barrier", kernel: "conformance_named_barrier", reference: |input| reversed(input, THREADS / 2) },
    Wrapper { name: "warp_barrier", kernel: "conformance_warp_barrier", reference: |input| reversed(input, WARP) },
];

/// What one GPU wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub gpu: String,
    pub driver: String,
    /// By wrapper: its words, eight hexadecimal digits each.
    pub outputs: BTreeMap<String, String>,
}

include!(concat!(env!("OUT_DIR"), "/conformance_records.rs"));

/// The records inside this binary.
pub fn records() -> Result<Vec<Record>> {
    let parse =
        |&(path, text): &(&str, &str)| serde_json::from_str(text).map_err(|error| Error::internal(format!("{path}: {error}")));
    RECORDS.iter().map(parse).collect()
}

/// The wrappers that no record covers.
pub fn unproven(records: &[Record]) -> Vec<&'static str> {
    let covered = |name: &str| records.iter().any(|record| record.outputs.contains_key(name));
    WRAPPERS.iter().map(|wrapper| wrapper.name).filter(|name| !covered(name)).collect()
}

/// Runs every micro-kernel, checked against its reference, and records what it wrote.
pub fn record(launcher: &dyn Launcher, gpu: &str, driver: &str) -> Result<Record> {
    let output = |wrapper: &Wrapper| Ok((wrapper.name.to_string(), hexadecimal(&check(launcher, wrapper)?)));
    let outputs = WRAPPERS.iter().map(output).collect::<Result<_>>()?;
    Ok(Record { gpu: gpu.to_string(), driver: driver.to_string(), outputs })
}

/// Runs a wrapper's micro-kernel and compares every word with the reference; returns the words.
pub fn check(launcher: &dyn Launcher, wrapper: &Wrapper) -> Result<Vec<u32>> {
    let input = input();
    let output = run(launcher, wrapper, &input)?;
    let expected: Vec<u32> = (wrapper.reference)(&input);
    match (0..WORDS).find(|&i| output[i] != expected[i]) {
        None => Ok(output),
        Some(i) => Err(Error::internal(format!(
            "{}: word {i} is {:#010x} for {:#010x}, expected {:#010x}",
            wrapper.name, output[i], input[i], expected[i]
        ))),
    }
}

/// Compares what a launcher computes with a record of a GPU, for every wrapper in it.
pub fn check_record(launcher: &dyn Launcher, record: &Record) -> Result<()> {
    for wrapper in &WRAPPERS {
        let Some(recorded) = record.outputs.get(wrapper.name) else { continue };
        if hexadecimal(&check(launcher, wrapper)?) != *recorded {
            return Err(Error::internal(format!("{}: {} wrote other words", wrapper.name, record.gpu)));
        }
    }
    Ok(())
}

fn run(launcher: &dyn Launcher, wrapper: &Wrapper, words: &[u32]) -> Result<Vec<u32>> {
    let mut input = Tensor::alone(launcher.allocator(), DType::I32, &[WORDS])?;
    let mut output = Tensor::alone(launcher.allocator(), DType::I32, &[WORDS])?;
    launcher.upload(bytemuck::cast_slice(words), input.view_mut())?;
    launcher.fill_bytes(0xff, output.view_mut())?;
    let params = ConformanceParams {
        input: Ptr::new(input.view().address()),
        output: Ptr::new(output.view().address()),
        words: WORDS as u64,
    };
    let launch = Launch { grid: [1, 1, 1], block: [THREADS as u32, 1, 1], shared_bytes: 4 * THREADS as u32 + 16 };
    // SAFETY: the kernel's own parameter block over two buffers of `words` words.
    unsafe { launcher.launch(wrapper.kernel, launch, bytemuck::bytes_of(&params))? };
    launcher.synchronize()?;
    let mut result = vec![0u32; WORDS];
    launcher.download(output.view(), bytemuck::cast_slice_mut(&mut result))?;
    Ok(result.into_iter().map(|word| canonical(wrapper, word)).collect())
}

/// Which NaN an f32 instruction returns is the processor's choice; all are one here.
fn canonical(wrapper: &Wrapper, word: u32) -> u32 {
    let computes = ["multiply_add", "reciprocal_sqrt"].contains(&wrapper.name);
    if computes && f32::from_bits(word).is_nan() { f32::NAN.to_bits() } else { word }
}

/// Values at which conversions and roundings can go wrong, then random bits.
fn input() -> Vec<u32> {
    let mut words = Vec::new();
    for sign in [0u32, 0x8000_0000] {
        // Zero, subnormals, one, the largest numbers, infinity, NaNs.
        let special =
            [0, 1, 0x7fff, 0x8000, 0x007f_ffff, 0x0080_0000, 0x3f80_0000, 0x7f7f_ffff, 0x7f80_0000, 0x7fc0_0000, 0x7f80_0001];
        words.extend(special.map(|bits| sign | bits));
        // Just below, at and just above the middle between an even or odd bf16 and the next one.
        for upper in [0x0000, 0x0001, 0x3f80, 0x3f81, 0x42ff, 0x7f7e, 0x7f7f] {
            words.extend([0x7fff, 0x8000, 0x8001].map(|lower| sign | upper << 16 | lower));
        }
    }
    let mut random = Random::new(0x11a0);
    while words.len() < WORDS {
        let bits = random.bits();
        // Every other value is of ordinary size, so that products and sums stay finite.
        let ordinary = ((bits >> 32) as f32 / (1u64 << 31) as f32 - 1.0).to_bits();
        words.push(if words.len() % 2 == 0 { ordinary } else { bits as u32 });
    }
    words
}

fn hexadecimal(words: &[u32]) -> String {
    words.iter().map(|word| format!("{word:08x}")).collect()
}

fn map(input: &[u32], f: impl Fn(u32) -> u32) -> Vec<u32> {
    input.iter().map(|&word| f(word)).collect()
}

fn canonical_bits(value: f32) -> u32 {
    if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }
}

fn pack_bf16x2(input: &[u32]) -> Vec<u32> {
    let convert = |word: u32| {
        let value = f32::from_bits(word);
        if value.is_nan() { 0x7fff } else { u32::from(bf16::from_f32(value).to_bits()) }
    };
    (0..WORDS).map(|i| convert(input[i]) | convert(input[(i + 1) % WORDS]) << 16).collect()
}

fn multiply_add(input: &[u32]) -> Vec<u32> {
    let at = |i: usize| f32::from_bits(input[i % WORDS]);
    (0..WORDS).map(|i| canonical_bits(at(i).mul_add(at(i + 1), at(i + 2)))).collect()
}

fn reciprocal_sqrt(input: &[u32]) -> Vec<u32> {
    map(input, |word| canonical_bits(1.0 / f32::from_bits(word).sqrt()))
}

/// The base is a multiple of 1024, and the second carve starts 16 bytes behind it.
fn shared_base(input: &[u32]) -> Vec<u32> {
    input.iter().enumerate().map(|(i, &word)| if i % 2 == 0 { 16 } else { word }).collect()
}

fn shuffle_xor(input: &[u32]) -> Vec<u32> {
    (0..WORDS).map(|i| input[i / WARP * WARP + ((i % WARP) ^ (i / THREADS % WARP))]).collect()
}

fn reversed(input: &[u32], round: usize) -> Vec<u32> {
    input.chunks(round).flat_map(|words| words.iter().rev().copied()).collect()
}
