//! Drawn tokens against the exact distribution, which is computed here in f64 by sorting.

use limo_engine::ops::cpu::Cpu;
use limo_engine::ops::{DrawTokens, FeedTokens, Narrowing, Ops};
use limo_engine::tensor::{DType, Tensor};
use limo_engine::testing::random::Random;
use limo_engine::testing::sampling::{Case, GREEDY_CASES, NARROWED_CASES, PLAIN_CASES};
use std::ops::Range;

const NONE: Narrowing = Narrowing::NONE;

/// One distribution: a row of logits, what narrows it, the tokens that its sequence holds, and how many ids are tokens.
#[derive(Clone)]
struct Distribution {
    logits: Vec<f32>,
    vocabulary: usize,
    narrowing: Narrowing,
    seen: Vec<usize>,
}

impl Distribution {
    fn new(logits: Vec<f32>, narrowing: Narrowing) -> Self {
        Distribution { vocabulary: logits.len(), logits, narrowing, seen: Vec::new() }
    }

    /// The probability of every id.
    fn exact(&self) -> Vec<f64> {
        let Narrowing { temperature, top_k, top_p, min_p, repetition_penalty } = self.narrowing;
        let penalised = |i: usize| match f64::from(self.logits[i]) {
            x if !self.seen.contains(&i) => x,
            x if x > 0.0 => x / f64::from(repetition_penalty),
            x => x * f64::from(repetition_penalty),
        };
        let scores: Vec<f64> = (0..self.vocabulary).map(|i| penalised(i) / f64::from(temperature)).collect();
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let max = scores[order[0]];
        let weight = |i: usize| (scores[i] - max).exp();
        // How far down the order the tokens reach that tie with the last of the first `count`.
        let with_ties =
            |count: usize| count + order[count..].iter().take_while(|&&i| scores[i] == scores[order[count - 1]]).count();
        let mut count = order.len();
        if top_k > 0 && (top_k as usize) < count {
            count = with_ties(top_k as usize);
        }
        if top_p < 1.0 {
            let total: f64 = order[..count].iter().map(|&i| weight(i)).sum();
            let mut mass = 0.0;
            let reaching = order[..count].iter().position(|&i| {
                mass += weight(i);
                mass >= f64::from(top_p) * total
            });
            count = with_ties(reaching.unwrap() + 1);
        }
        let mut probabilities = vec![0.0; self.logits.len()];
        for &i in order[..count].iter().filter(|&&i| weight(i) >= f64::from(min_p)) {
            probabilities[i] = weight(i);
        }
        let total: f64 = probabilities.iter().sum();
        probabilities.iter_mut().for_each(|p| *p /= total);
        probabilities
    }

    /// How often each id is drawn by the counters in a range.
    fn counts(&self, key: u64, counters: Range<usize>) -> Vec<u64> {
        const BATCH: usize = 1000;
        let width = self.logits.len();
        let logits = Tensor::from_f32(&self.logits.repeat(BATCH), &[BATCH, width]);
        let mut tokens = Tensor::host(DType::I32, &[BATCH]);
        let words = width.div_ceil(32);
        let mut bits = vec![0; words];
        self.seen.iter().for_each(|&token| bits[token / 32] |= 1 << (token % 32));
        let mut seen = Tensor::host(DType::I32, &[BATCH, words]);
        let mut counts = vec![0; width];
        for first in counters.clone().step_by(BATCH) {
            let rows: Vec<i32> = (0..BATCH).flat_map(|i| row(key, (first + i) as u32, i as i32)).collect();
            if self.narrowing.repetition_penalty != 1.0 {
                seen.view_mut().i32().copy_from_slice(&bits.repeat(BATCH));
            }
            draw(&logits, self, &Tensor::from_i32(&rows, &[BATCH, 4]), Some(&mut seen), &mut tokens, None);
            let drawn = &tokens.view().i32()[..BATCH.min(counters.end - first)];
            drawn.iter().for_each(|&token| counts[token as usize] += 1);
        }
        counts
    }
}

fn row(key: u64, counter: u32, seen: i32) -> [i32; 4] {
    [key as i32, (key >> 32) as i32, counter as i32, seen]
}

fn draw(
    logits: &Tensor,
    of: &Distribution,
    rows: &Tensor,
    seen: Option<&mut Tensor>,
    tokens: &mut Tensor,
    log_probabilities: Option<&mut Tensor>,
) {
    let op = DrawTokens {
        logits: logits.view(),
        vocabulary: of.vocabulary,
        narrowing: of.narrowing,
        rows: rows.view(),
        seen: seen.map(Tensor::view_mut),
        tokens: tokens.view_mut(),
        log_probabilities: log_probabilities.map(Tensor::view_mut),
    };
    Cpu.draw_tokens(op).unwrap();
}

