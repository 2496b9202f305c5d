//! Duplicates in a stream of texts: exact ones, and near ones by MinHash (Broder 1997) with locality-sensitive hashing.
//!
//! A text is the set of its runs of 5 words (shingles) after [`normalise_with_brackets`]. Each of 112 hash functions gives the least hash of
//! the set; two sets agree in one with a probability equal to their Jaccard similarity J. 14 bands of 8: two texts meet when
//! all 8 of a band agree, with probability 1 − (1 − J⁸)¹⁴, a half at J ≈ 0.7 ((1/14)^(1/8) ≈ 0.72). Texts that meet are
//! compared by their true similarity, so nothing is dropped that is less similar than the threshold.
//!
//! One pass: a row is kept or dropped when it arrives, and only kept rows are remembered, so the first of each group in input
//! order stays. A kept row of W words takes about 4·W + 560 bytes at most: 0.8 GB for a million rows of 60 words. Texts of fewer
//! than 5 words are compared exactly, and of texts of more than 16,384 words only the first are shingled.

use super::normalise::{gram_hashes, mix, normalise_with_brackets, word_hashes};
use rustc_hash::FxHashMap;
use xxhash_rust::xxh3::xxh3_128;

const SHINGLE: usize = 5;
const BANDS: usize = 14;
const ROWS: usize = 8;
const MOST_WORDS: usize = 1 << 14;
/// Rows of one band's bucket that a new row is compared with, the latest first: many rows that share a sentence, and are no duplicates
/// otherwise, would else take time that grows with their square.
const MOST_COMPARED: usize = 64;
/// The default threshold on the similarity of near-duplicates.
pub const THRESHOLD: f64 = 0.72;
const NONE: u32 = u32::MAX;

/// Why a row is dropped.
#[derive(Debug, Clone, PartialEq)]
pub struct Duplicate {
    /// The id of the row that stays.
    pub of: String,
    /// The Jaccard similarity of their shingles; 1 where the normalised texts are the same.
    pub similarity: f64,
    /// Whether the normalised texts are the same.
    pub exact: bool,
}

/// What is remembered of the rows that were kept.
pub struct Dedupe {
    threshold: f64,
    functions: [(u64, u64); BANDS * ROWS],
    ids: Vec<Box<str>>,
    exact: FxHashMap<u128, u32>,
    /// Per band: the latest row of each bucket.
    heads: [FxHashMap<u32, u32>; BANDS],
    /// Per row and band: the row before it in the bucket.
    before: Vec<[u32; BANDS]>,
    /// The sorted shingles of all rows, one row after another, as 32-bit hashes.
    shingles: Vec<u32>,
    /// Where the shingles of each row end.
    ends: Vec<usize>,
}

