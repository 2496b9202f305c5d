//! Statistics over samples: pass@k, the mean over problems with an interval, the majority vote.

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

/// The quantile of the normal distribution, by Acklam's approximation (relative error below 1.2e-9).
fn normal_quantile(p: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969683028665376e1,
        2.209460984245205e2,
        -2.759285104469687e2,
        1.38357751867269e2,
        -3.066479806614716e1,
        2.506628277459239,
    ];
    const B: [f64; 6] =
        [-5.447609879822406e1, 1.615858368580409e2, -1.556989798598866e2, 6.680131188771972e1, -1.328068155288572e1, 1.0];
    const C: [f64; 6] = [
        -7.784894002430293e-3,
        -3.223964580411365e-1,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
    ];
    const D: [f64; 5] = [7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416, 1.0];
    let polynomial = |coefficients: &[f64], x: f64| coefficients.iter().fold(0.0, |sum, c| sum * x + c);
    let tail = |p: f64| {
        let q = (-2.0 * p.ln()).sqrt();
        polynomial(&C, q) / polynomial(&D, q)
    };
    if p < 0.02425 {
        tail(p)
    } else if p > 1.0 - 0.02425 {
        -tail(1.0 - p)
    } else {
        let q = p - 0.5;
        q * polynomial(&A, q * q) / polynomial(&B, q * q)
    }
}

/// The quantile of Student's t, by the Cornish–Fisher expansion: within 0.1 % from 6 degrees of freedom on.
fn t_quantile(p: f64, freedom: f64) -> f64 {
    let z = normal_quantile(p);
    let (z2, v) = (z * z, freedom.max(1.0));
    let first = z * (z2 + 1.0) / 4.0;
    let second = z * ((5.0 * z2 + 16.0) * z2 + 3.0) / 96.0;
    let third = z * (((3.0 * z2 + 19.0) * z2 + 17.0) * z2 - 15.0) / 384.0;
    let fourth = z * ((((79.0 * z2 + 776.0) * z2 + 1482.0) * z2 - 1920.0) * z2 - 945.0) / 92160.0;
    z + first / v + second / (v * v) + third / (v * v * v) + fourth / (v * v * v * v)
}

/// avg@n: the mean over problems of each problem's share of correct samples, with an interval of the given confidence for
/// the mean over all problems like these.
///
/// Samples of one problem are not independent, so the problems are the units, not the samples. A plain interval of
/// mean ± t·s/√P would have no width where all problems agree and would leave [0, 1] near the ends. This is Wilson's interval with
/// the effective number of samples p(1 − p)/var(mean), reduced for the few degrees of freedom (Korn and Graubard 1998
/// do the same to Clopper–Pearson's).
///
/// None without problems, with a value outside [0, 1], or a confidence outside (0, 1).
pub fn mean_with_interval(shares: &[f64], confidence: f64) -> Option<Estimate> {
    let valid = shares.iter().all(|share| (0.0..=1.0).contains(share)) && confidence > 0.0 && confidence < 1.0;
    if shares.is_empty() || !valid {
        return None;
    }
    let problems = shares.len();
    let count = problems as f64;
    let mean = shares.iter().sum::<f64>() / count;
    if problems == 1 {
        return Some(Estimate { mean, low: 0.0, high: 1.0, problems });
    }
    let p = 0.5 + confidence / 2.0;
    let (z, t) = (normal_quantile(p), t_quantile(p, count - 1.0));
    let variance = shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / (count - 1.0) / count;
    // Without any spread all problems have one share, and that says no more than one sample a problem would.
    let effective = if variance > 0.0 { mean * (1.0 - mean) / variance } else { count };
    let effective = effective * (z / t).powi(2);
    let z2 = z * z / effective;
    let centre = (mean + z2 / 2.0) / (1.0 + z2);
    let half = z / (1.0 + z2) * (mean * (1.0 - mean) / effective + z2 / (4.0 * effective)).sqrt();
    Some(Estimate { mean, low: (centre - half).clamp(0.0, mean), high: (centre + half).clamp(mean, 1.0), problems })
}

/// The samples of one problem that gave the same answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Positions of the samples, ascending.
    pub samples: Vec<usize>,
}

