//! Problems that are in a benchmark too.
//!
//! Texts are compared as the words of [`normalise`]. A benchmark row is *Chinese* if at least half of its words are Chinese or Japanese
//! characters. A Chinese word has 1.5 characters on average, so its n-grams are of 1.5 times as many characters as others are of words.
//! Three tests are made of every text, and what each found is told:
//!
//! - **copy**: the whole benchmark problem, or most of it, is in the text. A problem of at least 8 words (10) is a copy if a stretch of
//!   the text, at most half longer than the problem, shares so many runs of 3 words (4) with it that they cover 55 % of its weight.
//!   One of fewer than 32 words is also a copy if a stretch as long as itself differs in one word of ten at most, rounded up. A
//!   shorter problem must stand in the text word for word, and one of fewer than 3 words (6) must be the whole text. Equal texts are
//!   copies, whatever their length.
//! - **8-gram**: a run of 8 words (12) is in both.
//! - **13-gram**: a run of 13 words (20) is in both.
//!
//! A word weighs ln(1 + N/r), where r of the N benchmark rows have it: names and numbers tell problems apart, "find the value of x" and
//! fraction bars do not.
//!
//! What drops a row is the caller's choice of [`Rule`]. The default is `copy`. Shared n-grams alone drop problems that only end in
//! the same phrase ("can be written as m/n, where m and n are relatively prime positive integers. Find m + n." has more than 13
//! words), and miss copies of problems that are shorter, or have every seventh word changed.

use super::normalise::{gram_hash, gram_hashes, is_cjk, normalise, word_hashes, words};
use super::stretch::best_stretch;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

/// Which test drops a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rule {
    #[default]
    Copy,
    /// A copy, or a shared 13-gram.
    Grams13,
    /// A copy, or a shared 8-gram: the strictest.
    Grams8,
}

impl Rule {
    pub const ALL: [(&str, Rule); 3] = [("copy", Rule::Copy), ("13-gram", Rule::Grams13), ("8-gram", Rule::Grams8)];
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(name: &str) -> Result<Rule, String> {
        let found = Rule::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, rule)| *rule).ok_or_else(|| format!("\"{name}\" is no rule; there are copy, 13-gram, 8-gram"))
    }
}

/// Lengths of n-grams, in words or Chinese characters.
struct Lengths {
    /// Below: the problem must be the whole text.
    least: usize,
    /// From here on, a part of the problem can be enough.
    partial: usize,
    /// Of the runs that cover a part.
    part: usize,
    short: usize,
    long: usize,
}

const WORDS: Lengths = Lengths { least: 3, partial: 8, part: 3, short: 8, long: 13 };
const CHARACTERS: Lengths = Lengths { least: 6, partial: 10, part: 4, short: 12, long: 20 };
/// The share of a problem's weight that makes a copy.
const COVERED: f64 = 0.55;
/// Problems of fewer words are also compared word by word, since two changed words can break most of their runs.
const ALIGNED: usize = 32;
/// The share of such a problem's weight that runs must cover before it is.
const ALIKE: f64 = 0.25;
/// Words of a text that are compared; the rest is not looked at.
const MOST_WORDS: usize = 1 << 16;

/// What a text shares with a row of a benchmark.
#[derive(Debug, Clone, PartialEq)]
pub struct Match {
    pub benchmark: String,
    /// The row's id in its benchmark.
    pub id: String,
    /// The share of the problem's words that are matched; of n-grams, those covered by them.
    pub share: f64,
    /// The words that match: for a copy the stretch of the text, for an n-gram the first shared one.
    pub text: String,
}

/// What the tests found; each names the benchmark row that shares most, the first of equals.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Findings {
    pub copy: Option<Match>,
    pub grams8: Option<Match>,
    pub grams13: Option<Match>,
}

impl Findings {
    /// The match that drops the text under a rule.
    pub fn dropped_by(&self, rule: Rule) -> Option<&Match> {
        let grams = match rule {
            Rule::Copy => None,
            Rule::Grams13 => self.grams13.as_ref(),
            Rule::Grams8 => self.grams8.as_ref(),
        };
        self.copy.as_ref().or(grams)
    }
}

