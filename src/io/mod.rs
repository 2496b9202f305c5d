//! Model folders on disk: safetensors in and out, and files that appear whole or not at all.

mod atomic;
mod checkpoint;
mod export;
mod header;

pub use atomic::write_atomic;
pub use checkpoint::Checkpoint;
pub use export::{DEFAULT_SHARD_BYTES, Export, TensorSpec, export};
/// The element types that a safetensors file can hold; more than we compute in.
pub use safetensors::Dtype as StoredDType;
