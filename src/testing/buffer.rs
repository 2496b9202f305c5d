//! Device tensors for one test: filled from the host, poisoned where a kernel must write, with canaries behind them.

use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor, View, ViewMut};
use half::bf16;

/// Every byte of poison and canaries. As bf16 and as f32 this is a NaN, so a kernel that reads it spoils its result.
const POISON: u8 = 0xff;

/// What stands behind a buffer's last element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// Poisoned elements that must survive.
    Canaries,
    /// Nothing: the region ends there, which a checked emulator watches.
    Nothing,
}

/// A [rows, width] tensor of a launcher in a region of its own.
pub struct Buffer<'a> {
    launcher: &'a dyn Launcher,
    name: &'static str,
    tensor: Tensor,
    rows: usize,
}

impl<'a> Buffer<'a> {
    /// Holds `values` as [`encode`] stores them.
    pub fn new(
        launcher: &'a dyn Launcher,
        behind: Behind,
        name: &'static str,
        dtype: DType,
        shape: &[usize],
        values: &[f32],
    ) -> Result<Self> {
        let mut buffer = Self::reserve(launcher, behind, name, dtype, shape)?;
        launcher.upload(&encode(dtype, values), buffer.view_mut())?;
        Ok(buffer)
    }

    /// Holds NaN in every element.
    pub fn poisoned(
        launcher: &'a dyn Launcher,
        behind: Behind,
        name: &'static str,
        dtype: DType,
        shape: &[usize],
    ) -> Result<Self> {
        let mut buffer = Self::reserve(launcher, behind, name, dtype, shape)?;
        launcher.fill_bytes(POISON, buffer.view_mut())?;
        Ok(buffer)
    }

    fn reserve(launcher: &'a dyn Launcher, behind: Behind, name: &'static str, dtype: DType, shape: &[usize]) -> Result<Self> {
        let rows = shape[0];
        let row_bytes = shape[1..].iter().product::<usize>() * dtype.size();
        let canary_rows = if behind == Behind::Canaries { 256usize.div_ceil(row_bytes) } else { 0 };
        let mut guarded = shape.to_vec();
        guarded[0] += canary_rows;
        let mut tensor = Tensor::alone(launcher.allocator(), dtype, &guarded)?;
        if canary_rows > 0 {
            launcher.fill_bytes(POISON, tensor.view_mut().split_rows(rows).1)?;
        }
        Ok(Buffer { launcher, name, tensor, rows })
    }

    pub fn view(&self) -> View<'_> {
        self.tensor.rows(self.rows)
    }
    pub fn view_mut(&mut self) -> ViewMut<'_> {
        self.tensor.rows_mut(self.rows)
    }

    /// The values as f32, after a look at the canaries.
    pub fn read(&self) -> Result<Vec<f32>> {
        let mut bytes = vec![0; self.tensor.bytes()];
        self.launcher.download(self.tensor.view(), &mut bytes)?;
        let (bytes, canaries) = bytes.split_at(self.view().bytes());
        if let Some(at) = canaries.iter().position(|&byte| byte != POISON) {
            return Err(Error::internal(format!("{}: byte {at} behind the buffer was overwritten", self.name)));
        }
        Ok(decode(self.tensor.dtype(), bytes))
    }
}

/// The bytes of `values`, rounded to `dtype`; integers are cast.
pub fn encode(dtype: DType, values: &[f32]) -> Vec<u8> {
    let each = |bytes: &dyn Fn(f32) -> Vec<u8>| values.iter().flat_map(|&v| bytes(v)).collect();
    match dtype {
        DType::F32 => bytemuck::cast_slice(values).to_vec(),
        DType::Bf16 => each(&|v| bf16::from_f32(v).to_ne_bytes().to_vec()),
        DType::I32 => each(&|v| (v as i32).to_ne_bytes().to_vec()),
        DType::U16 => each(&|v| (v as u16).to_ne_bytes().to_vec()),
        DType::U8 => each(&|v| vec![v as u8]),
    }
}

/// The values of [`encode`]'s bytes, as f32.
pub fn decode(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        DType::Bf16 => bytes.chunks_exact(2).map(|b| bytemuck::pod_read_unaligned::<bf16>(b).to_f32()).collect(),
        DType::I32 => bytes.chunks_exact(4).map(|b| bytemuck::pod_read_unaligned::<i32>(b) as f32).collect(),
        DType::F32 => bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect(),
        DType::U16 => bytes.chunks_exact(2).map(|b| f32::from(bytemuck::pod_read_unaligned::<u16>(b))).collect(),
        DType::U8 => bytes.iter().map(|&byte| f32::from(byte)).collect(),
    }
}
