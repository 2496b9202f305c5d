//! One op, three ways: residual addition and RMSNorm on the CPU backend, then every version of the CUDA kernel in the emulator.
//!
//!     cargo run --release --example 01_one_op

use limo_engine::device::Launcher;
use limo_engine::device::emulator::Emulator;
use limo_engine::error::Result;
use limo_engine::ops::cpu::Cpu;
use limo_engine::ops::cuda::rms_norm::{FORWARD, rms_norm};
use limo_engine::ops::{Ops, Residual, RmsNorm};
use limo_engine::tensor::{Arena, DType, Tensor};

const T: usize = 3; // tokens
const D: usize = 128; // width of the residual stream

/// Something asymmetric with a mean.
fn wave(n: usize, frequency: f32) -> Vec<f32> {
    (0..n).map(|i| 0.3 + (i as f32 * frequency).sin()).collect()
}

/// Cuts a bf16 tensor and fills it.
fn on_device(launcher: &dyn Launcher, arena: &mut Arena, values: &[f32], shape: &[usize]) -> Result<Tensor> {
    let mut tensor = arena.tensor("input", DType::Bf16, shape)?;
    launcher.upload(Tensor::from_f32_as_bf16(values, shape).view().raw_bytes(), tensor.view_mut())?;
    Ok(tensor)
}

fn main() -> Result<()> {
    let (x, delta, weight) = (wave(T * D, 0.37), wave(T * D, 1.71), wave(D, 0.05));

    // An op is a struct of operands. The CPU backend stores f32.
    let [x32, delta32] = [&x, &delta].map(|values| Tensor::from_f32(values, &[T, D]));
    let weight32 = Tensor::from_f32(&weight, &[D]);
    let [mut sum, mut y] = [(); 2].map(|()| Tensor::host(DType::F32, &[T, D]));
    let mut rstd = Tensor::host(DType::F32, &[T]);
    Cpu.rms_norm(RmsNorm {
        x: x32.view(),
        residual: Some(Residual { delta: delta32.view(), sum: sum.view_mut() }),
        weight: weight32.view(),
        eps: 1e-6,
        y: y.view_mut(),
        rstd: rstd.view_mut(),
    })?;
    let exact = y.view().f32();
    println!("CPU backend: y[0, ..4] = {:.4?}", &exact[..4]);

    // The same struct over bf16 tensors of a launcher: here the emulator, on a GPU device::driver::Driver.
    let emulator = Emulator::checked(1)?;
    for version in &FORWARD {
        let mut arena = Arena::reserve(emulator.allocator(), 16 << 10)?;
        let (x, delta) = (on_device(&emulator, &mut arena, &x, &[T, D])?, on_device(&emulator, &mut arena, &delta, &[T, D])?);
        let weight = on_device(&emulator, &mut arena, &weight, &[D])?;
        let mut sum = arena.tensor("sum", DType::Bf16, &[T, D])?;
        let mut y = arena.tensor("y", DType::Bf16, &[T, D])?;
        let mut rstd = arena.tensor("rstd", DType::F32, &[T])?;
        let op = RmsNorm {
            x: x.view(),
            residual: Some(Residual { delta: delta.view(), sum: sum.view_mut() }),
            weight: weight.view(),
            eps: 1e-6,
            y: y.view_mut(),
            rstd: rstd.view_mut(),
        };
        rms_norm(&emulator, version, op)?;
        emulator.synchronize()?;
        let worst = y.view().bf16().iter().zip(exact).map(|(y, e)| (y.to_f32() - e).abs()).fold(0.0f32, f32::max);
        println!("{:<10} {:<60} max |y − CPU| = {worst:.4}", version.name, version.idea);
    }
    Ok(())
}
