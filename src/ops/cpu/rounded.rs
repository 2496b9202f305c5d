//! The CPU backend with the storage of the CUDA backend: weights, activations and logits in bf16, all else in f32. An op widens its bf16 operands to
//! f32 scratch, runs the f32 op, and rounds each result once, to nearest even, where the CUDA kernels store it. It is what CUDA runs are
//! checked against, so it is written to be read, not to be fast.

use super::Cpu;
use super::{classifier, embedding, optimizer, paged};
use crate::error::Result;
use crate::ops::*;
use crate::tensor::{Allocator, DType, Tensor, View, ViewMut};
use half::bf16;
use rayon::prelude::*;

pub struct CpuBf16;

/// Elements a task converts at least.
const MIN_LEN: usize = 1 << 14;

/// An f32 copy of a bf16 operand.
pub(super) fn widened(x: View) -> Tensor {
    let mut wide = Tensor::host(DType::F32, x.shape());
    wide.view_mut().f32().par_iter_mut().zip(x.bf16()).with_min_len(MIN_LEN).for_each(|(wide, x)| *wide = x.to_f32());
    wide
}

/// Stores f32 values, rounded to nearest even.
fn round(values: View, out: ViewMut) {
    out.bf16().par_iter_mut().zip(values.f32()).with_min_len(MIN_LEN).for_each(|(out, &value)| *out = bf16::from_f32(value));
}

/// Gives `compute` the values of `out` in f32 and stores what it makes of them; an f32 `out` is given as it is.
pub(super) fn updated(out: ViewMut, compute: impl FnOnce(ViewMut) -> Result<()>) -> Result<()> {
    if out.dtype() == DType::F32 {
        return compute(out);
    }
    let mut wide = widened(out.as_view());
    compute(wide.view_mut())?;
    round(wide.view(), out);
    Ok(())
}

/// c (+)= a · b (+ bias) of bf16 factors, accumulated in f32 and rounded once where c is bf16: what a product on a GPU computes, but for
/// the order of its sums.
pub fn gemm(op: Gemm) -> Result<()> {
    op.check()?;
    let (a, b, bias) = (widened(op.a.view), widened(op.b.view), op.bias.map(widened));
    updated(op.c, |c| {
        Cpu.gemm(Gemm {
            a: Operand { view: a.view(), transposed: op.a.transposed },
            b: Operand { view: b.view(), transposed: op.b.transposed },
            bias: bias.as_ref().map(Tensor::view),
            c,
            accumulate: op.accumulate,
            algorithm_rows: None,
        })
    })
}

impl Ops for CpuBf16 {
    fn device(&self) -> String {
        format!("{}, storage in bf16", Cpu.device())
    }
    fn dtype(&self) -> DType {
        DType::Bf16
    }
    fn steady_rows(&self, columns: usize) -> usize {
        Cpu.steady_rows(columns)
    }
    fn allocator(&self) -> &dyn Allocator {
        Cpu.allocator()
    }

    fn host_allocator(&self) -> &dyn Allocator {
        Cpu.host_allocator()
    }
    fn beside(&self) -> &dyn Ops {
        self
    }
    fn copy(&self, x: View, out: ViewMut) -> Result<()> {
        Cpu.copy(x, out)
    }

