//! A folder of safetensors files, memory-mapped: nothing is read before it is asked for.

use super::header::{UniqueMap, parse_header};
use crate::error::{Error, Result, io_error};
use half::{bf16, f16};
use memmap2::Mmap;
use rayon::prelude::*;
use safetensors::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Elements converted by one task, and read at once when a tensor is only looked through.
const CHUNK: usize = 1 << 16;

/// The weights of a Hugging Face model folder: `model.safetensors`, or the shards that its index names.
pub struct TensorFiles {
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Stored>,
}

struct Shard {
    path: PathBuf,
    bytes: Mmap,
}

struct Stored {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// model.safetensors.index.json
#[derive(serde::Deserialize)]
struct Index {
    weight_map: UniqueMap<String>,
}

impl TensorFiles {
    /// Maps the files of `dir` (they may be links, as in the hub's cache) and checks every header.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut files = TensorFiles { shards: Vec::new(), tensors: BTreeMap::new() };
        let index = dir.join(INDEX);
        if dir.join(SINGLE).exists() {
            files.add_shard(dir.join(SINGLE))?;
        } else if index.exists() {
            files.add_indexed(dir, &index)?;
        } else {
            return Err(Error::data(format!("{}: neither {SINGLE} nor {INDEX} is there", dir.display()))
                .help("give the folder of a downloaded or exported model"));
        }
        Ok(files)
    }

    /// Maps one file and checks its header.
    pub fn open_file(path: &Path) -> Result<Self> {
        let mut files = TensorFiles { shards: Vec::new(), tensors: BTreeMap::new() };
        files.add_shard(path.to_path_buf())?;
        Ok(files)
    }

    fn add_indexed(&mut self, dir: &Path, index: &Path) -> Result<()> {
        let text = fs::read(index).map_err(|e| io_error(index, e))?;
        let Index { weight_map: UniqueMap(weight_map) } =
            serde_json::from_slice(&text).map_err(|e| Error::data(format!("{}: {e}", index.display())))?;
        let inside = |file: &str| matches!(Path::new(file).components().collect::<Vec<_>>()[..], [Component::Normal(name)] if name == file);
        if let Some((tensor, file)) = weight_map.iter().find(|(_, file)| !inside(file)) {
            let what = format!("{}: tensor {tensor} is said to be in {file:?}", index.display());
            return Err(Error::data(what).help("an index may only name files of its own folder"));
        }
        let files: BTreeSet<&String> = weight_map.iter().map(|(_, file)| file).collect();
        for file in files {
            self.add_shard(dir.join(file))?;
        }
        for (tensor, file) in &weight_map {
            let holder = self.tensors.get(tensor).map(|stored| &self.shards[stored.shard].path);
            if holder != Some(&dir.join(file)) {
                return Err(Error::data(format!("{}: tensor {tensor} is not in {file}", index.display()))
                    .help("index and shards are of different models: download them again"));
            }
        }
        Ok(())
    }

    fn add_shard(&mut self, path: PathBuf) -> Result<()> {
        let file = File::open(&path).map_err(|e| io_error(&path, e))?;
        // SAFETY: the mapping is only read. A file that another process changes meanwhile can give wrong values, and one
        // that it cuts short ends this process by a signal: the price of not copying tens of gigabytes.
        let bytes = unsafe { Mmap::map(&file) }.map_err(|e| io_error(&path, e))?;
        for entry in parse_header(&path, &bytes)? {
            let stored = Stored { shard: self.shards.len(), dtype: entry.dtype, shape: entry.shape, bytes: entry.bytes };
            if let Some(first) = self.tensors.insert(entry.name.clone(), stored) {
                let first = self.shards[first.shard].path.display();
                return Err(Error::data(format!("{}: tensor {} is also in {first}", path.display(), entry.name)));
            }
        }
        self.shards.push(Shard { path, bytes });
        Ok(())
    }

    /// Tensor names in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Element type and shape as stored.
    pub fn info(&self, name: &str) -> Result<(Dtype, &[usize])> {
        self.stored(name).map(|stored| (stored.dtype, stored.shape.as_slice()))
    }

    /// The element types that occur, by name.
    pub fn types(&self) -> BTreeSet<String> {
        self.tensors.values().map(|stored| stored.dtype.to_string()).collect()
    }

