//! The head of a safetensors file, and JSON maps in which a name may stand only once.

use crate::error::{Error, Result};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::Path;

/// The format's own limit.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// One tensor of a file.
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Where its bytes lie in the file.
    pub bytes: Range<usize>,
}

/// Reads and checks the header of `file`: every byte belongs to exactly one tensor, every size follows from its shape.
pub(super) fn parse_header(path: &Path, file: &[u8]) -> Result<Vec<Entry>> {
    let bad = |what: String| {
        Error::data(format!("{}: {what}", path.display())).help("the file is damaged or cut short: download or export it again")
    };
    let (length, rest) = file.split_first_chunk::<8>().ok_or_else(|| bad("too short for a safetensors file".into()))?;
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES || length > rest.len() as u64 {
        return Err(bad(format!("claims a header of {length} bytes, but {} follow", rest.len())));
    }
    let (header, data) = rest.split_at(length as usize);
    let UniqueMap::<TensorInfo>(mut tensors) =
        serde_json::from_slice(header).map_err(|e| bad(format!("cannot read the header: {e}")))?;

    tensors.sort_by_key(|(_, info)| info.data_offsets);
    // The crate's own validation: offsets without gaps or overlaps, sizes equal to shape times element.
    let metadata = Metadata::new(None, tensors.clone()).map_err(|e| bad(format!("the header is inconsistent: {e}")))?;
    if metadata.data_len() != data.len() {
        return Err(bad(format!("the header describes {} bytes of tensors, the file has {}", metadata.data_len(), data.len())));
    }
    let start = 8 + header.len();
    let entry = |(name, info): (String, TensorInfo)| {
        let (low, high) = info.data_offsets;
        Entry { name, dtype: info.dtype, shape: info.shape, bytes: start + low..start + high }
    };
    Ok(tensors.into_iter().map(entry).collect())
}

/// A JSON object as a list; a name that stands twice is an error. The format's `__metadata__` is passed over.
pub(super) struct UniqueMap<V>(pub Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for UniqueMap<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = UniqueMap<V>;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object with one entry a tensor")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    if !seen.insert(name.clone()) {
                        return Err(A::Error::custom(format!("tensor {name} stands there twice")));
                    }
                    let value = map.next_value().map_err(|e| A::Error::custom(format!("tensor {name}: {e}")))?;
                    entries.push((name, value));
                }
                Ok(UniqueMap(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}