/// How many deviations a χ² statistic of counts lies above its mean (Wilson & Hilferty 1931). Ids of fewer than ten expected draws are counted together.
fn deviations(counts: &[u64], probabilities: &[f64]) -> f64 {
    let draws = counts.iter().sum::<u64>() as f64;
    let (mut rest, mut statistic, mut cells) = ([0.0; 2], 0.0, 0);
    let mut add = |found: f64, expected: f64| {
        statistic += (found - expected).powi(2) / expected;
        cells += 1;
    };
    for (&count, &p) in counts.iter().zip(probabilities) {
        if p * draws < 10.0 {
            rest[0] += count as f64;
            rest[1] += p * draws;
        } else {
            add(count as f64, p * draws);
        }
    }
    if rest[1] > 0.0 {
        add(rest[0], rest[1]);
    }
    if cells < 2 {
        return 0.0;
    }
    let ninth = 2.0 / (9.0 * f64::from(cells - 1));
    ((statistic / f64::from(cells - 1)).cbrt() - (1.0 - ninth)) / ninth.sqrt()
}

/// A probability of 10⁻⁶.
const BOUND: f64 = 4.753;
const DRAWS: usize = 1_000_000;
/// Of the vocabulary; behind it come padding rows with huge logits.
const VOCABULARY: usize = 160;

/// 40 strands of four tokens, three of which every prompt holds.
fn ordinary(narrowing: Narrowing) -> Distribution {
    let mut random = Random::new(7);
    let mut logits: Vec<f32> = (0..VOCABULARY).map(|_| (1.5 * random.normal()) as f32).collect();
    (logits[130], logits[131], logits[117]) = (4.0, 3.5, 3.0);
    logits.extend([1e3; 13]);
    Distribution { logits, vocabulary: VOCABULARY, narrowing, seen: vec![3, 130, 117] }
}

/// Draws tokens and holds them against the exact probabilities: nothing is drawn that must not be, nothing is missing, and χ² is within its bound.
fn check_draws(draws: usize, name: &str, of: &Distribution) -> Vec<u64> {
    let (counts, exact) = (of.counts(0x1234_5678_9abc_def0, 0..draws), of.exact());
    for (token, (&count, &p)) in counts.iter().zip(&exact).enumerate() {
        assert!(p > 0.0 || count == 0, "{name}: token {token} was drawn {count} times and must not be");
        assert!(p * (draws as f64) < 30.0 || count > 0, "{name}: token {token} of probability {p} was never drawn");
    }
    let deviations = deviations(&counts, &exact);
    println!(
        "{name}: χ² lies {deviations:.2} deviations above its mean, {} tokens",
        exact.iter().filter(|&&p| p > 0.0).count()
    );
    assert!(deviations < BOUND, "{name}: {deviations} deviations");
    counts
}

fn check(name: &str, of: &Distribution) -> Vec<u64> {
    check_draws(DRAWS, name, of)
}

#[test]
fn temperatures_draw_the_exact_distribution() {
    let counts = check("plain", &ordinary(NONE));
    check("cold", &ordinary(Narrowing { temperature: 0.3, ..NONE }));
    check("hot", &ordinary(Narrowing { temperature: 1.7, ..NONE }));
    check("a penalty", &ordinary(Narrowing { repetition_penalty: 1.4, ..NONE }));

    // And the comparison would have noticed.
    for temperature in [0.99, 1.01] {
        let other = ordinary(Narrowing { temperature, ..NONE }).exact();
        assert!(deviations(&counts, &other) > 2.0 * BOUND);
    }
    assert!(deviations(&counts, &biased(&ordinary(NONE), |token| token % 2 == 0, 1.03)) > BOUND);
}

