//! Which chains are trained on: a gate, the best chain of each problem, a ranking, and from its top as many as are wanted, balanced and without repetition. A pure
//! function of the chains and the seed: their order does not matter.

use super::choice::Choice;
use super::normalise::mix;
use super::ranks::mid_ranks;
use std::collections::{BTreeMap, HashMap};

/// A chain that could be chosen.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Candidate {
    /// The id of its problem.
    pub id: String,
    /// The text of its problem.
    pub problem: String,
    /// A hash of all that is written of it: with the seed it decides between equals.
    pub hash: u64,
    /// From 0, better is more.
    pub score: f64,
    /// Whether its answer is right; none if nobody graded it.
    pub correct: Option<bool>,
    /// How far the problem is from what the base model knows, better is more; none if nobody measured it.
    pub novelty: Option<f64>,
    /// Its value of each key of [`Options::balance`], in that order.
    pub groups: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// How many problems are wanted.
    pub top: usize,
    /// Decides between equals.
    pub seed: u64,
    /// Whether chains that nobody graded may be chosen. Wrong ones never are.
    pub ungraded: bool,
    /// What novelty weighs beside the score: both count as shares of the ranking, the score with 1 less this.
    pub novelty: f64,
    /// Names of what is balanced, as subject, level and source.
    pub balance: Vec<String>,
    /// A problem is left out if it shares this much of its five-word runs (Jaccard) with a chosen one.
    pub likeness: f64,
}

/// Why a chain was not chosen.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    Wrong,
    NotGraded,
    /// Another chain of its problem is better.
    NotTheBest,
    /// Its problem is like a chosen one: that one's id, and how like.
    Like {
        id: String,
        likeness: f64,
    },
    /// As many as are wanted were better, or as many of its group.
    BelowTheTop,
}

/// What became of the candidates, by their numbers.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Selection {
    /// Best first.
    pub chosen: Vec<usize>,
    pub dropped: Vec<(usize, Reason)>,
}

/// See the head of this file.
pub fn select(candidates: &[Candidate], options: &Options) -> Selection {
    let mut selection = Selection::default();
    let gate = |candidate: &Candidate| match candidate.correct {
        Some(false) => Some(Reason::Wrong),
        None if !options.ungraded => Some(Reason::NotGraded),
        _ => None,
    };
    let ties: Vec<u64> = candidates.iter().map(|candidate| tie(candidate, options.seed)).collect();
    let mut best: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, candidate) in candidates.iter().enumerate() {
        if let Some(reason) = gate(candidate) {
            selection.dropped.push((at, reason));
            continue;
        }
        let better = |other: &usize| {
            let by_score = known(candidate.score).total_cmp(&known(candidates[*other].score));
            by_score.then(ties[at].cmp(&ties[*other])).is_gt()
        };
        let kept = best.entry(candidate.id.as_str()).or_insert(at);
        let loser = if *kept == at {
            continue;
        } else if better(kept) {
            std::mem::replace(kept, at)
        } else {
            at
        };
        selection.dropped.push((loser, Reason::NotTheBest));
    }
    let ranking = ranking(candidates, best.into_values().collect(), &ties, options.novelty);
    let problems = ranking.iter().map(|&at| candidates[at].problem.as_str()).collect();
    let mut choice = Choice::new(problems, options.likeness);
    choice.fill(options.top);
    if !options.balance.is_empty() {
        choice.balance(&ranking.iter().map(|&at| candidates[at].groups.as_slice()).collect::<Vec<_>>());
    }
    selection.chosen = choice.chosen().map(|place| ranking[place]).collect();
    let mut left: BTreeMap<usize, Reason> = ranking.iter().map(|&at| (at, Reason::BelowTheTop)).collect();
    selection.chosen.iter().for_each(|at| drop(left.remove(at)));
    for (place, (other, likeness)) in choice.alike {
        left.insert(ranking[place], Reason::Like { id: candidates[ranking[other]].id.clone(), likeness });
    }
    selection.dropped.extend(left);
    selection.dropped.sort_by_key(|(at, _)| *at);
    selection
}

/// Decides between equals.
fn tie(candidate: &Candidate, seed: u64) -> u64 {
    mix(candidate.hash ^ mix(seed))
}

/// What is no number is the worst.
fn known(score: f64) -> f64 {
    if score.is_nan() { f64::NEG_INFINITY } else { score }
}

