//! The classifier: logits, log-probabilities and their gradient, fused so that the [T, V] logits never exist at once.

use super::{Cost, expect, expect_dtype, expect_shape};
use crate::error::Result;
use crate::tensor::{DType, View, ViewMut};

/// The target of a token that is not trained on.
pub const IGNORE: i32 = -1;

/// losses[t] = −log softmax(hidden[t] · headᵀ)[targets[t]], or 0 where the target is [`IGNORE`].
///
/// With `gradients`, also those of Σ_t scales[t] · losses[t]. Works through T in chunks of C rows.
pub struct Classifier<'a> {
    /// [T, D]
    pub hidden: View<'a>,
    /// [V, D]
    pub head: View<'a>,
    /// [T] i32, each in 0..V or IGNORE. The CPU refuses others; on a device their losses are NaN.
    pub targets: View<'a>,
    /// [T] f32, overwritten.
    pub losses: ViewMut<'a>,
    /// [C, V] f32 or storage type, scratch.
    pub logits: ViewMut<'a>,
    pub gradients: Option<ClassifierGradients<'a>>,
}

pub struct ClassifierGradients<'a> {
    /// [T] f32: the weight of each token's loss.
    pub scales: View<'a>,
    /// [T, D] overwritten.
    pub dhidden: ViewMut<'a>,
    /// [V, D] f32, added to.
    pub dhead: ViewMut<'a>,
}

impl Classifier<'_> {
    pub fn check(&self) -> Result<()> {
        const OP: &str = "classifier";
        let [t, d] = [self.hidden.shape()[0], self.hidden.shape().row_elements()];
        let v = self.head.shape()[0];
        expect_shape(OP, "hidden", self.hidden.shape(), &[t, d])?;
        expect_shape(OP, "head", self.head.shape(), &[v, d])?;
        expect_shape(OP, "targets", self.targets.shape(), &[t])?;
        expect_shape(OP, "losses", self.losses.shape(), &[t])?;
        expect_dtype(OP, "targets", self.targets.dtype(), DType::I32)?;
        expect_dtype(OP, "losses", self.losses.dtype(), DType::F32)?;
        expect(OP, self.logits.shape()[0] > 0 && self.logits.shape().row_elements() == v, || {
            format!("logits has shape {}, expected [C, {v}]", self.logits.shape())
        })?;
        if let Some(gradients) = &self.gradients {
            expect_shape(OP, "scales", gradients.scales.shape(), &[t])?;
            expect_shape(OP, "dhidden", gradients.dhidden.shape(), &[t, d])?;
            expect_shape(OP, "dhead", gradients.dhead.shape(), &[v, d])?;
            expect_dtype(OP, "scales", gradients.scales.dtype(), DType::F32)?;
            expect_dtype(OP, "dhead", gradients.dhead.dtype(), DType::F32)?;
        }
        Ok(())
    }

    pub fn cost(&self) -> Cost {
        let products = if self.gradients.is_some() { 3.0 } else { 1.0 };
        let flops = products * 2.0 * self.hidden.elements() as f64 * self.head.shape()[0] as f64;
        let gradients = self.gradients.as_ref().map_or(0, |g| g.dhidden.bytes() + 2 * g.dhead.bytes());
        let bytes = self.hidden.bytes() + self.head.bytes() + self.targets.bytes() + self.losses.bytes() + gradients;
        Cost { flops, bytes: bytes as f64 }
    }
}
