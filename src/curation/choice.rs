//! The first problems of a ranking, without repetition, made as even over groups as there are problems for.
//!
//! Problems are named by their places in the ranking, the best 0.

use super::normalise::{gram_hash, gram_hashes, normalise, word_hashes};
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Why a problem is left out: the place of a chosen one that it is like, and how like.
pub(super) type Like = (usize, f64);

/// The problems that are chosen so far, and the runs of words in them.
pub(super) struct Choice<'a> {
    /// The text of each problem.
    problems: Vec<&'a str>,
    /// A problem is left out if it shares this much of its runs (Jaccard) with a chosen one.
    likeness: f64,
    /// How many runs each of the chosen ones has.
    sizes: BTreeMap<usize, usize>,
    /// From a run to those that have it.
    holders: FxHashMap<u64, Vec<usize>>,
    /// What was left out because of others.
    pub alike: Vec<(usize, Like)>,
}

impl<'a> Choice<'a> {
    pub fn new(problems: Vec<&'a str>, likeness: f64) -> Choice<'a> {
        Choice { problems, likeness, sizes: BTreeMap::new(), holders: FxHashMap::default(), alike: Vec::new() }
    }

    /// The places of the chosen ones, best first.
    pub fn chosen(&self) -> impl Iterator<Item = usize> {
        self.sizes.keys().copied()
    }

    /// Chooses the first `top`.
    pub fn fill(&mut self, top: usize) {
        for place in 0..self.problems.len() {
            if self.sizes.len() == top {
                return;
            }
            self.add(place);
        }
    }

    /// Adds a problem, unless it is like a chosen one.
    fn add(&mut self, place: usize) -> bool {
        let runs = runs(self.problems[place]);
        let mut shared: FxHashMap<usize, usize> = FxHashMap::default();
        for other in runs.iter().filter_map(|run| self.holders.get(run)).flatten() {
            *shared.entry(*other).or_default() += 1;
        }
        let jaccard =
            |(other, shared): (usize, usize)| (shared as f64 / (runs.len() + self.sizes[&other] - shared) as f64, other);
        // Of equals the better one.
        let nearest = shared.into_iter().map(jaccard).max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        if let Some((likeness, other)) = nearest.filter(|(likeness, _)| *likeness >= self.likeness) {
            self.alike.push((place, (other, likeness)));
            return false;
        }
        self.sizes.insert(place, runs.len());
        runs.into_iter().for_each(|run| self.holders.entry(run).or_default().push(place));
        true
    }

    fn remove(&mut self, place: usize) {
        self.sizes.remove(&place);
        for run in runs(self.problems[place]) {
            self.holders.entry(run).or_default().retain(|other| *other != place);
        }
    }

    /// Swaps chosen problems for others as long as that makes groups more even: as long as the sum of the squares of their sizes falls, over the groups of all keys.
    /// Of the swaps that make it fall most the one that costs least in rank comes first.
    ///
    /// `groups`: of each problem a group for each key. With one key the result is as even as can be; with several, no single swap would make it more so.
    pub fn balance(&mut self, groups: &[&[String]]) {
        let mut cells = self.cells(groups);
        let mut sizes: BTreeMap<(usize, &str), i64> = BTreeMap::new();
        for (names, cell) in &cells {
            for name in names.iter().enumerate().map(|(key, name)| (key, name.as_str())) {
                *sizes.entry(name).or_default() += cell.chosen.len() as i64;
            }
        }
        loop {
            let size = |key: usize, names: &[String]| sizes[&(key, names[key].as_str())];
            let change = |from: &[String], to: &[String]| -> i64 {
                let keys = (0..from.len()).filter(|&key| from[key] != to[key]);
                keys.map(|key| 2 * (size(key, to) - size(key, from)) + 2).sum()
            };
            let swap = |(from, leaves): (&[String], usize)| {
                let others = cells.iter().filter_map(|(to, cell)| Some((*to, *cell.left.front()?)));
                others
                    .map(move |(to, comes)| (from, leaves, to, comes))
                    .map(|(from, leaves, to, comes)| (change(from, to), comes as i64 - leaves as i64, leaves, comes))
                    .min()
            };
            let last = cells.iter().filter_map(|(from, cell)| Some((*from, *cell.chosen.last()?)));
            let Some((change, _, leaves, comes)) = last.filter_map(swap).min() else { return };
            if change >= 0 {
                return;
            }
            self.remove(leaves);
            let added = self.add(comes);
            if !added {
                self.add(leaves);
            }
            if let Some(cell) = cells.get_mut(groups[comes]) {
                cell.left.pop_front();
                if added {
                    cell.chosen.push(comes);
                }
            }
            if added && let Some(cell) = cells.get_mut(groups[leaves]) {
                cell.chosen.pop();
                cell.left.push_front(leaves);
            }
            for (place, by) in [(leaves, -1), (comes, 1)].into_iter().filter(|_| added) {
                for (key, name) in groups[place].iter().enumerate() {
                    *sizes.entry((key, name.as_str())).or_default() += by;
                }
            }
        }
    }

    /// The problems by their groups of all keys.
    fn cells<'g>(&self, groups: &[&'g [String]]) -> BTreeMap<&'g [String], Cell> {
        let alike: BTreeSet<usize> = self.alike.iter().map(|(place, _)| *place).collect();
        let mut cells: BTreeMap<&[String], Cell> = BTreeMap::new();
        for place in (0..groups.len()).filter(|place| !alike.contains(place)) {
            let cell = cells.entry(groups[place]).or_default();
            match self.sizes.contains_key(&place) {
                true => cell.chosen.push(place),
                false => cell.left.push_back(place),
            }
        }
        cells
    }
}

/// Problems of the same groups, best first; the chosen ones are better than the others.
#[derive(Default)]
struct Cell {
    chosen: Vec<usize>,
    left: VecDeque<usize>,
}

/// Hashes of the runs of five words of a text, or of all its words if they are fewer.
fn runs(text: &str) -> BTreeSet<u64> {
    const RUN: usize = 5;
    let words = word_hashes(&normalise(text));
    if words.len() < RUN { BTreeSet::from([gram_hash(&words)]) } else { gram_hashes(&words, RUN).collect() }
}