struct Row {
    benchmark: u32,
    id: String,
    words: Vec<u64>,
    /// The sum of its words' weights.
    weight: f64,
}

/// From the hash of an n-gram to the rows that have it, in order.
type Postings = FxHashMap<u64, Vec<u32>>;

/// The n-grams of one length.
struct Grams {
    n: usize,
    postings: Postings,
}

impl Grams {
    fn new(n: usize) -> Grams {
        Grams { n, postings: Postings::default() }
    }

    fn add(&mut self, row: u32, words: &[u64]) {
        for gram in gram_hashes(words, self.n) {
            let rows = self.postings.entry(gram).or_default();
            if rows.last() != Some(&row) {
                rows.push(row);
            }
        }
    }
}

/// The n-grams of rows of one kind.
struct Index {
    lengths: &'static Lengths,
    /// Problems that are too short to be matched in part, by length.
    whole: Vec<Grams>,
    part: Grams,
    short: Grams,
    long: Grams,
}

impl Index {
    fn new(lengths: &'static Lengths) -> Index {
        let [part, short, long] = [lengths.part, lengths.short, lengths.long].map(Grams::new);
        Index { lengths, whole: Vec::new(), part, short, long }
    }

    fn add(&mut self, row: u32, words: &[u64]) {
        if words.len() >= self.lengths.partial {
            self.part.add(row, words);
        } else if words.len() >= self.lengths.least {
            let same = self.whole.iter().position(|whole| whole.n == words.len());
            let at = same.unwrap_or_else(|| {
                self.whole.push(Grams::new(words.len()));
                self.whole.len() - 1
            });
            self.whole[at].add(row, words);
        }
        self.short.add(row, words);
        self.long.add(row, words);
    }
}

/// A problem of a benchmark.
#[derive(Debug, Clone)]
pub struct Known<'a> {
    /// The benchmark's name or file.
    pub benchmark: &'a str,
    pub id: String,
    pub problem: &'a str,
}

/// The problems of benchmarks, to compare texts with. Their n-grams are kept in memory, some 100 bytes a word.
pub struct Benchmarks {
    names: Vec<String>,
    rows: Vec<Row>,
    /// How many rows have a word.
    frequencies: FxHashMap<u64, u32>,
    /// From the hash of all words to the first row of them.
    whole: FxHashMap<u64, u32>,
    indexes: [Index; 2],
}

