//! The ladder of fused residual + RMSNorm at Qwen2.5 widths.

use super::ceilings::{copy_ceiling, random_bf16};
use super::report::{Measurement, Speed};
use super::timing::{Timing, rotation, time as time_launches};
use crate::device::Launcher;
use crate::device::driver::Driver;
use crate::error::Result;
use crate::ops::cuda::ladder::Version;
use crate::ops::cuda::rms_norm::{self as kernels, BACKWARD, FORWARD};
use crate::ops::{Cost, Residual, RmsNorm, RmsNormBackward};
use crate::tensor::{DType, Tensor};
use crate::testing::buffer::Behind;
use crate::testing::random::Random;
use crate::testing::rms_norm::{self as cases, Case};

/// Tokens of a micro-batch.
const TOKENS: usize = 16384;
/// Hidden sizes of Qwen2.5 0.5B, 7B and 32B.
const WIDTHS: [usize; 3] = [896, 3584, 5120];
/// Elements at which a version is verified before it is timed: seconds of the host's time for the whole ladder.
const VERIFIED_ELEMENTS: usize = 4 << 20;
/// Rows on launchers that are not timed.
const EMULATED_ROWS: usize = 5;
const EPS: f32 = 1e-6;

/// Verifies every version at every width, then times it at [`TOKENS`] rows.
pub fn time(driver: &Driver) -> Result<Vec<Measurement>> {
    let copy = copy_ceiling(driver)?;
    let mut results = Vec::new();
    for width in WIDTHS {
        let verified = case((VERIFIED_ELEMENTS / width) | 1, width);
        let line = |version: &'static Version, (timing, cost)| Measurement {
            bench: "rmsnorm",
            version: version.name,
            idea: version.idea,
            shape: format!("T {TOKENS}, D {width}"),
            speed: Some(Speed::new(timing, cost, Some(copy))),
        };
        let mut forward = ForwardSets::new(driver, TOKENS, width)?;
        for version in &FORWARD {
            cases::forward(driver, version, &verified, Behind::Canaries)?;
            results.push(line(version, forward.time(driver, version)?));
        }
        drop(forward);
        let mut backward = BackwardSets::new(driver, TOKENS, width)?;
        for version in &BACKWARD {
            cases::backward(driver, version, &verified, Behind::Canaries)?;
            results.push(line(version, backward.time(driver, version)?));
        }
    }
    Ok(results)
}

/// Verifies every version at every width on a launcher that is not worth timing.
pub fn verify(launcher: &dyn Launcher) -> Result<Vec<Measurement>> {
    let mut results = Vec::new();
    for width in WIDTHS {
        let line = |version: &'static Version| Measurement {
            bench: "rmsnorm",
            version: version.name,
            idea: version.idea,
            shape: format!("T {EMULATED_ROWS}, D {width}"),
            speed: None,
        };
        for version in &FORWARD {
            cases::forward(launcher, version, &case(EMULATED_ROWS, width), Behind::Canaries)?;
            results.push(line(version));
        }
        for version in &BACKWARD {
            cases::backward(launcher, version, &case(EMULATED_ROWS, width), Behind::Canaries)?;
            results.push(line(version));
        }
    }
    Ok(results)
}

fn case(rows: usize, width: usize) -> Case {
    Case { name: "bench", rows, width, mean: 0.0, scale: 1.0, eps: EPS, add: true }
}

/// Operands of the forward pass, several times over.
struct ForwardSets {
    /// [D]
    weight: Tensor,
    sets: Vec<ForwardSet>,
}

struct ForwardSet {
    /// [T, D]
    x: Tensor,
    delta: Tensor,
    sum: Tensor,
    y: Tensor,
    /// [T]
    rstd: Tensor,
}

impl ForwardSets {
    fn new(driver: &Driver, t: usize, d: usize) -> Result<Self> {
        let mut random = Random::new(4);
        let weight = random_bf16(driver, &mut random, [1, d])?;
        let reserve = |dtype, shape: &[usize]| Tensor::alone(driver.allocator(), dtype, shape);
        let first = [random_bf16(driver, &mut random, [t, d])?, random_bf16(driver, &mut random, [t, d])?];
        let set = |_| {
            let [x, delta] = [copied(driver, &first[0])?, copied(driver, &first[1])?];
            let [sum, y] = [reserve(DType::Bf16, &[t, d])?, reserve(DType::Bf16, &[t, d])?];
            Ok(ForwardSet { x, delta, sum, y, rstd: reserve(DType::F32, &[t])? })
        };
        let sets = (0..rotation(4 * t * d * DType::Bf16.size())).map(set).collect::<Result<_>>()?;
        Ok(ForwardSets { weight, sets })
    }

