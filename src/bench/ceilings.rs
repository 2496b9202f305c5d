//! The two numbers that every other is a share of: how fast this GPU copies, and how fast it multiplies.

use super::Tell;
use super::problem::{normal, tensors, zeros};
use super::report::{Measurement, Speed};
use super::timing::time;
use crate::device::Launcher;
use crate::device::driver::Driver;
use crate::error::{Error, Result};
use crate::ops::cuda::gemm::CublasLt;
use crate::ops::{Cost, Gemm};
use crate::tensor::{DType, Tensor, format_bytes};
use crate::testing::gemm;
use crate::testing::random::Random;

const COPY_BYTES: usize = 1 << 30;
const PRODUCT: usize = 8192;

/// What this GPU can do.
#[derive(Debug, Clone, Copy)]
pub struct Ceilings {
    /// GB/s of a copy on the device, counting bytes read and bytes written.
    pub copy: f64,
    /// TFLOP/s of a product, where it was measured.
    pub product: Option<f64>,
}

impl Ceilings {
    /// Measures the copy, and the product if a cuBLASLt is given.
    pub fn measure(driver: &Driver, cublaslt: Option<&CublasLt>, tell: Tell) -> Result<Self> {
        let mut measured = |line: Result<Measurement>| -> Result<Speed> {
            let line = line?;
            let speed = line.speed.ok_or_else(|| Error::internal("a ceiling was not timed"))?;
            tell(line).map(|()| speed)
        };
        let copy = measured(copy(driver, COPY_BYTES))?.gigabytes_per_s;
        let product = cublaslt.map(|cublaslt| measured(product(driver, cublaslt, PRODUCT))).transpose()?;
        Ok(Ceilings { copy, product: product.map(|speed| speed.teraflops_per_s) })
    }
}

/// Copies `bytes` back and forth between two buffers that no cache holds.
pub fn copy(driver: &Driver, bytes: usize) -> Result<Measurement> {
    let mut random = Random::new(1);
    let words: Vec<u64> = (0..bytes / 8).map(|_| random.bits()).collect();
    let reserve = || Tensor::alone(driver.allocator(), DType::U8, &[bytes]);
    let mut tensors = [reserve()?, reserve()?];
    driver.upload(bytemuck::cast_slice(&words), tensors[0].view_mut())?;
    let mut swap = |i: usize| {
        let [a, b] = &mut tensors;
        if i.is_multiple_of(2) { driver.copy(a.view(), b.view_mut()) } else { driver.copy(b.view(), a.view_mut()) }
    };
    swap(0)?;
    let timing = time(driver, &mut swap)?;
    let mut copied = vec![0u64; words.len()];
    driver.download(tensors[1].view(), bytemuck::cast_slice_mut(&mut copied))?;
    if copied != words {
        return Err(Error::internal("a copy on the device changed the data"));
    }
    let cost = Cost { flops: 0.0, bytes: 2.0 * bytes as f64 };
    Ok(line("copy", "device to device, bytes read and written", format_bytes(bytes), Speed::new(timing, cost)))
}

/// Multiplies two [n, n] matrices of random normal bf16, after the case table of products has passed.
pub fn product(driver: &Driver, cublaslt: &CublasLt, n: usize) -> Result<Measurement> {
    for case in &gemm::CASES {
        gemm::check(driver, cublaslt, case)?;
    }
    let matrix = || normal(DType::Bf16, &[n, n]);
    let [x, weight, mut y] = tensors(driver, &[matrix(), matrix(), zeros(DType::Bf16, &[n, n])])?;
    let cost = Gemm::linear(x.view(), weight.view(), None, y.view_mut()).cost();
    let timing = time(driver, |_| cublaslt.gemm(driver, Gemm::linear(x.view(), weight.view(), None, y.view_mut())))?;
    let idea = "cuBLASLt, bf16, f32 accumulation, random normal data";
    Ok(line("product", idea, format!("{n} x {n} x {n}"), Speed::new(timing, cost)))
}

fn line(version: &str, idea: &'static str, shape: String, speed: Speed) -> Measurement {
    Measurement { bench: "ceilings", model: "-", version: version.to_string(), idea, ships: false, shape, speed: Some(speed) }
}
