//! The Qwen2 architecture (Qwen2 technical report, arXiv 2407.10671): parameter layout, forward and backward pass.
//!
//! The layer loop never knows where weights live or where gradients go: it asks a [`WeightSource`] and pushes into a [`GradSink`].

mod activations;
mod backward;
mod forward;
mod gradients;
mod layout;
mod per_layer;
mod random;
mod weights;

pub use activations::{Activations, Extent, Keep, classifier_rows};
pub use forward::{Packed, PagedStep, Qwen2};
pub use gradients::{BlockGradients, GradSink};
pub use layout::{Block, BlockLayout, Layout, Parameter, Part, Role, heads};
pub use weights::{
    BlockWeights, ReadTensor, ResidentWeights, WeightSource, checkpoint_reader, copy_f32, download_f32, random_reader,
};
pub use weights::{read_block, upload_f32};