/// The exact distribution, but that some tokens are likelier.
fn biased(of: &Distribution, some: impl Fn(usize) -> bool, factor: f64) -> Vec<f64> {
    let factors = |(i, p): (usize, f64)| if some(i) { factor * p } else { p };
    let weights: Vec<f64> = of.exact().into_iter().enumerate().map(factors).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

#[test]
fn top_k_draws_the_exact_distribution() {
    for (top_k, temperature) in [(1, 1.0), (5, 1.3), (50, 1.0)] {
        let of = ordinary(Narrowing { top_k, temperature, ..NONE });
        let counts = check(&format!("top-k {top_k}"), &of);
        assert_eq!(counts.iter().filter(|&&count| count > 0).count(), top_k as usize);
        assert!(top_k != 5 || deviations(&counts, &biased(&of, |token| token == 130, 1.02)) > BOUND);
    }
}

#[test]
fn top_p_draws_the_exact_distribution() {
    for (top_p, temperature) in [(0.1, 1.7), (0.9, 1.0), (0.95, 1.0), (0.999, 1.0)] {
        check(&format!("top-p {top_p}"), &ordinary(Narrowing { top_p, temperature, ..NONE }));
    }
}

#[test]
fn combinations_draw_the_exact_distribution() {
    check("min-p", &ordinary(Narrowing { min_p: 0.05, ..NONE }));
    check("top-k, top-p", &ordinary(Narrowing { top_k: 50, top_p: 0.9, ..NONE }));
    check("top-p, min-p", &ordinary(Narrowing { top_p: 0.9, min_p: 0.1, temperature: 1.7, ..NONE }));
    let all = Narrowing { temperature: 0.7, top_k: 50, top_p: 0.95, min_p: 0.01, repetition_penalty: 1.2 };
    check("all", &ordinary(all));
}

/// Several quads a strand.
#[test]
fn long_strands_draw_the_exact_distribution() {
    let mut random = Random::new(8);
    let logits: Vec<f32> = (0..2101).map(|_| random.normal() as f32).collect();
    let of = Distribution::new(logits, Narrowing { top_p: 0.9, ..NONE });
    check_draws(DRAWS / 4, "long strands, top-p", &of);
    check_draws(DRAWS / 4, "long strands", &Distribution { narrowing: NONE, ..of });
}

/// The tokens that are drawn of a hostile row, of which 5000 draws miss none.
#[test]
fn hostile_rows_draw_exactly_what_they_may() {
    let infinite = f32::NEG_INFINITY;
    let top_k = |top_k| Narrowing { top_k, ..NONE };
    let top_p = |top_p| Narrowing { top_p, ..NONE };
    let min_p = |min_p| Narrowing { min_p, ..NONE };
    let far_apart = (0..4200).map(|i| if [5, 2053, 4101].contains(&i) { 9.0 - i as f32 / 4096.0 } else { 0.0 }).collect();
    let ties = vec![1.0, 3.0, 2.0, 2.0, 1.0, 2.0, 0.5];
    let cases: [(&str, Vec<f32>, Narrowing, &[i32]); 21] = [
        ("ties at the k-th largest stay", ties.clone(), top_k(2), &[1, 2, 3, 5]),
        ("ties within the k largest", ties.clone(), top_k(4), &[1, 2, 3, 5]),
        ("the largest alone", ties.clone(), top_k(1), &[1]),
        ("equal largest", vec![2.0, 5.0, 5.0], top_k(1), &[1, 2]),
        ("k beyond the vocabulary", ties.clone(), top_k(1000), &[0, 1, 2, 3, 4, 5, 6]),
        ("the k largest far apart in one strand", far_apart, top_k(2), &[5, 2053]),
        ("ties at the last of top-p stay", ties.clone(), top_p(0.45), &[1, 2, 3, 5]),
        ("top-p below the largest's share", ties.clone(), top_p(0.01), &[1]),
        ("top-p of a flat row keeps all", vec![0.25; 9], top_p(0.5), &[0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (
            "top-p of what top-k kept",
            vec![0.0; 4].into_iter().chain([9.0, 8.0, 7.0]).collect(),
            Narrowing { top_k: 3, top_p: 0.9, ..NONE },
            &[4, 5],
        ),
        ("min-p just met", vec![0.0, 2f32.ln(), 4f32.ln()], min_p(0.499), &[1, 2]),
        ("min-p just missed", vec![0.0, 2f32.ln(), 4f32.ln()], min_p(0.501), &[2]),
        ("min-p of 1", vec![1.0, 2.0, 2.0], min_p(1.0), &[1, 2]),
        ("one of all", vec![infinite, infinite, -7.0, infinite], NONE, &[2]),
        (
            "one of all, narrowed",
            vec![infinite, infinite, -7.0, infinite],
            Narrowing { top_k: 2, top_p: 0.5, min_p: 0.5, ..NONE },
            &[2],
        ),
        ("top-k of more than are finite", vec![infinite, 1.0, infinite, 1.5, infinite], top_k(3), &[1, 3]),
        ("huge", vec![1e4, -1e4, 1e4 - 1.0, 1e30f32.sqrt()], NONE, &[3]),
        ("huge and equal", vec![1e4, -1e4, 1e4, 0.0], top_p(0.6), &[0, 2]),
        ("the whole range", vec![f32::MAX, f32::MIN, 0.0], top_p(0.9), &[0]),
        ("zeros of both signs", vec![0.0, -0.0, -1.0, -0.0], top_k(2), &[0, 1, 3]),
        ("zeros of both signs, from the other", vec![-0.0, -1.0, 0.0], top_p(0.5), &[0, 2]),
    ];
    for (name, logits, narrowing, expected) in cases {
        let of = Distribution::new(logits, narrowing);
        let counts = of.counts(3, 0..5000);
        let drawn: Vec<i32> = (0..counts.len() as i32).filter(|&i| counts[i as usize] > 0).collect();
        assert_eq!(drawn, expected, "{name}: {counts:?}");
    }
}

/// Pairs of draws from 32 equal tokens: the first word chooses of eight strands, the second of four tokens.
#[test]
fn neighbouring_keys_counters_and_words_are_independent() {
    const PAIRS: usize = 200_000;
    let of = Distribution::new(vec![1.0; 32], NONE);
    let logits = Tensor::from_f32(&vec![1.0; 32 * PAIRS], &[PAIRS, 32]);
    let drawn = |name: &dyn Fn(usize) -> (u64, u32)| -> Vec<usize> {
        let rows: Vec<i32> = (0..PAIRS).flat_map(|i| row(name(i).0, name(i).1, 0)).collect();
        let mut tokens = Tensor::host(DType::I32, &[PAIRS]);
        draw(&logits, &of, &Tensor::from_i32(&rows, &[PAIRS, 4]), None, &mut tokens, None);
        tokens.view().i32().iter().map(|&token| token as usize).collect()
    };
    let independent = |what: &str, a: &[usize], b: &[usize]| {
        let mut counts = vec![0; 32 * 32];
        a.iter().zip(b).for_each(|(a, b)| counts[32 * a + b] += 1);
        let deviations = deviations(&counts, &[1.0 / 1024.0; 1024]);
        assert!(deviations < BOUND, "{what}: {deviations} deviations");
    };
    const KEY: u64 = 0xfeed_beef_0102_0304;
    let counters = drawn(&|i| (KEY, i as u32));
    for bit in [0, 1, 31, 32, 63] {
        independent(&format!("keys that differ in bit {bit}"), &counters, &drawn(&|i| (KEY ^ 1 << bit, i as u32)));
    }
    independent("successive counters", &counters, &counters.iter().copied().skip(1).chain([counters[0]]).collect::<Vec<_>>());
    let keys = drawn(&|i| (i as u64, 9));
    independent("successive keys", &keys, &drawn(&|i| (i as u64 + 1, 9)));
    independent("keys and counters", &keys, &counters);
    // One draw's words: strand and place in it.
    let mut counts = vec![0; 32];
    counters.iter().for_each(|&token| counts[token] += 1);
    assert!(deviations(&counts, &[1.0 / 32.0; 32]) < BOUND);
}

/// What a case draws: tokens, and log-probabilities as bits.
fn drawn(case: &Case, order: &[usize]) -> Vec<(i32, u32)> {
    let (logits, states, seen) = case.inputs();
    let pick = |values: &[f32], width: usize| -> Vec<f32> {
        order.iter().flat_map(|&row| &values[row * width..][..width]).copied().collect()
    };
    let states: Vec<i32> = order.iter().flat_map(|&row| &states[row * 4..][..4]).copied().collect();
    let (rows, words) = (order.len(), case.width.div_ceil(32));
    let mut seen = Tensor::from_i32(&seen, &[case.rows, words]);
    let (mut tokens, mut values) = (Tensor::host(DType::I32, &[rows]), Tensor::host(DType::F32, &[rows]));
    let of = Distribution { logits: Vec::new(), vocabulary: case.vocabulary, narrowing: case.narrowing, seen: Vec::new() };
    let logits = Tensor::from_f32(&pick(&logits, case.width), &[rows, case.width]);
    draw(&logits, &of, &Tensor::from_i32(&states, &[rows, 4]), Some(&mut seen), &mut tokens, Some(&mut values));
    tokens.view().i32().iter().copied().zip(values.view().f32().iter().map(|value| value.to_bits())).collect()
}

#[test]
fn draws_depend_on_neither_threads_nor_batch() {
    let wide = Case { width: 9001, vocabulary: 8999, rows: 7, ..PLAIN_CASES[0] };
    for case in [PLAIN_CASES[0], NARROWED_CASES[17], wide, Case { narrowing: NARROWED_CASES[17].narrowing, ..wide }] {
        let order: Vec<usize> = (0..case.rows).collect();
        let expected = drawn(&case, &order);
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| drawn(&case, &order)), expected, "{threads} threads");
        }
        let mut shuffled = order.clone();
        Random::new(5).shuffle(&mut shuffled);
        let permuted: Vec<(i32, u32)> = shuffled.iter().map(|&row| expected[row]).collect();
        assert_eq!(drawn(&case, &shuffled), permuted);
        order.iter().for_each(|&row| assert_eq!(drawn(&case, &[row]), [expected[row]], "row {row} alone"));
    }
}

