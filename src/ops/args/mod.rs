//! One struct an op. Shape legend, here and in the kernels:
//!
//! | letter | meaning | letter | meaning |
//! |---|---|---|---|
//! | T | tokens of a micro-batch, sequences back to back | S | sequences of a micro-batch |
//! | D | hidden size (width of the residual stream) | F | feed-forward size |
//! | Q, K | query heads, key/value heads | H | head dimension |
//! | V | vocabulary rows, padding included | P | positions of a RoPE table |

mod attention;
mod classifier;
mod embedding;
mod gemm;
mod optimizer;
mod paged;
mod rms_norm;
mod rope;
mod sampling;
mod swiglu;

pub use attention::{Attention, AttentionBackward, HeadLayout};
pub use classifier::{Classifier, ClassifierGradients, IGNORE};
pub use embedding::{Embedding, EmbeddingBackward};
pub use gemm::{BiasBackward, Gemm, GemmDesc, Operand};
pub use optimizer::{Accumulate, AdamW, AdamWFactors, Master, Moment, SQUARE_SUMS_CHUNK, SquareSums};
pub use paged::{PAGE, PagedAttention, PagedQueries, PagedRope};
pub use rms_norm::{Residual, RmsNorm, RmsNormBackward};
pub use rope::Rope;
pub use sampling::{DrawTokens, FeedTokens, Narrowing};
pub use swiglu::{SwiGlu, SwiGluBackward};

use crate::error::{Error, Result};
use crate::tensor::{DType, Shape};

/// What an op must do at least: floating-point operations, and bytes that have to cross device memory when every
/// input is read once and every output written once.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    pub flops: f64,
    pub bytes: f64,
}

/// Refuses an operand whose shape is not what the op's other operands imply.
pub(crate) fn expect_shape(op: &str, operand: &str, shape: &Shape, expected: &[usize]) -> Result<()> {
    if **shape == *expected {
        return Ok(());
    }
    Err(Error::internal(format!("{op}: {operand} has shape {shape}, expected {expected:?}")))
}

pub(crate) fn expect_dtype(op: &str, operand: &str, dtype: DType, expected: DType) -> Result<()> {
    if dtype == expected {
        return Ok(());
    }
    Err(Error::internal(format!("{op}: {operand} holds {dtype}, expected {expected}")))
}

pub(crate) fn expect(op: &str, condition: bool, what: impl FnOnce() -> String) -> Result<()> {
    if condition { Ok(()) } else { Err(Error::internal(format!("{op}: {}", what()))) }
}