impl Benchmarks {
    /// Problems without a word are left out: they match nothing.
    pub fn new<'a>(problems: impl IntoIterator<Item = Known<'a>>) -> Benchmarks {
        let indexes = [Index::new(&WORDS), Index::new(&CHARACTERS)];
        let (frequencies, whole) = (FxHashMap::default(), FxHashMap::default());
        let mut all = Benchmarks { names: Vec::new(), rows: Vec::new(), frequencies, whole, indexes };
        for Known { benchmark, id, problem } in problems {
            let text = normalise(problem);
            let mut hashes = word_hashes(&text);
            if hashes.is_empty() {
                continue;
            }
            hashes.truncate(MOST_WORDS);
            let benchmark = all.names.iter().position(|name| name == benchmark).unwrap_or_else(|| {
                all.names.push(benchmark.to_string());
                all.names.len() - 1
            });
            let chinese = 2 * words(&text).filter(|word| word.starts_with(is_cjk)).count() >= hashes.len();
            all.whole.entry(gram_hash(&hashes)).or_insert(all.rows.len() as u32);
            all.indexes[usize::from(chinese)].add(all.rows.len() as u32, &hashes);
            for word in hashes.iter().collect::<BTreeSet<_>>() {
                *all.frequencies.entry(*word).or_default() += 1;
            }
            all.rows.push(Row { benchmark: benchmark as u32, id, words: hashes, weight: 0.0 });
        }
        for at in 0..all.rows.len() {
            all.rows[at].weight = all.rows[at].words.iter().map(|word| all.weight(*word)).sum();
        }
        all
    }

    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// How much a word tells: the rarer in the benchmarks, the more.
    fn weight(&self, word: u64) -> f64 {
        self.frequencies.get(&word).map_or(0.0, |rows| (1.0 + self.rows.len() as f64 / f64::from(*rows)).ln())
    }

    /// What `text` shares with the benchmarks.
    pub fn find(&self, text: &str) -> Findings {
        let text = normalise(text);
        let mut hashes = word_hashes(&text);
        hashes.truncate(MOST_WORDS);
        let mut sums = vec![0.0];
        sums.extend(hashes.iter().scan(0.0, |sum, word| {
            *sum += self.weight(*word);
            Some(*sum)
        }));
        let text = Text { words: words(&text).take(MOST_WORDS).collect(), hashes, sums };
        let best = |found: Vec<Found>| {
            let best = found.into_iter().reduce(|best, next| if next.share > best.share { next } else { best })?;
            let Row { benchmark, id, .. } = &self.rows[best.row as usize];
            let text = text.words[best.start..best.end].join(" ");
            Some(Match { benchmark: self.names[*benchmark as usize].clone(), id: id.clone(), share: best.share, text })
        };
        let whole = self.whole.get(&gram_hash(&text.hashes));
        let whole = whole.map(|row| Found { row: *row, share: 1.0, start: 0, end: text.hashes.len() });
        Findings {
            copy: best(whole.into_iter().chain(self.indexes.iter().flat_map(|index| self.copies(index, &text))).collect()),
            grams8: best(self.indexes.iter().flat_map(|index| self.shared(&index.short, &text)).collect()),
            grams13: best(self.indexes.iter().flat_map(|index| self.shared(&index.long, &text)).collect()),
        }
    }

    /// The rows that the text has a copy of, each with the stretch of it.
    fn copies(&self, index: &Index, text: &Text) -> Vec<Found> {
        let mut found = Vec::new();
        for whole in &index.whole {
            for (start, gram) in gram_hashes(&text.hashes, whole.n).enumerate() {
                let row = whole.postings.get(&gram).map(|rows| rows[0]);
                found.extend(row.map(|row| Found { row, share: 1.0, start, end: start + whole.n }));
            }
        }
        let n = index.lengths.part;
        // Per row: the weight of the text's words that lie in shared runs, and where the last of these runs ends.
        let mut shared: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
        for (start, gram) in gram_hashes(&text.hashes, n).enumerate() {
            for row in index.part.postings.get(&gram).into_iter().flatten() {
                let (weight, end) = shared.entry(*row as usize).or_default();
                *weight += text.sums[start + n] - text.sums[start.max(*end)];
                *end = start + n;
            }
        }
        for (row, (weight, _)) in shared {
            let all = self.rows[row].weight;
            if weight > 0.0 && weight >= ALIKE * all && self.rows[row].words.len() < ALIGNED {
                found.extend(self.aligned(row, text));
            }
            if weight > 0.0 && weight >= COVERED * all {
                let stretch = best_stretch(&self.rows[row].words, &text.hashes, n, |word| self.weight(word));
                if stretch.covered >= COVERED * all {
                    let share = (stretch.covered / all).min(1.0);
                    found.push(Found { row: row as u32, share, start: stretch.start, end: stretch.end });
                }
            }
        }
        found
    }

    /// The stretch of the text that is the row's problem but for the fewest words, if these are one in ten at most.
    fn aligned(&self, row: usize, text: &Text) -> Option<Found> {
        let problem = &self.rows[row].words;
        let most = problem.len().div_ceil(10);
        let others = |words: &[u64]| words.iter().zip(problem).filter(|(a, b)| a != b).take(most + 1).count();
        let (others, start) = text.hashes.windows(problem.len()).map(others).zip(0..).min()?;
        let share = 1.0 - others as f64 / problem.len() as f64;
        (others <= most).then_some(Found { row: row as u32, share, start, end: start + problem.len() })
    }

    /// The rows that share an n-gram with the text, in order, each with the first one that is shared.
    fn shared(&self, grams: &Grams, text: &Text) -> Vec<Found> {
        let mut there = FxHashSet::default();
        let mut first: BTreeMap<u32, usize> = BTreeMap::new();
        for (start, gram) in gram_hashes(&text.hashes, grams.n).enumerate() {
            if let Some(rows) = grams.postings.get(&gram).filter(|_| there.insert(gram)) {
                rows.iter().for_each(|row| _ = first.entry(*row).or_insert(start));
            }
        }
        let found = |(row, start)| {
            let problem = &self.rows[row as usize].words;
            let (mut covered, mut end) = (0, 0);
            for (at, _) in gram_hashes(problem, grams.n).enumerate().filter(|(_, gram)| there.contains(gram)) {
                covered += at + grams.n - end.max(at);
                end = at + grams.n;
            }
            Found { row, share: covered as f64 / problem.len() as f64, start, end: start + grams.n }
        };
        first.into_iter().map(found).collect()
    }
}

