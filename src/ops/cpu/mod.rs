//! The CPU backend: f32 storage, rayon threads and the gemm crate. It trains without a GPU, and it is the oracle that
//! kernels are tested against. Results do not depend on the number of threads. [`CpuBf16`] is the same with the storage of the CUDA backend.

mod attention;
mod classifier;
mod embedding;
mod gemm;
mod math;
mod moments;
mod optimizer;
mod paged;
mod rms_norm;
mod rope;
pub mod rounded;
mod sampling;
mod swiglu;

pub use rounded::CpuBf16;

use super::*;
use crate::error::{Error, Result};
use crate::tensor::HostAllocator;
use half::bf16;
use rayon::prelude::*;

pub struct Cpu;

impl Ops for Cpu {
    fn device(&self) -> String {
        format!("CPU, {} threads", rayon::current_num_threads())
    }
    fn dtype(&self) -> DType {
        DType::F32
    }
    fn steady_rows(&self, columns: usize) -> usize {
        gemm::steady_rows(columns)
    }
    fn allocator(&self) -> &dyn Allocator {
        &HostAllocator
    }

    fn host_allocator(&self) -> &dyn Allocator {
        &HostAllocator
    }
    fn beside(&self) -> &dyn Ops {
        self
    }
    fn copy(&self, x: View, out: ViewMut) -> Result<()> {
        out.raw_bytes().copy_from_slice(x.raw_bytes());
        Ok(())
    }

    fn fill(&self, out: ViewMut, value: f32) -> Result<()> {
        match out.dtype() {
            DType::Bf16 => out.bf16().fill(bf16::from_f32(value)),
            _ => out.f32().fill(value),
        }
        Ok(())
    }
    fn add(&self, x: View, out: ViewMut) -> Result<()> {
        args::expect_shape("add", "x", x.shape(), out.shape())?;
        out.f32().par_iter_mut().zip(x.f32()).with_min_len(1 << 14).for_each(|(out, x)| *out += x);
        Ok(())
    }
    fn cast(&self, x: View, out: ViewMut) -> Result<()> {
        args::expect_shape("cast", "x", x.shape(), out.shape())?;
        match (x.dtype(), out.dtype()) {
            (DType::F32, DType::Bf16) => out.bf16().iter_mut().zip(x.f32()).for_each(|(out, &x)| *out = bf16::from_f32(x)),
            (DType::Bf16, DType::F32) => out.f32().iter_mut().zip(x.bf16()).for_each(|(out, x)| *out = x.to_f32()),
            (from @ (DType::F32 | DType::Bf16), to) if from == to => out.raw_bytes().copy_from_slice(x.raw_bytes()),
            (from, to) => return Err(Error::internal(format!("cast: {from} to {to}"))),
        }
        Ok(())
    }
    fn upload(&self, bytes: &[u8], out: ViewMut) -> Result<()> {
        out.raw_bytes().copy_from_slice(bytes);
        Ok(())
    }
    fn download(&self, x: View, out: &mut [u8]) -> Result<()> {
        out.copy_from_slice(x.raw_bytes());
        Ok(())
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn gemm(&self, op: Gemm) -> Result<()> {
        gemm::gemm(op)
    }
    fn bias_backward(&self, op: BiasBackward) -> Result<()> {
        gemm::bias_backward(op)
    }
    fn embedding(&self, op: Embedding) -> Result<()> {
        embedding::forward(op)
    }
    fn embedding_backward(&self, op: EmbeddingBackward) -> Result<()> {
        embedding::backward(op)
    }
    fn rms_norm(&self, op: RmsNorm) -> Result<()> {
        rms_norm::forward(op)
    }
    fn rms_norm_backward(&self, op: RmsNormBackward) -> Result<()> {
        rms_norm::backward(op)
    }
    fn rope(&self, op: Rope) -> Result<()> {
        rope::rope(op)
    }
    fn attention(&self, op: Attention) -> Result<()> {
        attention::forward(op)
    }
    fn attention_backward(&self, op: AttentionBackward) -> Result<()> {
        attention::backward(op)
    }
    fn paged_rope(&self, op: PagedRope) -> Result<()> {
        paged::rope(op)
    }
    fn paged_attention(&self, op: PagedAttention) -> Result<()> {
        paged::attention(op)
    }
    fn draw_tokens(&self, op: DrawTokens) -> Result<()> {
        sampling::draw(op)
    }
    fn feed_tokens(&self, op: FeedTokens) -> Result<()> {
        sampling::feed(op)
    }
    fn swiglu(&self, op: SwiGlu) -> Result<()> {
        swiglu::forward(op)
    }
    fn swiglu_backward(&self, op: SwiGluBackward) -> Result<()> {
        swiglu::backward(op)
    }
    fn classifier(&self, op: Classifier) -> Result<()> {
        classifier::classifier(self, op)
    }
    fn accumulate(&self, op: Accumulate) -> Result<()> {
        optimizer::accumulate(op)
    }
    fn square_sums(&self, op: SquareSums) -> Result<()> {
        optimizer::square_sums(op)
    }
    fn adamw(&self, op: AdamW) -> Result<()> {
        optimizer::adamw(op)
    }
}
