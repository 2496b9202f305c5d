//! Levels of quality: L1 to L5 as fifths of a ranking. How LIMO cut its levels was never published.

/// The level of each score among all of them, 1 to 5, the best 5: a fifth of the ranks each. Equal scores share the mean of their ranks, so they have one level; a
/// score alone is in the middle. Scores that are no number rank lowest.
pub fn levels(scores: &[f64]) -> Vec<u8> {
    let known = |score: f64| if score.is_nan() { f64::NEG_INFINITY } else { score };
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| known(scores[a]).total_cmp(&known(scores[b])));
    let mut levels = vec![0; scores.len()];
    let mut first = 0;
    while first < order.len() {
        let score = known(scores[order[first]]);
        let ties = order[first..].iter().take_while(|&&at| known(scores[at]) == score).count();
        // The middle of the ranks first … first + ties, each half a rank wide to both sides; in halves, so that it is exact.
        let middle = 2 * first + ties;
        let level = 1 + (5 * middle / (2 * scores.len())).min(4);
        order[first..first + ties].iter().for_each(|&at| levels[at] = level as u8);
        first += ties;
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::levels;

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
}