struct Text<'a> {
    words: Vec<&'a str>,
    hashes: Vec<u64>,
    /// The weight of the words before each, and of all.
    sums: Vec<f64>,
}

/// A row, and the words of the text from `start` to `end`.
struct Found {
    row: u32,
    share: f64,
    start: usize,
    end: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALK: &str = "Every morning a gardener walks nine miles around the lake and rests at the old mill for forty minutes before the \
        bells of the town ring.";

    fn benchmarks(problems: &[&str]) -> Benchmarks {
        let row = |(at, problem)| Known { benchmark: "made-up.jsonl", id: format!("row {at}"), problem };
        Benchmarks::new(problems.iter().copied().enumerate().map(row))
    }

    #[test]
    fn a_copy_names_benchmark_row_and_text() {
        let known = benchmarks(&["What colour has the sky over a desert at night, and why?", WALK]);
        let found = known.find(&format!("Read this: {} Explain.", WALK.to_uppercase()));
        let copy = found.copy.clone().unwrap();
        assert_eq!((copy.benchmark.as_str(), copy.id.as_str(), copy.share), ("made-up.jsonl", "row 1", 1.0));
        assert_eq!(copy.text, normalise(WALK));
        assert_eq!(found.grams8.unwrap().text, "every morning a gardener walks nine miles around");
        assert_eq!(
            found.grams13.as_ref().unwrap().text,
            "every morning a gardener walks nine miles around the lake and rests at"
        );
        assert_eq!(known.find("A farmer walks around the lake."), Findings::default());
    }
    #[test]
    fn a_shared_ending_is_no_copy() {
        let end = "can be written as $\\frac{m}{n}$, where $m$ and $n$ are relatively prime positive integers. Find $m+n$.";
        let [walk, circle] = [
            format!("A frog jumps along a row of 14 lily pads and sinks every third one; the chance that it dries out {end}"),
            format!(
                "Two circles of radius 5 touch a chord of a larger one at its midpoint. The ratio of the larger areas {end}"
            ),
        ];
        for known in [benchmarks(&[&walk]), benchmarks(&[&walk, WALK, "How many primes are there below one hundred and ten?"])]
        {
            let found = known.find(&circle);
            assert!(found.grams13.is_some() && found.grams8.is_some(), "{found:?}");
            assert_eq!(found.dropped_by(Rule::Copy), None);
            assert_eq!(found.dropped_by(Rule::Grams13), found.grams13.as_ref());
            assert_eq!(found.dropped_by(Rule::Grams8), found.grams8.as_ref());
        }
    }

