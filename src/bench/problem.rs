//! An op at one shape: its operands, several times over, and how each version of its ladder is issued on them.

use crate::device::Launcher;
use crate::error::Result;
use crate::ops::{Cost, Gemm};
use crate::tensor::{DType, Space, Tensor, ViewMut};
use crate::testing::random::Random;
use half::bf16;
use std::sync::LazyLock;

/// Operands of one problem span at least this many bytes, several times any last-level cache, so that no launch finds its
/// input there.
const ROTATION_BYTES: usize = 180 << 20;

/// What a problem runs on: launches of our kernels, and matrix products.
#[derive(Clone, Copy)]
pub struct Device<'a> {
    pub launcher: &'a dyn Launcher,
    pub gemm: &'a dyn Fn(Gemm) -> Result<()>,
}

type Issue<'a> = dyn FnMut(usize, usize) -> Result<()> + 'a;

/// One op at one shape.
pub struct Problem<'a> {
    /// "T 16384, D 896"
    pub shape: String,
    pub cost: Cost,
    issue: Box<Issue<'a>>,
}

impl<'a> Problem<'a> {
    /// `issue(version, i)` issues a version of the ladder on operand set i modulo the number of sets.
    pub fn new(shape: String, cost: Cost, issue: impl FnMut(usize, usize) -> Result<()> + 'a) -> Self {
        Problem { shape, cost, issue: Box::new(issue) }
    }

    pub fn issue(&mut self, version: usize, set: usize) -> Result<()> {
        (self.issue)(version, set)
    }
}

/// What an operand holds before the first launch.
#[derive(Clone)]
enum Data {
    Zeros,
    /// Normal values of this standard deviation.
    Normal(f64),
    I32(Vec<i32>),
}

/// One operand of a set.
pub struct Operand {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
}

/// An operand that the op overwrites, or that starts as zeros.
pub fn zeros(dtype: DType, shape: &[usize]) -> Operand {
    Operand { dtype, shape: shape.to_vec(), data: Data::Zeros }
}

/// Normal values: on zeros or on a constant a GPU draws less power, and runs faster, than on data.
pub fn normal(dtype: DType, shape: &[usize]) -> Operand {
    scaled(dtype, shape, 1.0)
}

/// Normal values of standard deviation `scale`.
pub fn scaled(dtype: DType, shape: &[usize], scale: f64) -> Operand {
    Operand { dtype, shape: shape.to_vec(), data: Data::Normal(scale) }
}

/// Numbers of rows, tokens or places.
pub fn integers(values: Vec<i32>) -> Operand {
    Operand { dtype: DType::I32, shape: vec![values.len()], data: Data::I32(values) }
}

impl Operand {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }

    fn tensor(&self, launcher: &dyn Launcher) -> Result<Tensor> {
        let mut tensor = Tensor::alone(launcher.allocator(), self.dtype, &self.shape)?;
        if tensor.view().space() == Space::Dry {
            return Ok(tensor);
        }
        match &self.data {
            Data::Zeros => {}
            Data::I32(values) => launcher.upload(bytemuck::cast_slice(values), tensor.view_mut())?,
            Data::Normal(scale) => fill(launcher, tensor.view_mut(), *scale)?,
        }
        Ok(tensor)
    }
}

/// Reserves and fills operands that all sets share.
pub fn tensors<const N: usize>(launcher: &dyn Launcher, operands: &[Operand; N]) -> Result<[Tensor; N]> {
    let tensors: Vec<Tensor> = operands.iter().map(|operand| operand.tensor(launcher)).collect::<Result<_>>()?;
    Ok(tensors.try_into().unwrap_or_else(|_| unreachable!("a tensor an operand")))
}

/// Drawn once. A prime, so that no two rows of a tensor are equal.
const DRAWN: usize = 1_000_003;
static NORMAL: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let mut random = Random::new(1);
    (0..DRAWN).map(|_| random.normal()).collect()
});

/// Normal values, which repeat after [`DRAWN`]: drawing them all would take longer than timing.
fn fill(launcher: &dyn Launcher, out: ViewMut, scale: f64) -> Result<()> {
    let scaled = || NORMAL.iter().map(|value| value * scale);
    let block: Vec<u8> = match out.dtype() {
        DType::F32 => bytemuck::cast_slice(&scaled().map(|v| v as f32).collect::<Vec<_>>()).to_vec(),
        DType::Bf16 => bytemuck::cast_slice(&scaled().map(bf16::from_f64).collect::<Vec<_>>()).to_vec(),
        DType::I32 | DType::U16 | DType::U8 => NORMAL.iter().flat_map(|v| v.to_bits().to_le_bytes()).collect(),
    };
    let (elements, size) = (out.elements(), out.dtype().size());
    let mut rest = out.into_shape(&[elements]);
    while rest.elements() > 0 {
        let count = rest.elements().min(block.len() / size);
        let (part, behind) = rest.split_rows(count);
        launcher.upload(&block[..count * size], part)?;
        rest = behind;
    }
    Ok(())
}

/// The same operands several times over.
pub struct Sets<const N: usize> {
    sets: Vec<[Tensor; N]>,
}

impl<const N: usize> Sets<N> {
    pub fn new(launcher: &dyn Launcher, operands: [Operand; N]) -> Result<Self> {
        let count = rotation(operands.iter().map(Operand::bytes).sum());
        Ok(Sets { sets: (0..count).map(|_| tensors(launcher, &operands)).collect::<Result<_>>()? })
    }

    /// Set `i` modulo their number.
    pub fn at(&mut self, i: usize) -> &mut [Tensor; N] {
        let count = self.sets.len();
        &mut self.sets[i % count]
    }
}

impl<'a, const N: usize> IntoIterator for &'a mut Sets<N> {
    type Item = &'a mut [Tensor; N];
    type IntoIter = std::slice::IterMut<'a, [Tensor; N]>;

    /// For what differs from set to set, or must be computed.
    fn into_iter(self) -> Self::IntoIter {
        self.sets.iter_mut()
    }
}

/// How many sets of operands of `bytes` each to rotate through: one, where one is larger than any cache.
fn rotation(bytes: usize) -> usize {
    ROTATION_BYTES.div_ceil(bytes.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_rotate_over_more_than_the_cache() {
        for bytes in [1, 1 << 20, 100 << 20, 1 << 30] {
            let sets = rotation(bytes);
            assert!(sets * bytes >= ROTATION_BYTES && (sets - 1) * bytes < ROTATION_BYTES, "{sets} sets of {bytes} bytes");
        }
    }
}
