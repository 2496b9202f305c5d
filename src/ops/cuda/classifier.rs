//! Chunked linear + cross-entropy: launches of `kernels/classifier/` between matrix products.

use super::ladder::{VECTOR, Version, WARP, expect_bf16, extent, launch};
use super::params::{CLASSIFIER_KEPT_ROUNDS, ClassifierParams, Ptr};
use crate::device::Launcher;
use crate::error::{Error, Result};
use crate::ops::{Classifier, Gemm};
use crate::tensor::{DType, View, ViewMut};

/// Threads of a block that takes a row in rounds of eight columns a thread.
const MOST_THREADS: u32 = 1024;

/// Softmax cross-entropy of rows of logits, in place.
pub const CLASSIFIER: [Version; 5] = [
    Version {
        name: "1",
        idea: "naive: three passes over the row, scalar accesses, trees in shared memory",
        kernel: "classifier_1",
        any: "classifier_1",
        widest: u32::MAX,
        geometry: |rows, _| launch(rows, 256, 256 * 4),
    },
    Version {
        name: "2",
        idea: "online softmax: maximum and sum in one pass",
        kernel: "classifier_2",
        any: "classifier_2",
        widest: u32::MAX,
        geometry: |rows, _| launch(rows, 256, slots(256)),
    },
    Version {
        name: "3",
        idea: "16-byte accesses, four in flight; one rescaling for eight logits",
        kernel: "classifier_3",
        any: "classifier_3_any",
        widest: u32::MAX,
        geometry: |rows, width| launch(rows, threads(width), slots(threads(width))),
    },
    Version {
        name: "4",
        idea: "the second pass runs backwards, where the caches still hold the row",
        kernel: "classifier_4",
        any: "classifier_4_any",
        widest: u32::MAX,
        geometry: |rows, width| launch(rows, threads(width), slots(threads(width))),
    },
    Version {
        name: "5",
        idea: "96 KiB of the row stay in shared memory between the passes",
        kernel: "classifier_5",
        any: "classifier_5_any",
        widest: u32::MAX,
        geometry: |rows, width| {
            let threads = threads(width);
            let kept = width.div_ceil(VECTOR * threads).min(CLASSIFIER_KEPT_ROUNDS);
            launch(rows, threads, slots(threads) + 16 * threads * kept)
        },
    },
];

fn threads(width: u32) -> u32 {
    width.div_ceil(VECTOR).next_multiple_of(WARP).min(MOST_THREADS)
}

/// Shared bytes for two f32 a warp, in whole 16-byte units.
const fn slots(threads: u32) -> u32 {
    (threads / WARP * 8).next_multiple_of(16)
}

/// Works through the tokens in chunks of `logits`: logits = hidden · headᵀ, then losses and the logits' gradients in their place, then dhidden and dhead.
/// `gemm` issues the products on the launcher's stream. Unlike the CPU backend it cannot refuse a target outside of the vocabulary, which is on the device:
/// the loss of such a token is NaN.
pub fn classifier(launcher: &dyn Launcher, version: &Version, gemm: &dyn Fn(Gemm) -> Result<()>, op: Classifier) -> Result<()> {
    op.check()?;
    let tokens = op.hidden.shape()[0];
    let (hidden, head, mut logits, mut losses, mut gradients) = (op.hidden, op.head, op.logits, op.losses, op.gradients);
    let chunk = logits.shape()[0];
    for begin in (0..tokens).step_by(chunk) {
        let range = begin..tokens.min(begin + chunk);
        let mut logits = logits.reborrow().into_rows(0..range.len());
        gemm(Gemm::linear(hidden.rows(range.clone()), head, None, logits.reborrow()))?;
        let scales = gradients.as_ref().map(|g| g.scales.rows(range.clone()));
        let losses = losses.reborrow().into_rows(range.clone());
        cross_entropy(launcher, version, logits.reborrow(), op.targets.rows(range.clone()), scales, losses)?;
        if let Some(gradients) = &mut gradients {
            let dhidden = gradients.dhidden.reborrow().into_rows(range.clone());
            gemm(Gemm::linear_input_gradient(logits.as_view(), head, dhidden))?;
            gemm(Gemm::linear_weight_gradient(logits.as_view(), hidden.rows(range), gradients.dhead.reborrow()))?;
        }
    }
    Ok(())
}

/// losses[t] of `logits` [C, V] in bf16, which with `scales` are replaced by the gradient of Σ_t scales[t] · losses[t]. Targets, scales and losses are [C].
pub fn cross_entropy(
    launcher: &dyn Launcher,
    version: &Version,
    logits: ViewMut,
    targets: View,
    scales: Option<View>,
    losses: ViewMut,
) -> Result<()> {
    const OP: &str = "classifier";
    expect_bf16(OP, logits.dtype())?;
    let [rows, width] = extent(OP, logits.shape()[0], logits.shape().row_elements())?;
    let columns: [(&str, DType, DType, usize); 3] = [
        ("targets", targets.dtype(), DType::I32, targets.elements()),
        ("scales", scales.map_or(DType::F32, |s| s.dtype()), DType::F32, scales.map_or(rows as usize, |s| s.elements())),
        ("losses", losses.dtype(), DType::F32, losses.elements()),
    ];
    for (name, dtype, expected, elements) in columns {
        if dtype != expected || elements != rows as usize {
            return Err(Error::internal(format!("{OP}: {name} holds {elements} of {dtype}, expected {rows} of {expected}")));
        }
    }
    if width > i32::MAX as u32 {
        return Err(Error::internal(format!("{OP}: targets of 32 bits do not reach a vocabulary of {width}")));
    }
    if rows == 0 {
        return Ok(());
    }
    let params = ClassifierParams {
        logits: Ptr::new(logits.address()),
        targets: Ptr::new(targets.address()),
        scales: Ptr::new(scales.map_or(0, |scales| scales.address())),
        losses: Ptr::new(losses.address()),
        width,
        padding: 0,
    };
    let (kernel, launch) = version.select(&CLASSIFIER, rows, width, &[logits.address()]);
    // SAFETY: the kernel's own parameter block, over views whose extents were compared above.
    unsafe { launcher.launch(kernel, launch, bytemuck::bytes_of(&params)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vocabulary_gets_a_launch_that_every_gpu_since_sm_80_takes() {
        /// What a block may ask for on sm_89, the least of them.
        const SHARED: u32 = 99 << 10;
        for version in &CLASSIFIER {
            for width in (1..20_000).step_by(37).chain([151_936, 152_064, 1 << 20]) {
                let (kernel, launch) = version.select(&CLASSIFIER, 3, width, &[0]);
                let most = if kernel.contains(['1', '2']) { 256 } else { MOST_THREADS };
                assert!(launch.block[0].is_multiple_of(WARP) && (WARP..=most).contains(&launch.block[0]), "{kernel}, {width}");
                assert!(launch.shared_bytes <= SHARED, "{kernel}, {width}: {} bytes", launch.shared_bytes);
            }
        }
    }

    #[test]
    fn odd_vocabularies_take_the_scalar_kernel() {
        let kernel = |width, address| CLASSIFIER[4].select(&CLASSIFIER, 1, width, &[address]).0;
        assert_eq!(kernel(151_936, 32), "classifier_5");
        assert_eq!(kernel(151_936, 8), "classifier_5_any");
        assert_eq!(kernel(127, 32), "classifier_5_any");
    }
}