impl Dedupe {
    /// `threshold`: the least similarity of near-duplicates, in (0, 1]; more than 1 finds exact ones only.
    pub fn new(threshold: f64) -> Dedupe {
        let mut state = 0u64;
        let mut draw = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(state)
        };
        Dedupe {
            threshold,
            functions: std::array::from_fn(|_| (draw() | 1, draw())),
            ids: Vec::new(),
            exact: FxHashMap::default(),
            heads: std::array::from_fn(|_| FxHashMap::default()),
            before: Vec::new(),
            shingles: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Rows kept so far.
    pub fn kept(&self) -> usize {
        self.ids.len()
    }

    /// Decides on the next row. None: it is kept, and later rows are compared with it.
    pub fn add(&mut self, id: &str, text: &str) -> Option<Duplicate> {
        let raw = text;
        let text = normalise_with_brackets(raw);
        // A text of signs alone has no words, and is then compared as it is.
        let whole = xxh3_128(if text.is_empty() { raw.as_bytes() } else { text.as_bytes() });
        if let Some(&row) = self.exact.get(&whole) {
            return Some(Duplicate { of: self.ids[row as usize].to_string(), similarity: 1.0, exact: true });
        }
        let mut words = word_hashes(&text);
        words.truncate(MOST_WORDS);
        let hashes: Vec<u64> = gram_hashes(&words, SHINGLE).collect();
        let bands = if self.threshold <= 1.0 && !hashes.is_empty() { Some(self.bands(&hashes)) } else { None };
        let mut set: Vec<u32> = if bands.is_some() { hashes.iter().map(|hash| *hash as u32).collect() } else { Vec::new() };
        set.sort_unstable();
        set.dedup();
        if let Some((row, similarity)) = bands.and_then(|bands| self.most_similar(&bands, &set)) {
            return Some(Duplicate { of: self.ids[row as usize].to_string(), similarity, exact: false });
        }
        self.keep(id, whole, bands, &set);
        None
    }

    /// A hash of each band of the text's signature. Their 32 bits let a few rows meet by chance; comparing them tells.
    fn bands(&self, shingles: &[u64]) -> [u32; BANDS] {
        let mut least = [u32::MAX; BANDS * ROWS];
        for shingle in shingles {
            for (least, (a, b)) in least.iter_mut().zip(&self.functions) {
                // Multiply-shift hashing (Dietzfelbinger et al. 1997).
                *least = (*least).min((a.wrapping_mul(*shingle).wrapping_add(*b) >> 32) as u32);
            }
        }
        std::array::from_fn(|band| {
            let rows = &least[band * ROWS..][..ROWS];
            rows.iter().fold(0, |hash, least| mix(hash ^ u64::from(*least))) as u32
        })
    }

    /// The kept row of a shared bucket that is most similar, if that reaches the threshold; of several the first.
    fn most_similar(&self, bands: &[u32; BANDS], set: &[u32]) -> Option<(u32, f64)> {
        let similar = self.met(bands).into_iter().map(|row| (row, jaccard(set, self.set(row))));
        let best = similar.reduce(|best, next| if next.1 > best.1 { next } else { best })?;
        (best.1 >= self.threshold).then_some(best)
    }

    /// The rows of the shared buckets that are compared with, in order.
    fn met(&self, bands: &[u32; BANDS]) -> Vec<u32> {
        let mut met = Vec::new();
        for (band, bucket) in bands.iter().enumerate() {
            let mut row = self.heads[band].get(bucket).copied().unwrap_or(NONE);
            for _ in 0..MOST_COMPARED {
                if row == NONE {
                    break;
                }
                met.push(row);
                row = self.before[row as usize][band];
            }
        }
        met.sort_unstable();
        met.dedup();
        met
    }

    fn set(&self, row: u32) -> &[u32] {
        let row = row as usize;
        let start = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.shingles[start..self.ends[row]]
    }

    fn keep(&mut self, id: &str, whole: u128, bands: Option<[u32; BANDS]>, set: &[u32]) {
        let row = self.ids.len() as u32;
        self.ids.push(id.into());
        self.exact.insert(whole, row);
        let mut before = [NONE; BANDS];
        for ((bucket, heads), before) in bands.iter().flatten().zip(&mut self.heads).zip(&mut before) {
            *before = heads.insert(*bucket, row).unwrap_or(NONE);
        }
        self.before.push(before);
        self.shingles.extend_from_slice(set);
        self.ends.push(self.shingles.len());
    }
}

/// The share of two sorted sets' union that is in both.
fn jaccard(a: &[u32], b: &[u32]) -> f64 {
    let (mut i, mut j, mut both) = (0, 0, 0);
    while i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j, both) = (i + 1, j + 1, both + 1),
        }
    }
    let union = a.len() + b.len() - both;
    if union == 0 { 0.0 } else { both as f64 / union as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words `from` to `to` of an endless text without repetition.
    fn text(from: usize, to: usize) -> String {
        let word =
            |n: usize| (0..12).map(|at| char::from(b'a' + (mix(n as u64 + 1) >> (4 * at) & 15) as u8)).collect::<String>();
        (from..to).map(word).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_first_of_equals_stays_and_is_named() {
        let mut dedupe = Dedupe::new(0.9);
        assert_eq!(dedupe.add("a", "Find $x$ if 2x = 6."), None);
        let exact = Duplicate { of: "a".into(), similarity: 1.0, exact: true };
        assert_eq!(dedupe.add("b", r"find \( x \) if 2x=6"), Some(exact.clone()));
        assert_eq!(dedupe.add("c", "Find $x$ if 2x + 6."), None, "an operator differs");
        assert_eq!(dedupe.add("d", "FIND x if 2x = 6!"), None, "6! is 720");
        assert_eq!(dedupe.add("e", "FIND x if 2x = 6;"), Some(exact));
        assert_eq!(dedupe.add("f", "Find $x$ if 2(x) = 6."), None, "brackets differ");
        assert_eq!(dedupe.add("g", r"Find $x$ if $2\left(x\right) = 6$.").unwrap().of, "f");
        assert_eq!(dedupe.kept(), 4);
    }

    #[test]
    fn near_duplicates_are_judged_by_their_true_similarity() {
        // 96 shingles each; 95 of them shared: 95 / 97.
        let mut dedupe = Dedupe::new(0.95);
        assert_eq!(dedupe.add("a", &text(0, 100)), None);
        let found = dedupe.add("b", &text(1, 101)).unwrap();
        assert_eq!((found.of.as_str(), found.exact), ("a", false));
        assert!((found.similarity - 95.0 / 97.0).abs() < 1e-12, "{found:?}");
        // 90 of 102 are shared: such texts meet in a bucket, but are not similar enough.
        assert_eq!(dedupe.add("c", &text(6, 106)), None);
        // Of two that are similar enough the more similar one is named.
        assert_eq!(dedupe.add("d", &text(5, 105)).unwrap().of, "c");
    }

    #[test]
    fn short_texts_and_a_threshold_above_one_are_exact() {
        let mut dedupe = Dedupe::new(THRESHOLD);
        for (id, text) in [("a", "Compute 1 + 2"), ("b", "Compute 1 + 3"), ("c", "?"), ("d", "!!")] {
            assert_eq!(dedupe.add(id, text), None, "{text}");
        }
        assert_eq!(dedupe.add("e", "compute 1+2.").unwrap().of, "a");
        assert_eq!(dedupe.add("f", "?").unwrap().of, "c");
        let mut exact = Dedupe::new(1.1);
        assert_eq!(exact.add("a", &text(0, 100)), None);
        assert_eq!(exact.add("b", &text(1, 101)), None);
        assert_eq!(exact.add("c", &text(0, 100)).unwrap().of, "a");
    }

    /// A hundred common words and forty others each: half similar, so that each band has a bucket of hundreds.
    #[test]
    fn many_rows_in_one_bucket_take_bounded_time() {
        let mut dedupe = Dedupe::new(THRESHOLD);
        let row = |at: usize| format!("{} {}", text(0, 100), text(1000 * (at + 1), 1000 * (at + 1) + 40));
        let met = |dedupe: &Dedupe, at: usize| {
            let words = word_hashes(&normalise_with_brackets(&row(at)));
            dedupe.met(&dedupe.bands(&gram_hashes(&words, SHINGLE).collect::<Vec<_>>())).len()
        };
        for at in 0..20_000 {
            assert_eq!(dedupe.add(&at.to_string(), &row(at)), None);
        }
        let most = (20_000..20_200).map(|at| met(&dedupe, at)).max().unwrap();
        assert!((MOST_COMPARED..=BANDS * MOST_COMPARED).contains(&most), "{most}");
    }

    #[test]
    fn jaccard_of_sorted_sets() {
        assert_eq!(jaccard(&[1, 2, 3], &[2, 3, 4]), 0.5);
        assert_eq!(jaccard(&[1], &[2]), 0.0);
        assert_eq!(jaccard(&[], &[]), 0.0);
        assert_eq!(jaccard(&[5, 9], &[5, 9]), 1.0);
    }
}