    /// Bytes of all files.
    pub fn size_on_disk(&self) -> usize {
        self.shards.iter().map(|shard| shard.bytes.len()).sum()
    }

    /// The stored bytes of steps `rows` along the first dimension (of a scalar: row 0).
    pub fn bytes(&self, name: &str, rows: Range<usize>) -> Result<&[u8]> {
        let stored = self.stored(name)?;
        let shard = &self.shards[stored.shard];
        let count = stored.shape.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > count {
            return Err(Error::internal(format!("rows {rows:?} of tensor {name} {:?} were asked for", stored.shape)));
        }
        let row = stored.bytes.len() / count.max(1);
        Ok(&shard.bytes[stored.bytes.start + rows.start * row..stored.bytes.start + rows.end * row])
    }

    /// Reads steps `rows` of the first dimension into `out`, converting bf16, f16 or f32.
    pub fn read_f32(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let row: usize = self.stored(name)?.shape.iter().skip(1).product();
        self.read_elements_f32(name, rows.start * row..rows.end * row, out)
    }

    /// Reads elements `range`, counted through all dimensions, likewise.
    pub fn read_elements_f32(&self, name: &str, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let stored = self.stored(name)?;
        let count: usize = stored.shape.iter().product();
        if range.start > range.end || range.end > count {
            return Err(Error::internal(format!("elements {range:?} of tensor {name} {:?} were asked for", stored.shape)));
        }
        let size = stored.bytes.len() / count.max(1);
        let begin = stored.bytes.start;
        let bytes = &self.shards[stored.shard].bytes[begin + range.start * size..begin + range.end * size];
        match stored.dtype {
            Dtype::F32 => convert(name, bytes, out, f32::from_le_bytes),
            Dtype::BF16 => convert(name, bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => convert(name, bytes, out, |b| f16::from_le_bytes(b).to_f32()),
            other => Err(self
                .at_fault(name, stored, &format!("is stored as {other}"))
                .help("weights must be float32, bfloat16 or float16: quantised models cannot be trained")),
        }
    }

    /// Fails where `name` holds a NaN or an infinity.
    pub fn check_finite(&self, name: &str) -> Result<()> {
        let stored = self.stored(name)?;
        let rows = stored.shape.first().copied().unwrap_or(1);
        let row_elements: usize = stored.shape.iter().skip(1).product();
        let step = (CHUNK / row_elements.max(1)).max(1);
        let mut values = vec![0.0; step.min(rows) * row_elements];
        let mut bad = 0;
        for start in (0..rows).step_by(step) {
            let end = (start + step).min(rows);
            let part = &mut values[..(end - start) * row_elements];
            self.read_f32(name, start..end, part)?;
            bad += part.iter().filter(|v| !v.is_finite()).count();
        }
        match bad {
            0 => Ok(()),
            n => Err(self.at_fault(name, stored, &format!("holds {n} values that are NaN or infinite"))),
        }
    }

    fn stored(&self, name: &str) -> Result<&Stored> {
        self.tensors.get(name).ok_or_else(|| {
            let folder = self.shards.first().and_then(|shard| shard.path.parent()).unwrap_or(Path::new("."));
            Error::data(format!("{}: tensor {name} is missing", folder.display()))
                .help("config.json and weights do not belong together, or a file is missing")
        })
    }

    fn at_fault(&self, name: &str, stored: &Stored, what: &str) -> Error {
        Error::data(format!("{}: tensor {name} {what}", self.shards[stored.shard].path.display()))
    }
}

/// Converts little-endian elements of N bytes.
fn convert<const N: usize>(name: &str, bytes: &[u8], out: &mut [f32], element: impl Fn([u8; N]) -> f32 + Sync) -> Result<()> {
    let (elements, _) = bytes.as_chunks::<N>();
    if elements.len() != out.len() {
        return Err(Error::internal(format!("{} values of tensor {name} were read into {}", elements.len(), out.len())));
    }
    out.par_chunks_mut(CHUNK)
        .zip(elements.par_chunks(CHUNK))
        .for_each(|(out, elements)| out.iter_mut().zip(elements).for_each(|(out, &bytes)| *out = element(bytes)));
    Ok(())
}