/// Groups equal answers, in the order in which they first appear. Samples without an answer are in no group.
pub fn group(answers: &[Option<&str>], same: impl Fn(&str, &str) -> bool) -> Vec<Group> {
    let mut groups: Vec<(&str, Group)> = Vec::new();
    for (at, answer) in answers.iter().enumerate() {
        let Some(answer) = *answer else { continue };
        // Most answers are repeated letter by letter.
        let found = groups.iter().position(|(first, _)| *first == answer);
        match found.or_else(|| groups.iter().position(|(first, _)| same(answer, first))) {
            Some(found) => groups[found].1.samples.push(at),
            None => groups.push((answer, Group { samples: vec![at] })),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// How many samples gave one answer, and whether it is correct.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Votes {
    pub count: usize,
    pub correct: bool,
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
        let populations: [(&str, Draw, f64); 5] = [
            ("even", |u| u, 0.5),
            ("all or nothing", |u| if u < 0.6 { 0.98 } else { 0.02 }, 0.596),
            ("hard", |u| u * u * u, 0.25),
            ("easy", |u| 1.0 - 0.2 * u, 0.9),
            ("alike", |_| 0.6, 0.6),
        ];
        println!("confidence, problems, samples, population: coverage, mean width");
        for (confidence, problems, samples) in
            [(0.95, 30, 1), (0.95, 30, 4), (0.95, 30, 16), (0.95, 500, 1), (0.9, 30, 16), (0.95, 40, 16), (0.8, 100, 4)]
        {
            for (name, draw, truth) in populations {
                let (mut covered, mut width) = (0, 0.0);
                for _ in 0..DRAWS {
                    let share = |state: &mut u64| {
                        let chance = draw(uniform(state));
                        (0..samples).filter(|_| uniform(state) < chance).count() as f64 / f64::from(samples)
                    };
                    let shares: Vec<f64> = (0..problems).map(|_| share(&mut state)).collect();
                    let estimate = mean_with_interval(&shares, confidence).unwrap();
                    covered += usize::from(estimate.low <= truth && truth <= estimate.high);
                    width += (estimate.high - estimate.low) / DRAWS as f64;
                }
                let coverage = covered as f64 / DRAWS as f64;
                println!("{confidence} {problems:4} {samples:3} {name:15} {coverage:.3} {width:.3}");
                // Six standard errors of the simulation below; above, what steps of 1/30 and Student's t add for one sample.
                let excess = if samples == 1 && problems < 100 { 0.03 } else { 0.02 };
                let range = confidence - 0.02..=confidence + excess;
                assert!(range.contains(&coverage), "{confidence} {problems} {samples} {name}: {coverage}");
            }
        }
    }

    #[test]
    fn intervals_have_width_and_stay_inside() {
        for shares in [vec![0.0; 30], vec![1.0; 30], vec![0.5; 30], vec![1.0, 0.0], vec![1.0], vec![0.25; 2]] {
            let estimate = mean_with_interval(&shares, 0.95).unwrap();
            assert!(0.0 <= estimate.low && estimate.low <= estimate.mean && estimate.mean <= estimate.high, "{estimate:?}");
            assert!(estimate.high <= 1.0 && estimate.high - estimate.low > 0.05, "{estimate:?}");
        }
        // Without clustering it is Wilson's interval: 6 of 30 at 95 % is 0.095 … 0.373, a little wider for t.
        let shares: Vec<f64> = (0..30).map(|i| f64::from(i < 6)).collect();
        let estimate = mean_with_interval(&shares, 0.95).unwrap();
        assert!((estimate.low - 0.093).abs() < 0.003 && (estimate.high - 0.377).abs() < 0.008, "{estimate:?}");
        assert_eq!(mean_with_interval(&[], 0.95), None);
        assert_eq!(mean_with_interval(&[0.5, f64::NAN], 0.95), None);
        assert_eq!(mean_with_interval(&[0.5], 1.0), None);
    }

    #[test]
    fn quantiles_of_tables() {
        for (p, z) in [(0.975, 1.959964), (0.95, 1.644854), (0.995, 2.575829), (0.5, 0.0), (0.001, -3.090232), (0.9, 1.281552)]
        {
            assert!((normal_quantile(p) - z).abs() < 1e-6, "{p}");
        }
        for (freedom, t) in [(6.0, 2.446912), (10.0, 2.228139), (29.0, 2.045230), (100.0, 1.983972)] {
            assert!((t_quantile(0.975, freedom) / t - 1.0).abs() < 1e-3, "{freedom}: {}", t_quantile(0.975, freedom));
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
    fn equal_answers_form_a_group() {
        let answers = [Some("1/2"), None, Some("0.5"), Some("3"), Some("1/2")];
        let numbers = |text: &str| if text == "1/2" { 0.5 } else { text.parse().unwrap() };
        let groups = group(&answers, |a, b| numbers(a) == numbers(b));
        let samples: Vec<&[usize]> = groups.iter().map(|group| group.samples.as_slice()).collect();
        assert_eq!(samples, [&[0, 2, 4][..], &[3]]);
    }
}