    fn fill(&self, out: ViewMut, value: f32) -> Result<()> {
        Cpu.fill(out, value)
    }
    fn add(&self, x: View, out: ViewMut) -> Result<()> {
        Cpu.add(x, out)
    }
    fn cast(&self, x: View, out: ViewMut) -> Result<()> {
        Cpu.cast(x, out)
    }
    fn upload(&self, bytes: &[u8], out: ViewMut) -> Result<()> {
        Cpu.upload(bytes, out)
    }
    fn download(&self, x: View, out: &mut [u8]) -> Result<()> {
        Cpu.download(x, out)
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn gemm(&self, op: Gemm) -> Result<()> {
        gemm(op)
    }

    fn bias_backward(&self, op: BiasBackward) -> Result<()> {
        op.check()?;
        Cpu.bias_backward(BiasBackward { dy: widened(op.dy).view(), ..op })
    }

    fn embedding(&self, op: Embedding) -> Result<()> {
        embedding::forward(op)
    }

    fn embedding_backward(&self, op: EmbeddingBackward) -> Result<()> {
        op.check()?;
        Cpu.embedding_backward(EmbeddingBackward { dout: widened(op.dout).view(), ..op })
    }

    /// Three roundings: of the sum, of the normalised value, of its product with the weight.
    fn rms_norm(&self, op: RmsNorm) -> Result<()> {
        op.check()?;
        let mut x = widened(op.x);
        if let Some(Residual { delta, mut sum }) = op.residual {
            Cpu.add(widened(delta).view(), x.view_mut())?;
            round(x.view(), sum.reborrow());
            x = widened(sum.as_view());
        }
        let width = op.weight.elements();
        let ones = Tensor::from_f32(&vec![1.0; width], &[width]);
        let (weight, residual) = (ones.view(), None);
        updated(op.y, |mut y| {
            Cpu.rms_norm(RmsNorm { x: x.view(), residual, weight, eps: op.eps, y: y.reborrow(), rstd: op.rstd })?;
            let weight = widened(op.weight);
            y.f32().par_chunks_exact_mut(width).for_each(|row| {
                let weights = weight.view().f32();
                row.iter_mut().zip(weights).for_each(|(y, weight)| *y = bf16::from_f32(*y).to_f32() * weight);
            });
            Ok(())
        })
    }

    /// The weight met the normalised value after its rounding, so its gradient is a column sum of dy · round(x̂).
    fn rms_norm_backward(&self, op: RmsNormBackward) -> Result<()> {
        op.check()?;
        let (dy, sum, weight) = (widened(op.dy), widened(op.sum), widened(op.weight));
        let width = op.weight.elements();
        let mut products = widened(op.dy);
        let rows = products.view_mut().f32().par_chunks_exact_mut(width).zip(sum.view().f32().par_chunks_exact(width));
        rows.zip(op.rstd.f32()).for_each(|((products, sum), rstd)| {
            products.iter_mut().zip(sum).for_each(|(p, sum)| *p *= bf16::from_f32(sum * rstd).to_f32());
        });
        let mut partials = op.partials;
        let of_bias = partials.reborrow().into_rows(0..BiasBackward::PARTIALS);
        Cpu.bias_backward(BiasBackward { dy: products.view(), dbias: op.dweight, partials: of_bias })?;
        let mut of_unrounded = Tensor::host(DType::F32, &[width]);
        updated(op.dsum, |dsum| {
            Cpu.rms_norm_backward(RmsNormBackward {
                dy: dy.view(),
                sum: sum.view(),
                weight: weight.view(),
                rstd: op.rstd,
                dsum,
                accumulate: op.accumulate,
                dweight: of_unrounded.view_mut(),
                partials,
            })
        })
    }

    fn rope(&self, op: Rope) -> Result<()> {
        op.check()?;
        let Rope { qkv, heads, positions, cos, sin, inverse } = op;
        updated(qkv, |qkv| Cpu.rope(Rope { qkv, heads, positions, cos, sin, inverse }))
    }

    fn attention(&self, op: Attention) -> Result<()> {
        op.check()?;
        let qkv = widened(op.qkv);
        let Attention { heads, cu_seqlens, cu_seqlens_host, out, lse, .. } = op;
        updated(out, |out| Cpu.attention(Attention { qkv: qkv.view(), heads, cu_seqlens, cu_seqlens_host, out, lse }))
    }

    fn attention_backward(&self, op: AttentionBackward) -> Result<()> {
        op.check()?;
        let (qkv, out, dout) = (widened(op.qkv), widened(op.out), widened(op.dout));
        updated(op.dqkv, |dqkv| {
            Cpu.attention_backward(AttentionBackward {
                qkv: qkv.view(),
                heads: op.heads,
                cu_seqlens: op.cu_seqlens,
                cu_seqlens_host: op.cu_seqlens_host,
                out: out.view(),
                lse: op.lse,
                dout: dout.view(),
                delta: op.delta,
                scratch: op.scratch,
                dqkv,
            })
        })
    }

    fn paged_rope(&self, op: PagedRope) -> Result<()> {
        paged::rope(op)
    }
    fn paged_attention(&self, op: PagedAttention) -> Result<()> {
        paged::attention(op)
    }
    fn draw_tokens(&self, op: DrawTokens) -> Result<()> {
        Cpu.draw_tokens(op)
    }
    fn feed_tokens(&self, op: FeedTokens) -> Result<()> {
        Cpu.feed_tokens(op)
    }

    fn swiglu(&self, op: SwiGlu) -> Result<()> {
        op.check()?;
        let gate_up = widened(op.gate_up);
        updated(op.out, |out| Cpu.swiglu(SwiGlu { gate_up: gate_up.view(), out }))
    }

    fn swiglu_backward(&self, op: SwiGluBackward) -> Result<()> {
        op.check()?;
        let (gate_up, dout) = (widened(op.gate_up), widened(op.dout));
        updated(op.dgate_up, |dgate_up| {
            Cpu.swiglu_backward(SwiGluBackward { gate_up: gate_up.view(), dout: dout.view(), dgate_up })
        })
    }

    /// Two roundings: of the logits, and of their gradient in the same place.
    fn classifier(&self, op: Classifier) -> Result<()> {
        classifier::classifier(self, op)
    }

    fn accumulate(&self, op: Accumulate) -> Result<()> {
        optimizer::accumulate(op)
    }
    fn square_sums(&self, op: SquareSums) -> Result<()> {
        Cpu.square_sums(op)
    }
    fn adamw(&self, op: AdamW) -> Result<()> {
        optimizer::adamw(op)
    }
}
