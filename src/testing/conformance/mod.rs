//! Conformance of the wrappers of `kernels/common/ptx.cuh`: a micro-kernel for each, whose raw output must be that of a reference written
//! here, on the emulator and on every GPU. Outputs of GPUs are recorded under `tests/fixtures/conformance/`; a wrapper
//! without a record is unproven.

mod references;

use super::random::Random;
use crate::device::{Launch, Launcher};
use crate::error::{Error, Result};
use crate::ops::cuda::params::{ConformanceParams, Ptr};
use crate::tensor::{DType, Tensor};
use references::Reference::{self, Floats, Near, Words};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Threads of the one block: four warps, two named groups.
const THREADS: usize = 128;
const WARP: usize = 32;
/// A round of words for each of the 32 masks of a shuffle.
const WORDS: usize = 32 * THREADS;
/// Three buffers of 16 bytes a thread.
const SHARED_BYTES: u32 = 3 * 16 * THREADS as u32;

/// A wrapper, its micro-kernel and what that must write.
pub struct Wrapper {
    pub name: &'static str,
    blocks: u32,
    reference: Reference,
}

impl Wrapper {
    const fn new(name: &'static str, reference: Reference) -> Self {
        Wrapper { name, blocks: 1, reference }
    }

    /// Every thread of many blocks writes one word.
    const fn of_blocks(name: &'static str, reference: Reference) -> Self {
        Wrapper { name, blocks: (WORDS / THREADS) as u32, reference }
    }

    /// The name of its micro-kernel.
    pub fn kernel(&self) -> String {
        format!("conformance_{}", self.name)
    }
}

pub const WRAPPERS: [Wrapper; 32] = [
    Wrapper::new("pack_bf16x2", Words(references::pack_bf16x2)),
    Wrapper::new("unpack_bf16", Words(references::unpack_bf16)),
    Wrapper::new("multiply_add", Floats(references::multiply_add)),
    Wrapper::new("reciprocal_sqrt", Floats(references::reciprocal_sqrt)),
    Wrapper::new("multiply_high", Words(references::multiply_high)),
    Wrapper::new("square_root", Floats(references::square_root)),
    Wrapper::new("maximum", Floats(references::maximum)),
    Wrapper::new("exp2_approximate", Near(references::exp2_approximate)),
    Wrapper::new("log2_approximate", Near(references::log2_approximate)),
    Wrapper::new("reciprocal_approximate", Near(references::reciprocal_approximate)),
    Wrapper::new("forget", Words(<[u32]>::to_vec)),
    Wrapper::new("ld128", Words(<[u32]>::to_vec)),
    Wrapper::new("ld128_stream", Words(<[u32]>::to_vec)),
    Wrapper::new("st128", Words(<[u32]>::to_vec)),
    Wrapper::new("st128_global", Words(<[u32]>::to_vec)),
    Wrapper::new("st128_stream", Words(<[u32]>::to_vec)),
    Wrapper::new("shared_base", Words(references::shared_base)),
    Wrapper::new("shuffle_xor", Words(references::shuffle_xor)),
    Wrapper::new("shuffle_from", Words(references::shuffle_from)),
    Wrapper::new("warp_ballot", Words(references::warp_ballot)),
    Wrapper::new("block_barrier", Words(|input| references::reversed(input, THREADS))),
    Wrapper::new("named_barrier", Words(|input| references::reversed(input, THREADS / 2))),
    Wrapper::new("warp_barrier", Words(|input| references::reversed(input, WARP))),
    Wrapper::new("copy_async", Words(references::copies)),
    Wrapper::new("copy_async_wait", Words(references::copies)),
    Wrapper::new("ldmatrix_x4", Words(references::ldmatrix_x4)),
    Wrapper::new("ldmatrix_x4_transposed", Words(references::ldmatrix_x4_transposed)),
    Wrapper::new("mma_integers", Floats(references::mma_integers)),
    Wrapper::new("mma_fractions", Near(references::mma_fractions)),
    Wrapper::new("atomic_add_shared", Words(references::additions)),
    Wrapper::of_blocks("take_ticket", Words(<[u32]>::to_vec)),
    Wrapper::of_blocks("ordered_wait", Words(references::sums_over_blocks)),
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
    wrapper.judge(&input, &output).map(|()| output)
}

/// Holds a record of a GPU against the same references as a launcher, for every wrapper in it.
pub fn check_record(launcher: &dyn Launcher, record: &Record) -> Result<()> {
    let input = input();
    for wrapper in &WRAPPERS {
        let Some(recorded) = record.outputs.get(wrapper.name) else { continue };
        let words = words(recorded).ok_or_else(|| Error::internal(format!("{} is not {WORDS} words", wrapper.name)))?;
        wrapper.judge(&input, &words).map_err(|error| error.context(record.gpu.clone()))?;
        check(launcher, wrapper)?;
    }
    Ok(())
}

impl Wrapper {
    fn judge(&self, input: &[u32], output: &[u32]) -> Result<()> {
        match self.reference.mismatch(input, output) {
            None => Ok(()),
            Some((i, expected)) => {
                let (name, given, word) = (self.name, input[i], output[i]);
                Err(Error::internal(format!("{name}: word {i} is {word:#010x} for {given:#010x}, expected {expected}")))
            }
        }
    }
}

fn run(launcher: &dyn Launcher, wrapper: &Wrapper, words: &[u32]) -> Result<Vec<u32>> {
    let mut input = Tensor::alone(launcher.allocator(), DType::I32, &[WORDS])?;
    let mut output = Tensor::alone(launcher.allocator(), DType::I32, &[WORDS])?;
    let mut scratch = Tensor::alone(launcher.allocator(), DType::I32, &[2])?;
    launcher.upload(bytemuck::cast_slice(words), input.view_mut())?;
    launcher.fill_bytes(0xff, output.view_mut())?;
    launcher.fill_bytes(0, scratch.view_mut())?;
    let params = ConformanceParams {
        input: Ptr::new(input.view().address()),
        output: Ptr::new(output.view().address()),
        scratch: Ptr::new(scratch.view().address()),
        words: WORDS as u64,
    };
    let launch = Launch { grid: [wrapper.blocks, 1, 1], block: [THREADS as u32, 1, 1], shared_bytes: SHARED_BYTES };
    // SAFETY: the kernel's own parameter block over two buffers of `words` words and the scratch.
    unsafe { launcher.launch(&wrapper.kernel(), launch, bytemuck::bytes_of(&params))? };
    launcher.synchronize()?;
    let mut result = vec![0u32; WORDS];
    launcher.download(output.view(), bytemuck::cast_slice_mut(&mut result))?;
    Ok(result)
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

/// The words of a record; nothing if they are not as many as there should be.
fn words(hexadecimal: &str) -> Option<Vec<u32>> {
    let digits = hexadecimal.as_bytes().chunks(8).map(|digits| std::str::from_utf8(digits).ok());
    let words: Vec<u32> = digits.map(|digits| u32::from_str_radix(digits?, 16).ok()).collect::<Option<_>>()?;
    (words.len() == WORDS).then_some(words)
}