/// The table of the kernels, with its oracle, on the CPU backend.
#[test]
fn the_cpu_passes_the_table_of_the_kernels() {
    let mut sums = [0, 0];
    for case in GREEDY_CASES.iter().chain(&PLAIN_CASES).chain(&NARROWED_CASES) {
        let (logits, states, seen) = case.inputs();
        let mut seen = Tensor::from_i32(&seen, &[case.rows, case.width.div_ceil(32)]);
        let (mut tokens, mut values) = (Tensor::host(DType::I32, &[case.rows]), Tensor::host(DType::F32, &[case.rows]));
        let of = Distribution { logits: Vec::new(), vocabulary: case.vocabulary, narrowing: case.narrowing, seen: Vec::new() };
        let (logits, states) =
            (Tensor::from_f32(&logits, &[case.rows, case.width]), Tensor::from_i32(&states, &[case.rows, 4]));
        draw(&logits, &of, &states, Some(&mut seen), &mut tokens, Some(&mut values));
        let judged = case.judge(tokens.view().i32(), Some(values.view().f32()), seen.view().i32());
        let [drawn, certain] = judged.unwrap_or_else(|error| panic!("{}: {error}", case.name));
        sums = [sums[0] + drawn, sums[1] + certain];
    }
    println!("{} tokens drawn, {} of them with one right answer", sums[0], sums[1]);
    assert!(sums[0] > 300 && sums[1] * 100 >= sums[0] * 97, "{sums:?}");
}

