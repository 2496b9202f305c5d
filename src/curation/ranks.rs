//! Ranks of scores: what levels, rankings and rank correlation are made of.

/// The rank of each value, from 0, the least first; equal values share the mean of theirs. What is no number ranks lowest.
pub fn mid_ranks(values: &[f64]) -> Vec<f64> {
    let known = |at: usize| if values[at].is_nan() { f64::NEG_INFINITY } else { values[at] };
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| known(a).total_cmp(&known(b)));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    // Zeros of both signs are equal.
    for ties in order.chunk_by(|&a, &b| known(a) == known(b)) {
        let middle = before as f64 + (ties.len() - 1) as f64 / 2.0;
        ties.iter().for_each(|&at| ranks[at] = middle);
        before += ties.len();
    }
    ranks
}

/// The level of each score among all of them, L1 to L5 as 1 to 5: a fifth of the ranks each, the best 5. Equal scores have one level; a score alone is in the
/// middle. How LIMO cut its levels was never published.
pub fn levels(scores: &[f64]) -> Vec<u8> {
    // The middle of a rank is half a rank above it; doubled, so that it is exact.
    let level = |rank: f64| 1 + (5 * (2.0 * rank + 1.0) as usize / (2 * scores.len())).min(4) as u8;
    mid_ranks(scores).into_iter().map(level).collect()
}

/// Spearman's rank correlation of pairs, ties sharing the mean of their ranks: from −1 to 1. None of fewer than three pairs, or where one side is all the same.
pub fn rank_correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let n = pairs.len() as f64;
    if pairs.len() < 3 {
        return None;
    }
    let [a, b] = [pairs.iter().map(|pair| pair.0).collect::<Vec<_>>(), pairs.iter().map(|pair| pair.1).collect()]
        .map(|side| mid_ranks(&side));
    let mean = (n - 1.0) / 2.0;
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    let (both, of_a, of_b) = (product(&a, &b), product(&a, &a), product(&b, &b));
    (of_a > 0.0 && of_b > 0.0).then(|| both / (of_a * of_b).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_share_their_ranks() {
        assert_eq!(mid_ranks(&[3.0, 1.0, 3.0, f64::NAN, 0.0, -0.0]), [4.5, 3.0, 4.5, 0.0, 1.5, 1.5]);
        assert!(mid_ranks(&[]).is_empty());
    }

    #[test]
    fn fifths_of_the_ranks() {
        assert_eq!(levels(&[0.1, 0.5, 0.3, 0.2, 0.4]), [1, 5, 3, 2, 4]);
        assert_eq!(levels(&(0..10).map(f64::from).collect::<Vec<_>>()), [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]);
        assert_eq!(levels(&[7.0]), [3]);
        assert_eq!(levels(&[1.0, 2.0]), [2, 4]);
        assert_eq!(levels(&[1.0; 9]), [3; 9]);
        assert_eq!(levels(&[f64::NAN, 1.0, -1.0]), [1, 5, 3]);
        assert!(levels(&[]).is_empty());
    }

    #[test]
    fn ranks_correlate() {
        let pairs = |ys: &[f64]| ys.iter().enumerate().map(|(x, &y)| (x as f64, y)).collect::<Vec<_>>();
        assert_eq!(rank_correlation(&pairs(&[1.0, 10.0, 100.0])), Some(1.0));
        assert_eq!(rank_correlation(&pairs(&[3.0, 2.0, 1.0, 0.0])), Some(-1.0));
        // By hand: ranks 1, 0, 3, 2 against 0, 1, 2, 3: 1 − 6·4/(4·15).
        assert_eq!(rank_correlation(&pairs(&[5.0, 4.0, 7.0, 6.0])), Some(0.6));
        assert_eq!(rank_correlation(&pairs(&[5.0, 5.0, 5.0])), None);
        assert_eq!(rank_correlation(&pairs(&[5.0, 4.0])), None);
    }
}
