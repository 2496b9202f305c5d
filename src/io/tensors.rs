//! Writing safetensors files, tensor by tensor, a piece in memory at a time.

use crate::error::{Result, write_error};
use crate::tensor::DType;
use safetensors::Dtype;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// Elements asked for at once: what a writer holds of a model.
const CHUNK_ELEMENTS: usize = 1 << 17;

/// A tensor to be written. An empty shape is a scalar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
}

impl TensorSpec {
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }

    /// The steps of the first dimension (of a scalar: row 0) that are written at a time.
    pub fn pieces(&self) -> impl Iterator<Item = Range<usize>> {
        let rows = self.shape.first().copied().unwrap_or(1);
        let row_elements: usize = self.shape.iter().skip(1).product();
        let step = (CHUNK_ELEMENTS / row_elements.max(1)).clamp(1, rows.max(1));
        (0..rows).step_by(step).map(move |start| start..(start + step).min(rows))
    }
}

/// Writes a safetensors file to `out`, which is the file `path`. `read` fills a slice, aligned for its elements, with steps of a tensor's first
/// dimension (of a scalar: row 0); it is called in the order of `tensors`.
pub fn write_tensors(
    out: &mut dyn Write,
    path: &Path,
    tensors: &[TensorSpec],
    mut read: impl FnMut(&TensorSpec, Range<usize>, &mut [u8]) -> Result<()>,
) -> Result<()> {
    out.write_all(&header(tensors)).map_err(|e| write_error(path, e))?;
    for tensor in tensors {
        let row = tensor.shape.iter().skip(1).product::<usize>() * tensor.dtype.size();
        // Of u32 for the alignment.
        let mut buffer: Vec<u32> = Vec::new();
        for rows in tensor.pieces() {
            buffer.resize(buffer.len().max((rows.len() * row).div_ceil(4)), 0);
            let bytes = &mut bytemuck::cast_slice_mut(&mut buffer)[..rows.len() * row];
            read(tensor, rows, bytes)?;
            out.write_all(bytes).map_err(|e| write_error(path, e))?;
        }
    }
    Ok(())
}

/// The head of a file: its length, then JSON padded so that the data is aligned.
fn header(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut entries = Map::from_iter([("__metadata__".to_string(), json!({ "format": "pt" }))]);
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes();
        entries.insert(
            tensor.name.clone(),
            json!({ "dtype": stored_as(tensor.dtype), "shape": tensor.shape, "data_offsets": [offset, end] }),
        );
        offset = end;
    }
    let mut text = Value::from(entries).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// The format's name of an element type.
pub fn stored_as(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::Bf16 => Dtype::BF16,
        DType::I32 => Dtype::I32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
    }
}