#[test]
fn operands_that_do_not_fit_are_errors() {
    let refused = |narrowing: Narrowing, state: i32| {
        let (logits, rows) = (Tensor::from_f32(&[0.0; 8], &[1, 8]), Tensor::from_i32(&[1, 2, 3, state], &[1, 4]));
        let (mut seen, mut tokens) = (Tensor::host(DType::I32, &[2, 1]), Tensor::host(DType::I32, &[1]));
        let op = DrawTokens {
            logits: logits.view(),
            vocabulary: 8,
            narrowing,
            rows: rows.view(),
            seen: Some(seen.view_mut()),
            tokens: tokens.view_mut(),
            log_probabilities: None,
        };
        Cpu.draw_tokens(op).err().map(|error| error.message)
    };
    let penalty = Narrowing { repetition_penalty: 1.1, ..NONE };
    assert_eq!(refused(penalty, 1), None);
    assert!(refused(penalty, 2).unwrap().contains("row 2 of seen is beyond its 2"));
    for narrowing in [
        Narrowing { temperature: f32::NAN, ..NONE },
        Narrowing { temperature: -1.0, ..NONE },
        Narrowing { top_p: 0.0, ..NONE },
        Narrowing { min_p: 1.5, ..NONE },
        Narrowing { repetition_penalty: 0.0, ..NONE },
    ] {
        assert!(refused(narrowing, 0).is_some(), "{narrowing:?}");
    }
}

#[test]
fn drawn_tokens_are_fed_where_there_is_a_source() {
    let fed = |source: &[i32]| {
        let (tokens, drawn) = (Tensor::from_i32(&[10, 11, 12, 13], &[4]), Tensor::from_i32(&[70, -1, 72], &[3]));
        let (source, mut out) = (Tensor::from_i32(source, &[4]), Tensor::host(DType::I32, &[4]));
        let op = FeedTokens { tokens: tokens.view(), source: source.view(), drawn: drawn.view(), out: out.view_mut() };
        Cpu.feed_tokens(op).map(|()| out.view().i32().to_vec())
    };
    assert_eq!(fed(&[-1, 2, 1, 0]).unwrap(), [10, 72, 0, 70]);
    assert!(fed(&[0, 0, 0, 3]).unwrap_err().message.contains("source 3 is beyond the 3 drawn tokens"));
}