/// Best first.
fn ranking(candidates: &[Candidate], mut numbers: Vec<usize>, ties: &[u64], novelty: f64) -> Vec<usize> {
    // Both as ranks, so that they are of one scale.
    let ranks = |of: &dyn Fn(&Candidate) -> f64| {
        let ranks = mid_ranks(&numbers.iter().map(|&at| of(&candidates[at])).collect::<Vec<_>>());
        numbers.iter().copied().zip(ranks).collect::<HashMap<usize, f64>>()
    };
    let (by_score, by_novelty) =
        (ranks(&|candidate| candidate.score), ranks(&|candidate| candidate.novelty.unwrap_or(f64::NAN)));
    let value = |at: &usize| (1.0 - novelty) * by_score[at] + novelty * by_novelty[at];
    numbers.sort_by(|a, b| value(b).total_cmp(&value(a)).then(ties[*b].cmp(&ties[*a])));
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: usize, chain: &str, score: f64) -> Candidate {
        let words = ["How", "many", "apples", "weigh"].map(|word| format!("{word}{}", "x".repeat(id)));
        Candidate {
            id: format!("p{id}"),
            problem: words.join(" "),
            hash: xxhash_rust::xxh3::xxh3_64(format!("{id} {chain}").as_bytes()),
            score,
            correct: Some(true),
            ..Candidate::default()
        }
    }

    fn options(top: usize) -> Options {
        Options { top, seed: 7, ungraded: false, novelty: 0.0, balance: Vec::new(), likeness: 0.5 }
    }

    fn names(candidates: &[Candidate], selection: &Selection) -> Vec<(String, u64)> {
        selection.chosen.iter().map(|&at| (candidates[at].id.clone(), candidates[at].hash)).collect()
    }

    #[test]
    fn the_best_right_chain_of_each_problem() {
        let mut candidates = vec![
            candidate(1, "a", 0.2),
            candidate(1, "b", 0.9),
            candidate(1, "c", 0.5),
            candidate(2, "d", 0.4),
            candidate(3, "e", f64::NAN),
            candidate(4, "f", 1.0),
        ];
        candidates[1].correct = Some(false);
        candidates[5].correct = None;
        let selection = select(&candidates, &options(10));
        assert_eq!(selection.chosen, [2, 3, 4]);
        assert_eq!(selection.dropped, [(0, Reason::NotTheBest), (1, Reason::Wrong), (5, Reason::NotGraded)]);
        let selection = select(&candidates, &Options { ungraded: true, ..options(2) });
        assert_eq!(selection.chosen, [5, 2]);
        assert!(selection.dropped.contains(&(3, Reason::BelowTheTop)));
        assert_eq!(select(&[], &options(3)), Selection::default());
        assert!(select(&candidates, &options(0)).chosen.is_empty());
    }

    /// Every candidate is chosen or dropped, once, and their order decides nothing.
    #[test]
    fn order_does_not_matter() {
        let mut state = 1u64;
        let mut random = move |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        let make = |random: &mut dyn FnMut(u64) -> u64| {
            let mut candidate = candidate(random(60) as usize, &format!("chain {}", random(8)), random(5) as f64);
            candidate.correct = [Some(true), Some(true), Some(false), None][random(4) as usize];
            candidate.groups = vec![format!("s{}", random(3)), format!("l{}", random(4))];
            candidate.novelty = (random(3) > 0).then(|| random(6) as f64);
            candidate
        };
        let mut candidates: Vec<Candidate> = (0..200).map(|_| make(&mut random)).collect();
        candidates.sort_by_key(|candidate| candidate.hash);
        candidates.dedup_by_key(|candidate| candidate.hash);
        let options = Options { balance: vec!["subject".into(), "level".into()], novelty: 0.3, ..options(20) };
        let expected = select(&candidates, &options);
        assert_eq!(expected.chosen.len() + expected.dropped.len(), candidates.len());
        let expected = names(&candidates, &expected);
        assert_eq!(expected.len(), 20);
        let mut differs = false;
        for seed in 0..20 {
            for i in (1..candidates.len()).rev() {
                candidates.swap(i, random(i as u64 + 1) as usize);
            }
            assert_eq!(names(&candidates, &select(&candidates, &options)), expected);
            differs |= names(&candidates, &select(&candidates, &Options { seed, ..options.clone() })) != expected;
        }
        assert!(differs, "the seed decides between equals");
    }

    #[test]
    fn groups_are_even_where_they_can_be() {
        let group = |id: usize| {
            if id < 20 {
                "a"
            } else if id < 30 {
                "b"
            } else {
                "c"
            }
        };
        let make = |id: usize| Candidate { groups: vec![group(id).to_string()], ..candidate(id, "", 100.0 - id as f64) };
        let candidates: Vec<Candidate> = (0..33).map(make).collect();
        let balanced = Options { balance: vec!["subject".into()], ..options(14) };
        let selection = select(&candidates, &balanced);
        let count = |name: &str| selection.chosen.iter().filter(|&&at| candidates[at].groups[0] == name).count();
        assert_eq!((count("a"), count("b"), count("c")), (6, 5, 3));
        assert!(selection.chosen.is_sorted(), "best first");
        assert_eq!(select(&candidates, &options(14)).chosen, (0..14).collect::<Vec<_>>());
        let all = select(&candidates, &Options { top: 100, ..balanced });
        assert_eq!(all.chosen.len(), 33);
    }

    #[test]
    fn keys_that_are_at_odds_leave_enough() {
        // Subjects ask for half of each, and so do levels, but all of x is hard.
        let make = |id: usize| Candidate {
            groups: if id < 5 {
                vec!["x".into(), "hard".into()]
            } else {
                vec!["y".into(), if id < 6 { "easy" } else { "hard" }.into()]
            },
            ..candidate(id, "", 10.0 - id as f64)
        };
        let candidates: Vec<Candidate> = (0..10).map(make).collect();
        let selection = select(&candidates, &Options { balance: vec!["subject".into(), "level".into()], ..options(8) });
        assert_eq!(selection.chosen.len(), 8);
        assert!(selection.chosen.contains(&5), "the only easy one");
        assert_eq!(selection.chosen.iter().filter(|&&at| at < 5).count(), 4);
    }

    /// Six subjects by five levels, of very different sizes: as even as a search over all tables allows.
    #[test]
    fn two_keys_are_even_together() {
        let make = |id: usize| {
            let (subject, level) = (id % 6 * (id % 7) % 6, id * id % 5);
            Candidate { groups: vec![format!("s{subject}"), format!("l{level}")], ..candidate(id, "", (id * 37 % 300) as f64) }
        };
        let candidates: Vec<Candidate> = (0..300).map(make).collect();
        let selection = select(&candidates, &Options { balance: vec!["s".into(), "l".into()], likeness: 1.0, ..options(30) });
        let sizes = |key: usize| {
            let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
            candidates.iter().for_each(|candidate| _ = sizes.entry(&candidate.groups[key]).or_default());
            selection.chosen.iter().for_each(|&at| *sizes.entry(&candidates[at].groups[key]).or_default() += 1);
            sizes.into_values().collect::<Vec<_>>()
        };
        assert_eq!(sizes(0), [5; 6]);
        // Level 2 and 3 are no squares modulo 5.
        assert_eq!(sizes(1), [10; 3]);
    }

    #[test]
    fn problems_that_are_alike_come_once() {
        let text = "A train leaves the station at noon and travels sixty miles an hour toward the sea for three hours";
        let mut candidates = vec![candidate(1, "", 0.5), candidate(2, "", 0.9), candidate(3, "", 0.7)];
        candidates[0].problem = text.to_string();
        candidates[1].problem = text.replace("noon", "night");
        candidates[2].problem = "小明有五个苹果，他给了小红两个，还剩几个苹果？".to_string();
        let selection = select(&candidates, &options(3));
        assert_eq!(selection.chosen, [1, 2]);
        let Reason::Like { id, likeness } = &selection.dropped[0].1 else { panic!("{selection:?}") };
        assert!(id == "p2" && (0.5..0.6).contains(likeness), "{likeness}");
        assert_eq!(select(&candidates, &Options { likeness: 0.6, ..options(3) }).chosen.len(), 3);
    }

    /// What is not chosen keeps nothing out.
    #[test]
    fn only_chosen_problems_are_repeated() {
        let text = "A train leaves the station at noon and travels sixty miles an hour toward the sea for three hours";
        let make = |id: usize, group: &str, problem: &str| Candidate {
            problem: problem.to_string(),
            groups: vec![group.to_string()],
            ..candidate(id, "", -(id as f64))
        };
        let other = "How many apples weigh as much as seven pears and a plum?";
        let candidates = [make(1, "x", other), make(2, "x", text), make(3, "y", &text.replace("noon", "night"))];
        let balanced = Options { balance: vec!["subject".into()], ..options(2) };
        assert_eq!(select(&candidates, &balanced).chosen, [0, 2]);
        assert_eq!(select(&candidates, &options(1)).dropped, [(1, Reason::BelowTheTop), (2, Reason::BelowTheTop)]);
        assert!(matches!(select(&candidates, &options(3)).dropped[..], [(2, Reason::Like { .. })]));
    }

    /// A phrase that all problems have does not make the search quadratic.
    #[test]
    fn many_problems_that_share_a_phrase_take_little_time() {
        let make = |id: usize| Candidate {
            problem: format!(
                "{} can be written as m over n where m and n are relatively prime positive integers find their sum",
                (0..9).map(|at| format!("w{} ", mix((id * 10 + at) as u64))).collect::<String>()
            ),
            ..candidate(id % 20, &id.to_string(), id as f64)
        };
        let candidates: Vec<Candidate> = (0..20_000).map(|id| Candidate { id: id.to_string(), ..make(id) }).collect();
        let begun = std::time::Instant::now();
        let selection = select(&candidates, &Options { likeness: 0.9, ..options(800) });
        assert_eq!((selection.chosen.len(), selection.dropped.len()), (800, 19_200));
        assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    }

    #[test]
    fn novelty_weighs_what_it_is_told() {
        let make = |id: usize| Candidate { novelty: Some(id as f64), ..candidate(id, "", -(id as f64)) };
        let candidates: Vec<Candidate> = (0..5).map(make).collect();
        assert_eq!(select(&candidates, &Options { novelty: 0.4, ..options(2) }).chosen, [0, 1]);
        assert_eq!(select(&candidates, &Options { novelty: 0.6, ..options(2) }).chosen, [4, 3]);
    }
}
