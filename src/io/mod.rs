//! Model folders on disk: safetensors in and out, and files that appear whole or not at all.

mod atomic;
mod export;
mod folder;
mod header;
mod tensor_files;
mod tensors;

pub use atomic::{remove_folder, write_atomic};
pub use export::{Companions, DEFAULT_SHARD_BYTES, Export, export, read_along, write_model};
pub use folder::{FileRecord, NewFolder, free_space, verify_files};
/// The element types that a safetensors file can hold; more than we compute in.
pub use safetensors::Dtype as StoredDType;
pub use tensor_files::TensorFiles;
pub use tensors::{TensorSpec, stored_as, write_tensors};
