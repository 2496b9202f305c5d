//! The two numbers that every other is a share of: how fast this GPU copies, and how fast it multiplies.

use super::report::{Measurement, Speed};
use super::timing::time as time_launches;
use crate::device::Launcher;
use crate::device::driver::Driver;
use crate::error::{Error, Result};
use crate::ops::cuda::gemm::CublasLt;
use crate::ops::{Cost, Gemm};
use crate::tensor::{DType, Tensor, format_bytes};
use crate::testing::gemm;
use crate::testing::random::Random;
use half::bf16;

const COPY_BYTES: usize = 1 << 30;
const PRODUCT: usize = 8192;
/// A prime, so that no two rows of a matrix are equal.
const DRAWN: usize = 1_000_003;

/// Copy and product.
pub fn time(driver: &Driver) -> Result<Vec<Measurement>> {
    Ok(vec![copy(driver, COPY_BYTES)?, product(driver, PRODUCT)?])
}

/// GB/s of a copy on the device, counting bytes read and bytes written.
pub fn copy_ceiling(driver: &Driver) -> Result<f64> {
    let speed = copy(driver, COPY_BYTES)?.speed;
    speed.map(|speed| speed.gigabytes_per_s).ok_or_else(|| Error::internal("the copy was not timed"))
}

/// Copies `bytes` back and forth between two buffers that no cache holds.
pub fn copy(driver: &Driver, bytes: usize) -> Result<Measurement> {
    let mut random = Random::new(1);
    let words: Vec<u64> = (0..bytes / 8).map(|_| random.bits()).collect();
    let mut tensors = [device_bytes(driver, bytes)?, device_bytes(driver, bytes)?];
    driver.upload(bytemuck::cast_slice(&words), tensors[0].view_mut())?;
    let mut swap = |i: usize| {
        let [a, b] = &mut tensors;
        if i.is_multiple_of(2) { driver.copy(a.view(), b.view_mut()) } else { driver.copy(b.view(), a.view_mut()) }
    };
    swap(0)?;
    let timing = time_launches(driver, &mut swap)?;
    let mut copied = vec![0u64; words.len()];
    driver.download(tensors[1].view(), bytemuck::cast_slice_mut(&mut copied))?;
    if copied != words {
        return Err(Error::internal("a copy on the device changed the data"));
    }
    let speed = Speed::new(timing, Cost { flops: 0.0, bytes: 2.0 * bytes as f64 }, None);
    Ok(Measurement {
        bench: "ceilings",
        version: "copy",
        idea: "device to device, bytes read and written",
        shape: format_bytes(bytes),
        speed: Some(speed),
    })
}

/// Multiplies two [n, n] matrices of random normal bf16, after the case table of products has passed.
pub fn product(driver: &Driver, n: usize) -> Result<Measurement> {
    let cublaslt = CublasLt::new(driver)?;
    for case in &gemm::CASES {
        gemm::check(driver, &cublaslt, case)?;
    }
    let mut random = Random::new(2);
    let [x, weight] = [random_bf16(driver, &mut random, [n, n])?, random_bf16(driver, &mut random, [n, n])?];
    let mut y = Tensor::alone(driver.allocator(), DType::Bf16, &[n, n])?;
    let cost = Gemm::linear(x.view(), weight.view(), None, y.view_mut()).cost();
    let timing = time_launches(driver, |_| cublaslt.gemm(driver, Gemm::linear(x.view(), weight.view(), None, y.view_mut())))?;
    Ok(Measurement {
        bench: "ceilings",
        version: "product",
        idea: "cuBLASLt, bf16, f32 accumulation, random normal data",
        shape: format!("{n} x {n} x {n}"),
        speed: Some(Speed::new(timing, cost, None)),
    })
}

fn device_bytes(driver: &Driver, bytes: usize) -> Result<Tensor> {
    Tensor::alone(driver.allocator(), DType::U8, &[bytes])
}

/// A device tensor of normal values, which repeat after [`DRAWN`]: drawing them all would take longer than timing.
pub(super) fn random_bf16(driver: &Driver, random: &mut Random, shape: [usize; 2]) -> Result<Tensor> {
    let elements = shape[0] * shape[1];
    let drawn: Vec<bf16> = (0..elements.min(DRAWN)).map(|_| bf16::from_f64(random.normal())).collect();
    let values: Vec<bf16> = drawn.iter().copied().cycle().take(elements).collect();
    let mut tensor = Tensor::alone(driver.allocator(), DType::Bf16, &shape)?;
    driver.upload(bytemuck::cast_slice(&values), tensor.view_mut())?;
    Ok(tensor)
}