    #[test]
    fn short_problems_are_found_whole_only() {
        let known = benchmarks(&["Simplify $\\sqrt{242}$.", "Express $555_{10}$ in base $5$.", "计算：$7 \\times 8$", "?!"]);
        assert_eq!(known.rows(), 3, "a text of signs has no words");
        let copy = |text: &str| known.find(text).copy.map(|found| found.id);
        assert_eq!(copy("simplify √242").as_deref(), Some("row 0"));
        assert_eq!(copy("SIMPLIFY: \\sqrt 242").as_deref(), Some("row 0"));
        assert_eq!(copy("First simplify $\\sqrt{242}$, then halve it.").as_deref(), Some("row 0"));
        assert_eq!(copy("First simplify $\\sqrt{243}$, then halve it."), None);
        assert_eq!(copy("Please express 555_10 in base 5, quickly.").as_deref(), Some("row 1"));
        assert_eq!(copy("Express 556_10 in base 5."), None);
        assert_eq!(copy("计算 7×8").as_deref(), Some("row 2"));
        assert_eq!(copy("小明计算7×8，再加1").as_deref(), Some("row 2"));
        assert_eq!(copy("小明计算7×9，再加1").as_deref(), None);
    }

    #[test]
    fn chinese_is_matched_by_characters() {
        let problem = "小明和小红从学校出发去图书馆，小明每分钟走六十米，小红每分钟走七十五米，小红比小明早到四分钟，求学校到图书馆的距离。";
        let known = benchmarks(&[problem, WALK]);
        let found = known.find(&format!("请看下面的题目：{}（写出过程）", problem.replace('，', " ; ")));
        assert_eq!(found.copy.as_ref().map(|copy| (copy.id.as_str(), copy.share)), Some(("row 0", 1.0)));
        assert_eq!(found.grams8.unwrap().text.split(' ').count(), CHARACTERS.short);
        assert_eq!(found.grams13.unwrap().text.split(' ').count(), CHARACTERS.long);
        let other =
            known.find("小明和小红从学校出发去公园，路上他们买了三个苹果和五个梨，一共花了二十元，求一个苹果的价格是多少元？");
        assert!(other.copy.is_none() && other.grams13.is_none(), "{other:?}");
    }

    #[test]
    fn short_problems_may_differ_in_one_word_of_ten() {
        let known = benchmarks(&["Seven brown foxes chase eleven grey geese over nine frozen village ponds"]);
        // Runs of three words cover six of the twelve.
        let found = known.find("Seven brown cats chase eleven white geese over nine frozen village ponds").copy.unwrap();
        assert!((found.share - 10.0 / 12.0).abs() < 1e-12, "{found:?}");
        let three = "Seven brown cats chase eleven white geese over nine icy village ponds";
        assert_eq!(known.find(three).copy, None);
    }

    #[test]
    fn a_part_that_tells_little_is_no_copy() {
        let frames: Vec<String> =
            (0..30).map(|n| format!("Find the sum of all positive integers x such that {n} x + {n} = y")).collect();
        let named = "Find the sum of all positive integers x such that Xenophon visits Corinth, Argos and Delphi";
        let all: Vec<&str> = frames.iter().map(String::as_str).chain([named]).collect();
        let known = benchmarks(&all);
        assert_eq!(
            known.find("Find the sum of all positive integers x such that no bird sings").copy.map(|found| found.id),
            None
        );
        assert_eq!(known.find("Xenophon visits Corinth, Argos and Delphi").copy.unwrap().id, "row 30");
    }

    #[test]
    fn repetition_is_bounded_and_counts_once() {
        let known = benchmarks(&[&"a ".repeat(50_000), &"round and ".repeat(30)]);
        assert_eq!(known.find(&"a ".repeat(50_000)).copy.unwrap().id, "row 0");
        assert_eq!(known.find(&"a ".repeat(60_000)).copy, None);
        assert_eq!(known.find("They went round and round and home.").copy, None);
        assert_eq!(benchmarks(&[]).find(WALK), Findings::default());
        assert_eq!(known.find(""), Findings::default());
    }

    #[test]
    fn rules_have_names() {
        for (name, rule) in Rule::ALL {
            assert_eq!(name.parse(), Ok(rule));
        }
        assert!("9-gram".parse::<Rule>().is_err());
    }
}