    fn op(&mut self, set: usize) -> RmsNorm<'_> {
        let count = self.sets.len();
        let ForwardSet { x, delta, sum, y, rstd } = &mut self.sets[set % count];
        let width = x.shape().row_elements();
        RmsNorm {
            x: x.view(),
            residual: Some(Residual { delta: delta.view(), sum: sum.view_mut() }),
            weight: self.weight.view().reshape(&[width]),
            eps: EPS,
            y: y.view_mut(),
            rstd: rstd.view_mut(),
        }
    }

    fn time(&mut self, driver: &Driver, version: &Version) -> Result<(Timing, Cost)> {
        let cost = self.op(0).cost();
        Ok((time_launches(driver, |i| kernels::rms_norm(driver, version, self.op(i)))?, cost))
    }
}

/// Operands of the backward pass, several times over.
struct BackwardSets {
    /// [D]
    weight: Tensor,
    /// [D] and [PARTIALS, D] f32, which every layer of a model shares
    dweight: Tensor,
    partials: Tensor,
    sets: Vec<BackwardSet>,
}

struct BackwardSet {
    /// [T, D]
    dy: Tensor,
    sum: Tensor,
    dsum: Tensor,
    /// [T]
    rstd: Tensor,
}

impl BackwardSets {
    fn new(driver: &Driver, t: usize, d: usize) -> Result<Self> {
        let mut random = Random::new(5);
        let weight = random_bf16(driver, &mut random, [1, d])?;
        let reserve = |dtype, shape: &[usize]| Tensor::alone(driver.allocator(), dtype, shape);
        let [dweight, partials] = [reserve(DType::F32, &[d])?, reserve(DType::F32, &[RmsNormBackward::PARTIALS, d])?];
        let first = [random_bf16(driver, &mut random, [t, d])?, random_bf16(driver, &mut random, [t, d])?];
        // Rows of normal values have a root mean square of one.
        let mut rstd = reserve(DType::F32, &[t])?;
        driver.upload(bytemuck::cast_slice(&vec![1f32; t]), rstd.view_mut())?;
        let set = |_| {
            let [dy, sum] = [copied(driver, &first[0])?, copied(driver, &first[1])?];
            Ok(BackwardSet { dy, sum, dsum: reserve(DType::Bf16, &[t, d])?, rstd: copied(driver, &rstd)? })
        };
        let sets = (0..rotation(3 * t * d * DType::Bf16.size())).map(set).collect::<Result<_>>()?;
        Ok(BackwardSets { weight, dweight, partials, sets })
    }

    /// The gradient is added to what arrives from above, as in a residual stream.
    fn op(&mut self, set: usize) -> RmsNormBackward<'_> {
        let count = self.sets.len();
        let BackwardSet { dy, sum, dsum, rstd } = &mut self.sets[set % count];
        let width = dy.shape().row_elements();
        RmsNormBackward {
            dy: dy.view(),
            sum: sum.view(),
            weight: self.weight.view().reshape(&[width]),
            rstd: rstd.view(),
            dsum: dsum.view_mut(),
            accumulate: true,
            dweight: self.dweight.view_mut(),
            partials: self.partials.view_mut(),
        }
    }

    fn time(&mut self, driver: &Driver, version: &Version) -> Result<(Timing, Cost)> {
        let cost = self.op(0).cost();
        Ok((time_launches(driver, |i| kernels::rms_norm_backward(driver, version, self.op(i)))?, cost))
    }
}

/// A device copy of a device tensor.
fn copied(driver: &Driver, x: &Tensor) -> Result<Tensor> {
    let mut copy = Tensor::alone(driver.allocator(), x.dtype(), x.shape())?;
    driver.copy(x.view(), copy.view_mut())?;
    Ok(copy)
}
