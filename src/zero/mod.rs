//! ZeRO stage 3 (Rajbhandari et al. 2019, arXiv 1910.02054): parameters, gradients and optimizer state live as shards, a rank each. A block's weights are
//! gathered just before they are used and dropped after; its gradients are exchanged, and summed by their owners in the order of the micro-batches, so that
//! any number of ranks gives the same bits. With one rank the shards are whole and nothing is gathered.
//!
//! Any of the flat buffers may be at home in host memory. docs/zero3.md and docs/memory.md explain both.

mod cut;
mod flat;
mod gradients;
mod optimizer;
mod policy;
mod weights;

pub use cut::Cut;
pub use flat::Saved;
pub use gradients::{MicroBatches, ReleasedGradients, ShardedGradients};
pub use optimizer::{Optimizer, Update, clip_factor};
pub use policy::Policy;
pub use weights::ShardedWeights;
