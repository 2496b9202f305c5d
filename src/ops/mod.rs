//! The operations a model is made of. An op is one struct of operands (`args`): its fields state the shapes, `check`
//! is the contract, `cost` counts FLOPs and bytes. Every backend, test and benchmark uses that struct.

pub mod args;
pub mod cpu;
pub mod cuda;
pub mod philox;

pub use args::*;

use crate::error::{Error, Result};
use crate::tensor::{Allocator, DType, View, ViewMut};
use std::any::Any;

/// A point in the order of a backend's work, from [`Ops::mark`].
pub type Mark = Box<dyn Any>;

/// Work of a backend, from [`Ops::record`].
pub type Recording = Box<dyn Any>;

/// A backend. Ops may run asynchronously in issue order; `download` and `synchronize` wait.
///
/// A device has two queues: [`Ops::beside`] gives the backend that issues to the second one, which runs beside the first as far as marks allow.
pub trait Ops: Send {
    /// What runs the ops, for people: "CPU, 2 threads".
    fn device(&self) -> String;
    /// The storage type of weights and activations.
    fn dtype(&self) -> DType;
    /// Micro-batches are padded to a multiple of this many tokens.
    fn token_multiple(&self) -> usize {
        1
    }
    /// From this many rows on, a row of a product with at least `columns` columns does not depend on how many rows are beside it.
    fn steady_rows(&self, _columns: usize) -> usize {
        1
    }
    /// Refuses, as a usage error, heads and widths of matrices that the backend has no code for.
    fn require(&self, _heads: HeadLayout, _widths: &[(&str, usize)]) -> Result<()> {
        Ok(())
    }
    /// Bytes that can still be reserved; none where tensors are in host memory.
    fn free_memory(&self) -> Result<Option<usize>> {
        Ok(None)
    }
    /// The most bf16 operations a second, where the device is known.
    fn peak_flops(&self) -> Option<f64> {
        None
    }
    /// What a library chose for each product so far, where one did.
    fn product_algorithms(&self) -> Vec<serde_json::Value> {
        Vec::new()
    }
    /// Takes what an earlier process chose, so that products give its bits.
    fn use_product_algorithms(&self, _rows: &[serde_json::Value]) -> Result<()> {
        Ok(())
    }
    /// Names what is issued until the result is dropped, for profilers.
    fn range(&self, _name: &str) -> Box<dyn Any> {
        Box::new(())
    }
    /// Whether the device works on what was issued while the program goes on.
    fn overlaps(&self) -> bool {
        false
    }
    /// Where tensors for this backend are reserved.
    fn allocator(&self) -> &dyn Allocator;
    /// Where tensors are reserved that live in host memory, and that only `copy` moves.
    fn host_allocator(&self) -> &dyn Allocator;

    /// The same device with its second queue, which has no products: for transfers, and for sums that hide behind the computation.
    fn beside(&self) -> &dyn Ops;
    /// A point behind all that was issued to this queue.
    fn mark(&self) -> Result<Mark> {
        Ok(Box::new(()))
    }
    /// What is issued to this queue from now on starts after `mark`, which may be of the other queue.
    fn wait(&self, _mark: &Mark) -> Result<()> {
        Ok(())
    }
    /// Whether what lies before `mark` is done.
    fn is_done(&self, _mark: &Mark) -> Result<bool> {
        Ok(true)
    }
    /// Seconds from a mark to a later one, both done; none where the device has no clock of its own.
    fn seconds_between(&self, _start: &Mark, _end: &Mark) -> Result<Option<f64>> {
        Ok(None)
    }
    /// Copies bytes of any type between or within the device's memory and its host memory.
    fn copy(&self, x: View, out: ViewMut) -> Result<()>;

    /// Records what `body` issues to this queue, where the backend can, instead of running it; else nothing is done. What is recorded has the addresses of its
    /// operands, so they must stay. Nothing in `body` may wait, mark, upload or download.
    fn record(&self, _body: &mut dyn FnMut() -> Result<()>) -> Result<Option<Recording>> {
        Ok(None)
    }
    /// Issues what was recorded.
    fn replay(&self, _recording: &Recording) -> Result<()> {
        Err(Error::internal("a recording of another backend"))
    }

    fn fill(&self, out: ViewMut, value: f32) -> Result<()>;
    /// out += x, both f32 of one shape.
    fn add(&self, x: View, out: ViewMut) -> Result<()>;
    /// out = x of one shape: f32 or bf16 to f32 or bf16, rounded to nearest with ties to even.
    fn cast(&self, x: View, out: ViewMut) -> Result<()>;
    /// Copies from anywhere in the program's memory, and waits for it.
    fn upload(&self, bytes: &[u8], out: ViewMut) -> Result<()>;
    fn download(&self, x: View, out: &mut [u8]) -> Result<()>;
    fn synchronize(&self) -> Result<()>;

    fn gemm(&self, op: Gemm) -> Result<()>;
    fn bias_backward(&self, op: BiasBackward) -> Result<()>;
    fn embedding(&self, op: Embedding) -> Result<()>;
    fn embedding_backward(&self, op: EmbeddingBackward) -> Result<()>;
    fn rms_norm(&self, op: RmsNorm) -> Result<()>;
    fn rms_norm_backward(&self, op: RmsNormBackward) -> Result<()>;
    fn rope(&self, op: Rope) -> Result<()>;
    fn attention(&self, op: Attention) -> Result<()>;
    fn attention_backward(&self, op: AttentionBackward) -> Result<()>;
    fn paged_rope(&self, op: PagedRope) -> Result<()>;
    fn paged_attention(&self, op: PagedAttention) -> Result<()>;
    fn draw_tokens(&self, op: DrawTokens) -> Result<()>;
    fn feed_tokens(&self, op: FeedTokens) -> Result<()>;
    fn swiglu(&self, op: SwiGlu) -> Result<()>;
    fn swiglu_backward(&self, op: SwiGluBackward) -> Result<()>;
    fn classifier(&self, op: Classifier) -> Result<()>;
    fn accumulate(&self, op: Accumulate) -> Result<()>;
    fn square_sums(&self, op: SquareSums) -> Result<()>;
    fn adamw(&self, op: AdamW) -> Result<()>;
}
