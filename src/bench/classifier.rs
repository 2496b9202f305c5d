//! Chunked linear + cross-entropy over the vocabulary of each model: the whole op with its products, and the kernel between them.

use super::models::{Model, TOKENS};
use super::problem::{Device, Problem, Sets, integers, normal, scaled, zeros};
use super::{Ceiling, Ladder};
use crate::error::Result;
use crate::ops::cuda::classifier::{CLASSIFIER, classifier, cross_entropy};
use crate::ops::{Classifier, ClassifierGradients, Cost};
use crate::tensor::DType::{Bf16, F32};
use crate::tensor::Tensor;
use crate::testing::random::Random;

pub fn ladders() -> Vec<Ladder> {
    let versions = || CLASSIFIER.iter().map(|v| (v.name, v.idea));
    vec![
        Ladder::new("classifier", Ceiling::Product, versions(), whole),
        Ladder::new("classifier", Ceiling::Copy, versions(), kernel),
    ]
}

fn targets(rows: usize, model: &Model) -> Vec<i32> {
    let mut random = Random::new(3);
    (0..rows).map(|_| random.below(model.vocabulary) as i32).collect()
}

fn whole<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    fn op([hidden, head, targets, scales, losses, logits, dhidden, dhead]: &mut [Tensor; 8]) -> Classifier<'_> {
        Classifier {
            hidden: hidden.view(),
            head: head.view(),
            targets: targets.view(),
            losses: losses.view_mut(),
            logits: logits.view_mut(),
            gradients: Some(ClassifierGradients {
                scales: scales.view(),
                dhidden: dhidden.view_mut(),
                dhead: dhead.view_mut(),
            }),
        }
    }
    let (rows, d, v) = (model.classifier_rows(), model.hidden, model.vocabulary);
    let operands = [
        normal(Bf16, &[TOKENS, d]),
        scaled(Bf16, &[v, d], 1.0 / (d as f64).sqrt()), // logits of deviation one
        integers(targets(TOKENS, model)),
        scaled(F32, &[TOKENS], 1.0 / TOKENS as f64),
        zeros(F32, &[TOKENS]),
        zeros(Bf16, &[rows, v]),
        zeros(Bf16, &[TOKENS, d]),
        zeros(F32, &[v, d]),
    ];
    let mut sets = Sets::new(device.launcher, operands)?;
    let cost = op(sets.at(0)).cost();
    let issue = move |version: usize, i| classifier(device.launcher, &CLASSIFIER[version], device.gemm, op(sets.at(i)));
    Ok(Problem::new(format!("T {TOKENS} by {rows}, V {v}, D {d}"), cost, issue))
}

/// Reads and writes the logits of one chunk at least once.
fn kernel<'a>(device: Device<'a>, model: &Model) -> Result<Problem<'a>> {
    let (rows, v) = (model.classifier_rows(), model.vocabulary);
    let operands = [
        normal(Bf16, &[rows, v]),
        integers(targets(rows, model)),
        scaled(F32, &[rows], 1.0 / TOKENS as f64),
        zeros(F32, &[rows]),
    ];
    let mut sets = Sets::new(device.launcher, operands)?;
    let cost = Cost { flops: 5.0 * (rows * v) as f64, bytes: 2.0 * sets.at(0)[0].bytes() as f64 };
    let issue = move |version: usize, i| {
        let [logits, targets, scales, losses] = sets.at(i);
        let (targets, scales) = (targets.view(), Some(scales.view()));
        cross_entropy(device.launcher, &CLASSIFIER[version], logits.view_mut(), targets, scales, losses.view_mut())
    };
    Ok(Problem::new(format!("logits [{rows}, {v}]"), cost, issue))
}
