//! Comparisons that NaN fails.

use crate::error::{Error, Result};

/// How far values are from a reference.
#[derive(Debug, Clone, Copy)]
pub struct Distance {
    /// ‖a − b‖ / ‖b‖, or ‖a‖ where b is zero.
    pub relative_l2: f64,
    /// max |a − b|
    pub largest: f64,
}

/// # Panics
/// If the lengths differ.
pub fn distance(values: &[f32], reference: &[f64]) -> Distance {
    assert_eq!(values.len(), reference.len(), "both sides of a comparison have one length");
    let (mut squares, mut norm, mut largest) = (0.0, 0.0, 0.0);
    for (&a, &b) in values.iter().zip(reference) {
        let difference = (f64::from(a) - b).abs();
        squares += difference * difference;
        norm += b * b;
        // f64::max would drop a NaN; this keeps the first.
        largest = if difference <= largest || f64::is_nan(largest) { largest } else { difference };
    }
    let scale = if norm > 0.0 { norm } else { 1.0 };
    Distance { relative_l2: (squares / scale).sqrt(), largest }
}

/// The error budget: against an oracle of higher precision, `fast` may err twice as much as `naive`, the plainest program of the
/// same storage types, plus `atol` (of the relative norm, and of the largest value of the oracle).
pub fn within_budget(what: &str, fast: &[f32], naive: &[f32], oracle: &[f64], atol: f64) -> Result<()> {
    let (ours, allowed) = (distance(fast, oracle), distance(naive, oracle));
    let peak = oracle.iter().fold(0.0f64, |peak, value| peak.max(value.abs()));
    let norm_budget = 2.0 * allowed.relative_l2 + atol;
    let largest_budget = 2.0 * allowed.largest + atol * peak;
    if ours.relative_l2 <= norm_budget && ours.largest <= largest_budget {
        return Ok(());
    }
    Err(Error::internal(format!(
        "{what}: relative error {:.3e} (budget {norm_budget:.3e}), largest error {:.3e} (budget {largest_budget:.3e})",
        ours.relative_l2, ours.largest
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_and_infinity_never_pass() {
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(within_budget("x", &[1.0, bad], &[1.0, 2.0], &[1.0, 2.0], 1.0).is_err());
        }
        assert!(distance(&[f32::NAN, 0.0], &[0.0, 0.0]).largest.is_nan());
    }

    #[test]
    fn one_wrong_element_of_many_is_found() {
        let oracle = vec![1.0; 100_000];
        let mut values = vec![1.0f32; 100_000];
        within_budget("x", &values, &values, &oracle, 1e-6).unwrap();
        let naive = values.clone();
        values[77_777] = 1.01;
        assert!(within_budget("x", &values, &naive, &oracle, 1e-6).is_err());
    }
}
