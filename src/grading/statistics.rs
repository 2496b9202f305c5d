//! Statistics over samples: pass@k, the mean over problems with an interval, the majority vote.

use super::gold::{Answer, Mode};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};
use std::collections::BTreeMap;

/// The chance that at least one of k samples, drawn without replacement from n of which c are correct, is correct:
/// 1 − C(n−c, k)/C(n, k), the unbiased estimate of Chen et al. 2021 (arXiv 2107.03374). None unless c ≤ n and 1 ≤ k ≤ n.
pub fn pass_at_k(n: u64, c: u64, k: u64) -> Option<f64> {
    if c > n || k == 0 || k > n {
        return None;
    }
    if n - c < k {
        return Some(1.0);
    }
    // As a product over the correct samples, or over those drawn, whichever are fewer: no binomial, nothing overflows.
    let miss = |few: u64, other: u64| (n - few + 1..=n).map(|i| 1.0 - other as f64 / i as f64).product::<f64>();
    Some(1.0 - if c <= k { miss(c, k) } else { miss(k, c) })
}

/// A mean over problems with the ends of its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    pub mean: f64,
    pub low: f64,
    pub high: f64,
    pub problems: usize,
}

/// avg@n: the mean over problems of each problem's share of correct samples, with an interval of the given confidence for
/// the mean over all problems like these. `results` has (correct, samples) of each problem.
///
/// Samples of one problem are not independent, so the problems are the units, not the samples. A plain interval of
/// mean ± t·s/√P would have no width where all problems agree and would leave [0, 1] near the ends. This is Wilson's
/// interval with the effective number of samples p(1 − p)/var(mean), reduced for the few degrees of freedom (Korn and
/// Graubard 1998 do the same to Clopper–Pearson's).
///
/// Problems that happen to agree say little of those that were not seen: the variance counts two more, one never and one
/// always solved, with a small weight. So all problems at 0 count as one sample each, and nothing jumps when one of them
/// changes. Nor are there ever more effective samples than samples.
///
/// None without problems, for one without samples or with more correct ones, or a confidence outside (0, 1).
pub fn mean_with_interval(results: &[(usize, usize)], confidence: f64) -> Option<Estimate> {
    /// Of the two unseen problems together. Where all problems are truly alike, the simulated coverage stays near the nominal.
    const UNSEEN: f64 = 0.3;
    let valid = results.iter().all(|(correct, samples)| correct <= samples && *samples > 0);
    if results.is_empty() || !valid || !(confidence > 0.0 && confidence < 1.0) {
        return None;
    }
    let problems = results.len();
    let count = problems as f64;
    let shares = || results.iter().map(|(correct, samples)| *correct as f64 / *samples as f64);
    let mean = shares().sum::<f64>() / count;
    if problems == 1 {
        return Some(Estimate { mean, low: 0.0, high: 1.0, problems });
    }
    let p = 0.5 + confidence / 2.0;
    let z = Normal::standard().inverse_cdf(p);
    let t = StudentsT::new(0.0, 1.0, count - 1.0).ok()?.inverse_cdf(p);
    let centre = (shares().sum::<f64>() + UNSEEN / 2.0) / (count + UNSEEN);
    let squares = shares().map(|share| (share - centre).powi(2)).sum::<f64>();
    let unseen = UNSEEN / 2.0 * (centre.powi(2) + (1.0 - centre).powi(2));
    let variance = (squares + unseen) / (count - 1.0 + UNSEEN) / count;
    // As many samples as would be as good as these, if all problems were alike.
    let samples = count * count / results.iter().map(|(_, samples)| 1.0 / *samples as f64).sum::<f64>();
    let effective = (centre * (1.0 - centre) / variance).min(samples) * (z / t).powi(2);
    let z2 = z * z / effective;
    let centre = (mean + z2 / 2.0) / (1.0 + z2);
    let half = z / (1.0 + z2) * (mean * (1.0 - mean) / effective + z2 / (4.0 * effective)).sqrt();
    Some(Estimate { mean, low: (centre - half).clamp(0.0, mean), high: (centre + half).clamp(mean, 1.0), problems })
}

/// How many samples gave one answer, and whether it is correct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Votes {
    pub count: usize,
    pub correct: bool,
}

