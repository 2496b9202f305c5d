//! One kernel on this CPU, small enough to step through: RMSNorm of one row, version 2, in which the lanes of a warp add their
//! squares by shuffles. docs/emulator.md shows a session with gdb; kernels are compiled for it with LIMO_KERNEL_DEBUG=1.
//!
//!     LIMO_KERNEL_DEBUG=1 cargo build --example 02_step_a_kernel
//!     gdb target/debug/examples/02_step_a_kernel
//!     cargo run --example 02_step_a_kernel -- 7        # another order of warps and lanes

use limo_engine::device::Launcher;
use limo_engine::device::emulator::Emulator;
use limo_engine::error::{Error, Result};
use limo_engine::ops::RmsNorm;
use limo_engine::ops::cuda::rms_norm::{FORWARD, rms_norm};
use limo_engine::tensor::{Arena, DType, Tensor};

const D: usize = 64; // elements of the row: threads 0 to 63 have one each, the other 192 of the block have none

fn main() -> Result<()> {
    let seed = match std::env::args().nth(1) {
        None => 0,
        Some(text) => text.parse().map_err(|_| Error::usage(format!("{text} is no seed")).help("give a whole number"))?,
    };
    let emulator = Emulator::plain(seed)?;
    let mut arena = Arena::reserve(emulator.allocator(), 8 << 10)?;

    // x[i] = i + 1, so the square of thread i is (i + 1)² and easy to recognise; the weight is 1.
    let mut x = arena.tensor("x", DType::Bf16, &[1, D])?;
    let mut weight = arena.tensor("weight", DType::Bf16, &[D])?;
    let mut y = arena.tensor("y", DType::Bf16, &[1, D])?;
    let mut rstd = arena.tensor("rstd", DType::F32, &[1])?;
    let count: Vec<f32> = (1..=D).map(|i| i as f32).collect();
    emulator.upload(Tensor::from_f32_as_bf16(&count, &[1, D]).view().raw_bytes(), x.view_mut())?;
    emulator.upload(Tensor::from_f32_as_bf16(&[1.0; D], &[D]).view().raw_bytes(), weight.view_mut())?;

    let version = &FORWARD[1];
    println!("{}: {}; on the {}", version.kernel, version.idea, emulator.device());
    let op = RmsNorm { x: x.view(), residual: None, weight: weight.view(), eps: 0.0, y: y.view_mut(), rstd: rstd.view_mut() };
    rms_norm(&emulator, version, op)?; // break in kernels/rms_norm/forward_2_shuffle.cu
    emulator.synchronize()?;

    let squares: f32 = count.iter().map(|x| x * x).sum();
    let (found, expected) = (rstd.view().f32()[0], (D as f32 / squares).sqrt());
    println!("1/rms = {found}, expected {expected}; y[..4] = {:?}", &y.view().bf16()[..4]);
    assert!((found - expected).abs() <= 1e-6 * expected);
    Ok(())
}
