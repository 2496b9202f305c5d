//! Where in a text most of a problem stands.

use super::normalise::gram_hashes;
use rustc_hash::FxHashMap;

/// Places of one run in a problem that count: a problem that repeats a word would else take time that grows with its square.
const MOST_PLACES: usize = 64;

/// The words of the text from `start` to `end`.
pub(super) struct Stretch {
    pub start: usize,
    pub end: usize,
    /// The weight of the words that shared runs cover.
    pub covered: f64,
}

/// Which words lie in some run of a moving set, and what they weigh together.
struct Cover {
    weights: Vec<f64>,
    /// The runs that each word lies in.
    runs: Vec<u32>,
    weight: f64,
}

impl Cover {
    fn new(weights: impl Iterator<Item = f64>) -> Cover {
        let weights: Vec<f64> = weights.collect();
        Cover { runs: vec![0; weights.len()], weights, weight: 0.0 }
    }

    fn add(&mut self, start: usize, n: usize) {
        for word in start..start + n {
            self.weight += if self.runs[word] == 0 { self.weights[word] } else { 0.0 };
            self.runs[word] += 1;
        }
    }

    fn remove(&mut self, start: usize, n: usize) {
        for word in start..start + n {
            self.runs[word] -= 1;
            self.weight -= if self.runs[word] == 0 { self.weights[word] } else { 0.0 };
        }
    }
}

/// The stretch of `text`, at most half longer than `problem`, that shares the runs of `n` words which cover most of the problem. Both are hashes of words.
pub(super) fn best_stretch(problem: &[u64], text: &[u64], n: usize, weight: impl Fn(u64) -> f64) -> Stretch {
    let mut places: FxHashMap<u64, Vec<usize>> = FxHashMap::default();
    for (at, gram) in gram_hashes(problem, n).enumerate() {
        let places = places.entry(gram).or_default();
        if places.len() < MOST_PLACES {
            places.push(at);
        }
    }
    let shared: Vec<Option<&Vec<usize>>> = gram_hashes(text, n).map(|gram| places.get(&gram)).collect();
    let mut theirs = Cover::new(problem.iter().map(|word| weight(*word)));
    let mut ours = Cover::new(text.iter().map(|word| weight(*word)));
    let mut best = Stretch { start: 0, end: 0, covered: 0.0 };
    let mut start = 0;
    for at in 0..shared.len() {
        let Some(places) = shared[at] else { continue };
        places.iter().for_each(|place| theirs.add(*place, n));
        ours.add(at, n);
        while at + n - start > problem.len() + problem.len() / 2 {
            if let Some(places) = shared[start] {
                places.iter().for_each(|place| theirs.remove(*place, n));
                ours.remove(start, n);
            }
            start += 1;
        }
        // A run of the text that the problem repeats counts once.
        let covered = theirs.weight.min(ours.weight);
        if covered > best.covered {
            let first = (start..=at).find(|start| shared[*start].is_some()).unwrap_or(start);
            best = Stretch { start: first, end: at + n, covered };
        }
    }
    best
}
