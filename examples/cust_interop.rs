//! Our kernel, our memory, somebody else's launch: RMSNorm from this library's fatbin through the `cust` crate, next to our own
//! launcher, in the one primary context of the GPU. Needs a GPU, and at build time the driver's library to link (see docs/gpu-queue.md).
//!
//!     cargo run --release --features cust --example cust_interop

use cust::context::Context;
use cust::device::Device;
use cust::module::Module;
use cust::stream::{Stream, StreamFlags};
use limo_engine::device::Launcher;
use limo_engine::device::driver::Driver;
use limo_engine::device::images::{image_of, images};
use limo_engine::ops::RmsNorm;
use limo_engine::ops::cuda::params::{Ptr, RmsNormForwardParams};
use limo_engine::ops::cuda::rms_norm::{FORWARD, rms_norm};
use limo_engine::tensor::{DType, Tensor};
use std::error::Error;
use std::ffi::c_void;

const T: usize = 5; // tokens
const D: usize = 896; // width of the residual stream
const EPS: f32 = 1e-6;
/// Version 2 of the ladder: a block a row, a shared f32 a warp.
const KERNEL: &str = "rms_norm_forward_2";
const THREADS: u32 = 256;

fn main() -> Result<(), Box<dyn Error>> {
    // Our launcher retains the primary context of GPU 0; cust retains the same one.
    let driver = Driver::open(0, images()?)?;
    cust::init(cust::CudaFlags::empty())?;
    let _context = Context::new(Device::get_device(0)?)?;

    let tensor = |dtype, shape: &[usize]| Tensor::alone(driver.allocator(), dtype, shape);
    let wave: Vec<f32> = (0..T * D).map(|i| 0.3 + (i as f32 * 0.37).sin()).collect();
    let (mut x, mut weight) = (tensor(DType::Bf16, &[T, D])?, tensor(DType::Bf16, &[D])?);
    driver.upload(Tensor::from_f32_as_bf16(&wave, &[T, D]).view().raw_bytes(), x.view_mut())?;
    driver.upload(Tensor::from_f32_as_bf16(&wave[..D], &[D]).view().raw_bytes(), weight.view_mut())?;

    // Our way: an op, and a version of its ladder.
    let (mut y, mut rstd) = (tensor(DType::Bf16, &[T, D])?, tensor(DType::F32, &[T])?);
    let op = RmsNorm { x: x.view(), residual: None, weight: weight.view(), eps: EPS, y: y.view_mut(), rstd: rstd.view_mut() };
    rms_norm(&driver, &FORWARD[1], op)?;
    let mut ours = vec![0u8; y.bytes()];
    driver.download(y.view(), &mut ours)?;

    // cust's way: a module, a function, a stream, and the kernel's one parameter.
    driver.fill_bytes(0xff, y.view_mut())?;
    driver.synchronize()?;
    let mut params = RmsNormForwardParams {
        x: Ptr::new(x.view().address()),
        delta: Ptr::NULL,
        weight: Ptr::new(weight.view().address()),
        sum: Ptr::NULL,
        y: Ptr::new(y.view().address()),
        rstd: Ptr::new(rstd.view().address()),
        rows: T as u64,
        width: D as u32,
        eps: EPS,
    };
    let module = Module::from_fatbin(image_of(KERNEL)?.fatbin, &[])?;
    let stream = Stream::new(StreamFlags::NON_BLOCKING, None)?;
    let arguments = [(&raw mut params).cast::<c_void>()];
    // SAFETY: the kernel's own parameter block, over tensors of the shapes it walks, which outlive the stream's work.
    unsafe { stream.launch(&module.get_function(KERNEL)?, T as u32, THREADS, THREADS / 32 * 4, &arguments)? };
    stream.synchronize()?;
    let mut theirs = vec![0u8; y.bytes()];
    driver.download(y.view(), &mut theirs)?;

    println!("{KERNEL} through cust: {}", if ours == theirs { "the same bits" } else { "OTHER BITS" });
    if ours == theirs { Ok(()) } else { Err("cust computed something else".into()) }
}
