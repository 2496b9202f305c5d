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

/// The same bits everywhere; any NaN is the same as any other.
pub fn exactly(what: &str, values: &[f32], expected: &[f32]) -> Result<()> {
    assert_eq!(values.len(), expected.len(), "both sides of a comparison have one length");
    let same = |i: usize| values[i].to_bits() == expected[i].to_bits() || (values[i].is_nan() && expected[i].is_nan());
    match (0..values.len()).find(|&i| !same(i)) {
        None => Ok(()),
        Some(i) => Err(Error::internal(format!("{what}[{i}] is {:e}, not {:e}", values[i], expected[i]))),
    }
}

/// NaN where the expected values are NaN, and nowhere else. Zeros then replace the NaNs of both, so that the rest can be compared.
pub fn same_nans(what: &str, values: &mut [f32], expected: &mut [f32]) -> Result<()> {
    for (i, (value, expected)) in values.iter_mut().zip(expected).enumerate() {
        if value.is_nan() != expected.is_nan() {
            return Err(Error::internal(format!("{what}[{i}] is {value:e}, not {expected:e}")));
        }
        if value.is_nan() {
            (*value, *expected) = (0.0, 0.0);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_comparisons_see_signs_and_nans() {
        exactly("x", &[1.0, f32::NAN], &[1.0, -f32::NAN]).unwrap();
        assert!(exactly("x", &[0.0], &[-0.0]).is_err());
        assert!(exactly("x", &[f32::NAN], &[0.0]).is_err() && exactly("x", &[0.0], &[f32::NAN]).is_err());
        let (mut values, mut expected) = ([1.0, f32::NAN], [2.0, f32::NAN]);
        same_nans("x", &mut values, &mut expected).unwrap();
        assert_eq!((values, expected), ([1.0, 0.0], [2.0, 0.0]));
        assert!(same_nans("x", &mut [f32::NAN], &mut [0.0]).is_err());
        assert!(same_nans("x", &mut [0.0], &mut [f32::NAN]).is_err());
    }

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