/// What the samples of a problem vote for: the answer of each, if it has one, and whether it is correct. Equality is not
/// transitive (5 is 5 cm and 5 kg), so all correct answers are one class, and the wrong ones find theirs in the order of
/// their texts: the order of the samples decides nothing.
pub fn votes(samples: &[(Option<String>, bool)], mode: Mode) -> Vec<Votes> {
    let mut wrong: BTreeMap<&str, usize> = BTreeMap::new();
    for answer in samples.iter().filter(|(_, correct)| !correct).filter_map(|(answer, _)| answer.as_deref()) {
        *wrong.entry(answer).or_default() += 1;
    }
    let mut classes: Vec<(Answer, usize)> = Vec::new();
    for (text, count) in wrong {
        let answer = Answer::parse(text, mode);
        match classes.iter_mut().find(|(first, _)| answer.equals(first)) {
            Some((_, votes)) => *votes += count,
            None => classes.push((answer, count)),
        }
    }
    let correct = samples.iter().filter(|(_, correct)| *correct).count();
    let right = Votes { count: correct, correct: true };
    let wrong = classes.into_iter().map(|(_, count)| Votes { count, correct: false });
    std::iter::once(right).filter(|votes| votes.count > 0).chain(wrong).collect()
}

/// maj@k: the chance that the most frequent answer among k samples is correct, over all choices of k of the samples and
/// with ties broken by a fair draw. It is computed exactly, not by drawing. `silent` samples have no answer: they can be
/// drawn but do not vote, and k silent samples are wrong. None unless 1 ≤ k ≤ number of samples.
pub fn majority_at_k(votes: &[Votes], silent: usize, k: usize) -> Option<f64> {
    let total: usize = votes.iter().map(|v| v.count).sum::<usize>() + silent;
    if k == 0 || k > total {
        return None;
    }
    let logs: Vec<f64> = std::iter::once(0.0)
        .chain((1..=total).scan(0.0, |sum, i| {
            *sum += (i as f64).ln();
            Some(*sum)
        }))
        .collect();
    let choose = |n: usize, r: usize| if r > n { f64::NEG_INFINITY } else { logs[n] - logs[r] - logs[n - r] };
    // Of `drawn` samples from `all`, the chance that `hits` are among `marked` of them.
    let chance = |all: usize, marked: usize, drawn: usize, hits: usize| {
        if hits > drawn || marked > all {
            return 0.0;
        }
        (choose(marked, hits) + choose(all - marked, drawn - hits) - choose(all, drawn)).exp()
    };
    let mut expected = 0.0;
    for (winner, own) in votes.iter().enumerate().filter(|(_, v)| v.correct) {
        for top in 1..=own.count.min(k) {
            // ways[r][t]: the chance that r draws are left for the groups to come and t groups tie with the winner.
            let ties = k / top;
            let mut ways = vec![vec![0.0; ties + 1]; k + 1];
            ways[k - top][0] = chance(total, own.count, k, top);
            let mut all = total - own.count;
            for (_, other) in votes.iter().enumerate().filter(|(i, _)| *i != winner) {
                let mut next = vec![vec![0.0; ties + 1]; k + 1];
                for (left, row) in ways.iter().enumerate() {
                    for (tied, weight) in row.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                        for drawn in 0..=other.count.min(left).min(top) {
                            let now = tied + usize::from(drawn == top);
                            if now <= ties {
                                next[left - drawn][now] += weight * chance(all, other.count, left, drawn);
                            }
                        }
                    }
                }
                ways = next;
                all -= other.count;
            }
            // What is left is drawn from the silent samples.
            for row in ways.iter().take(silent + 1) {
                expected += row.iter().enumerate().map(|(tied, weight)| weight / (tied + 1) as f64).sum::<f64>();
            }
        }
    }
    Some(expected.min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grading::strict::Options;
    use num_bigint::BigInt;
    use num_rational::Ratio;
    use num_traits::ToPrimitive;

    fn choose(n: u64, k: u64) -> BigInt {
        if k > n {
            return BigInt::from(0);
        }
        (0..k).fold(BigInt::from(1), |product, i| product * (n - i) / (i + 1))
    }

    fn to_f64(value: Ratio<BigInt>) -> f64 {
        let scale = BigInt::from(10).pow(20);
        (value * scale).to_integer().to_f64().unwrap() / 1e20
    }

    #[test]
    fn pass_at_k_equals_the_exact_rational() {
        let large = [(200, 1, 100), (1000, 3, 500), (1000, 500, 2), (4096, 7, 1), (4096, 4000, 64), (100_000, 5, 99_990)];
        let small = (1..=20).flat_map(|n| (0..=n).flat_map(move |c| (1..=n).map(move |k| (n, c, k))));
        let mut count = 0;
        for (n, c, k) in small.chain(large) {
            let exact = Ratio::from_integer(BigInt::from(1)) - Ratio::new(choose(n - c, k), choose(n, k));
            let (exact, value) = (to_f64(exact), pass_at_k(n, c, k).unwrap());
            assert!((value - exact).abs() <= 1e-13, "n {n}, c {c}, k {k}: {value} is not {exact}");
            count += 1;
        }
        assert_eq!(count, 3086);
        assert_eq!([pass_at_k(4, 5, 1), pass_at_k(4, 2, 0), pass_at_k(4, 2, 5), pass_at_k(0, 0, 1)], [None; 4]);
        assert_eq!(pass_at_k(16, 4, 1), Some(0.25));
    }

    /// Uniform numbers of SplitMix64.
    fn uniform(state: &mut u64) -> f64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    #[test]
    fn intervals_cover_at_the_nominal_rate() {
        const DRAWS: usize = 4000;
        let mut state = 1;
        // How a problem's chance of being solved is drawn, and the mean of that.
        type Draw = fn(f64) -> f64;
        let populations: [(&str, Draw, f64); 6] = [
            ("even", |u| u, 0.5),
            ("all or nothing", |u| if u < 0.6 { 0.98 } else { 0.02 }, 0.596),
            ("hard", |u| u * u * u, 0.25),
            ("easy", |u| 1.0 - 0.2 * u, 0.9),
            ("alike", |_| 0.6, 0.6),
            ("nearly alike", |u| 0.45 + 0.1 * u, 0.5),
        ];
        let mut outside = Vec::new();
        println!("confidence, problems, samples, population: coverage, mean width");
        for (confidence, problems, samples) in [
            (0.95, 30, 1),
            (0.95, 30, 4),
            (0.95, 30, 16),
            (0.95, 500, 1),
            (0.9, 30, 16),
            (0.95, 40, 16),
            (0.8, 100, 4),
            (0.95, 5, 16),
            (0.95, 8, 4),
        ] {
            for (name, draw, truth) in populations {
                let (mut covered, mut width) = (0, 0.0);
                for _ in 0..DRAWS {
                    let result = |state: &mut u64| {
                        let chance = draw(uniform(state));
                        ((0..samples).filter(|_| uniform(state) < chance).count(), samples)
                    };
                    let results: Vec<(usize, usize)> = (0..problems).map(|_| result(&mut state)).collect();
                    let estimate = mean_with_interval(&results, confidence).unwrap();
                    covered += usize::from(estimate.low <= truth && truth <= estimate.high);
                    width += (estimate.high - estimate.low) / DRAWS as f64;
                }
                let coverage = covered as f64 / DRAWS as f64;
                println!("{confidence} {problems:4} {samples:3} {name:15} {coverage:.3} {width:.3}");
                // Six standard errors of the simulation below. Above, what the unseen problems, Student's t and steps of 1/30 add:
                // a few problems say so little that their intervals are wide.
                let excess = match problems {
                    ..10 => 1.0 - confidence,
                    10..100 => 0.7 * (1.0 - confidence),
                    _ => 0.02,
                };
                let range = confidence - 0.02..=confidence + excess;
                if !range.contains(&coverage) {
                    outside.push(format!("{confidence} {problems} {samples} {name}: {coverage}"));
                }
            }
        }
        assert!(outside.is_empty(), "{outside:#?}");
    }

    #[test]
    fn intervals_have_width_and_stay_inside() {
        for results in
            [vec![(0, 4); 30], vec![(4, 4); 30], vec![(2, 4); 30], vec![(1, 1), (0, 1)], vec![(3, 3)], vec![(1, 4); 2]]
        {
            let estimate = mean_with_interval(&results, 0.95).unwrap();
            assert!(0.0 <= estimate.low && estimate.low <= estimate.mean && estimate.mean <= estimate.high, "{estimate:?}");
            assert!(estimate.high <= 1.0 && estimate.high - estimate.low > 0.05, "{estimate:?}");
        }
        // Without clustering it is Wilson's interval: 6 of 30 at 95 % is 0.095 … 0.373, a little wider for t.
        let results: Vec<(usize, usize)> = (0..30).map(|i| (usize::from(i < 6), 1)).collect();
        let estimate = mean_with_interval(&results, 0.95).unwrap();
        assert!((estimate.low - 0.093).abs() < 0.003 && (estimate.high - 0.377).abs() < 0.008, "{estimate:?}");
        assert_eq!(mean_with_interval(&[], 0.95), None);
        assert_eq!(mean_with_interval(&[(5, 4)], 0.95), None);
        assert_eq!(mean_with_interval(&[(0, 0)], 0.95), None);
        assert_eq!(mean_with_interval(&[(1, 2)], 1.0), None);
    }

    #[test]
    fn one_sample_more_hardly_changes_an_interval() {
        for (correct, samples, problems) in [(2, 4, 30), (8, 16, 5), (0, 16, 30), (0, 4, 5), (4, 4, 30), (16, 16, 40)] {
            let alike = vec![(correct, samples); problems];
            let mut changed = alike.clone();
            changed[0].0 = if correct == samples { correct - 1 } else { correct + 1 };
            let [a, b] = [alike, changed].map(|results| mean_with_interval(&results, 0.95).unwrap());
            let [wide, narrow] = [(a.high - a.low).max(b.high - b.low), (a.high - a.low).min(b.high - b.low)];
            println!("{correct}/{samples} × {problems}: {:.3} to {:.3}, then {:.3} to {:.3}", a.low, a.high, b.low, b.high);
            assert!(wide <= 1.5 * narrow, "{correct}/{samples} × {problems}: {a:?}, then {b:?}");
        }
    }

    /// maj@k by going through all choices of k samples. `None` is a silent sample.
    fn by_enumeration(samples: &[Option<(usize, bool)>], k: usize) -> f64 {
        let (mut sum, mut choices) = (0.0, 0.0);
        for mask in (0u32..1 << samples.len()).filter(|mask| mask.count_ones() as usize == k) {
            let mut counts = std::collections::BTreeMap::new();
            for (class, correct) in (0..samples.len()).filter(|i| mask >> i & 1 == 1).filter_map(|i| samples[i]) {
                counts.entry(class).or_insert((0, correct)).0 += 1;
            }
            let top = counts.values().map(|(count, _)| *count).max();
            let first: Vec<bool> =
                counts.values().filter(|(count, _)| Some(*count) == top).map(|(_, correct)| *correct).collect();
            if !first.is_empty() {
                sum += first.iter().filter(|correct| **correct).count() as f64 / first.len() as f64;
            }
            choices += 1.0;
        }
        sum / choices
    }

    #[test]
    fn the_majority_vote_equals_enumeration() {
        let tables: [(&[(usize, bool)], usize); 7] = [
            (&[(3, true), (2, false)], 0),
            (&[(2, true), (2, false), (2, false)], 1),
            (&[(1, true), (1, false), (1, false), (1, false)], 2),
            (&[(4, false), (3, true), (1, true)], 0),
            (&[(5, false)], 3),
            (&[(5, true)], 3),
            (&[], 4),
        ];
        for (votes, silent) in tables {
            let mut samples = vec![None; silent];
            for (class, (count, correct)) in votes.iter().enumerate() {
                samples.extend(vec![Some((class, *correct)); *count]);
            }
            let votes: Vec<Votes> = votes.iter().map(|&(count, correct)| Votes { count, correct }).collect();
            for k in 1..=samples.len() {
                let (value, expected) = (majority_at_k(&votes, silent, k).unwrap(), by_enumeration(&samples, k));
                assert!((value - expected).abs() < 1e-12, "{votes:?}, {silent} silent, k {k}: {value} is not {expected}");
            }
            assert_eq!([majority_at_k(&votes, silent, 0), majority_at_k(&votes, silent, samples.len() + 1)], [None; 2]);
        }
        // With one sample it is the share of correct ones; at this size nothing overflows.
        let votes: Vec<Votes> = (0..200).map(|i| Votes { count: 5, correct: i == 0 }).collect();
        assert!((majority_at_k(&votes, 0, 1).unwrap() - 0.005).abs() < 1e-12);
        let votes = [Votes { count: 600, correct: true }, Votes { count: 400, correct: false }];
        assert!(majority_at_k(&votes, 24, 63).unwrap() > 0.9);
    }

    #[test]
    fn equal_answers_vote_together() {
        let mode = Mode::Strict(Options::default());
        let samples = |answers: &[(&str, bool)]| -> Vec<(Option<String>, bool)> {
            answers.iter().map(|(answer, correct)| (Some(answer.to_string()), *correct)).collect()
        };
        let mut mixed =
            samples(&[("1/2", false), ("0.5", false), ("3", true), ("\\frac12", false), ("3.0", true), ("7", false)]);
        mixed.push((None, false));
        let vote = |count, correct| Votes { count, correct };
        assert_eq!(votes(&mixed, mode), [vote(2, true), vote(3, false), vote(1, false)]);
        // The gold answer is 5 cm: 5 is right too, and equal to 5 kg.
        let mut answers = [("5 kg", false), ("5", true), ("5 cm", true)];
        for _ in 0..3 {
            answers.rotate_left(1);
            assert_eq!(votes(&samples(&answers), mode), [vote(2, true), vote(1, false)]);
        }
        let (mut wrong, mut classes) = ([("5 kg", false), ("5", false), ("5 cm", false)], Vec::new());
        for _ in 0..3 {
            wrong.rotate_left(1);
            classes.push(votes(&samples(&wrong), mode));
        }
        assert!(classes.iter().all(|votes| *votes == classes[0]), "{classes:?}");
    }
}
