//! The score of a reasoning chain: 30 % length, 20 % verification, 25 % exploration, 25 % connectives (LIMO, arXiv 2502.03387, §3; no code was published).
//!
//! [`ChainScore::of`] counts whole words, and brings each component to a scale from 0 to 1 before it is weighted. [`sketch`] is the formula that circulates: it counts substrings, and
//! adds rates to a share, so that the words swamp the length. It is here for comparison.

use super::words::{count_words, english_words, occurrences};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};

/// The word lists: words.toml in this folder, or one like it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WordLists {
    verification: Component,
    exploration: Component,
    connectives: Component,
    length: Length,
    #[serde(default)]
    except: Except,
    common: Common,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Component {
    weight: f64,
    full: f64,
    english: Vec<Phrase>,
    chinese: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Length {
    weight: f64,
    full: f64,
}

/// Longer words that have one of the listed words within, and mean something else.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Except {
    chinese: Vec<String>,
}

impl Except {
    fn occurrences(&self, word: &str, text: &str) -> usize {
        let longer = self.chinese.iter().filter(|longer| longer.contains(word));
        let within: usize = longer.map(|longer| text.matches(longer.as_str()).count()).sum();
        text.matches(word).count().saturating_sub(within)
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Common {
    english: HashSet<String>,
    chinese: HashSet<String>,
}

/// A word, or several in a row.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "String")]
struct Phrase {
    text: String,
    words: Vec<String>,
}

impl From<String> for Phrase {
    fn from(text: String) -> Phrase {
        Phrase { words: english_words(&text), text }
    }
}

/// The score of a chain and its parts, each from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ChainScore {
    /// The weighted mean of the parts.
    pub score: f64,
    pub length: f64,
    pub verification: f64,
    pub exploration: f64,
    pub connectives: f64,
    /// Words of the chain.
    pub words: f64,
}

impl WordLists {
    /// Those that are built in.
    pub fn built_in() -> WordLists {
        WordLists::parse(include_str!("words.toml")).expect("a test reads the built-in lists")
    }

    /// Errors: data, with the place in the text, if it is not like the built-in lists, or if a `weight` or `full` is not positive.
    pub fn parse(text: &str) -> Result<WordLists> {
        let lists: WordLists = toml::from_str(text)
            .map_err(|error| Error::data(error.to_string()).help("src/curation/words.toml shows what a list has"))?;
        let parts =
            [("verification", &lists.verification), ("exploration", &lists.exploration), ("connectives", &lists.connectives)];
        let numbers = parts.map(|(name, part)| (name, part.weight, part.full)).into_iter().chain([(
            "length",
            lists.length.weight,
            lists.length.full,
        )]);
        for (name, weight, full) in numbers {
            if !(weight > 0.0 && weight.is_finite() && full > 0.0 && full.is_finite()) {
                return Err(Error::data(format!("[{name}]: `weight` and `full` must be above 0")));
            }
        }
        if let Some((name, phrase)) =
            parts.iter().find_map(|(name, part)| Some((name, part.english.iter().find(|phrase| phrase.words.is_empty())?)))
        {
            return Err(
                Error::data(format!("[{name}]: {:?} has no word", phrase.text)).help("Chinese words belong to `chinese`")
            );
        }
        Ok(lists)
    }

    fn components(&self) -> [&Component; 3] {
        [&self.verification, &self.exploration, &self.connectives]
    }
}

impl Component {
    fn count(&self, text: &str, words: &[String], except: &Except) -> usize {
        let english: usize = self.english.iter().map(|phrase| occurrences(words, &phrase.words)).sum();
        let chinese: usize = self.chinese.iter().map(|word| except.occurrences(word, text)).sum();
        english + chinese
    }

    fn score(&self, text: &str, words: &[String], count: f64, except: &Except) -> f64 {
        let rate = if count > 0.0 { 1000.0 * self.count(text, words, except) as f64 / count } else { 0.0 };
        (rate / self.full).min(1.0)
    }
}

impl ChainScore {
    pub fn of(chain: &str, lists: &WordLists) -> ChainScore {
        let (words, count) = (english_words(chain), count_words(chain));
        let [verification, exploration, connectives] =
            lists.components().map(|part| part.score(chain, &words, count, &lists.except));
        let length = (count / lists.length.full).min(1.0);
        let parts = [
            (length, lists.length.weight),
            (verification, lists.verification.weight),
            (exploration, lists.exploration.weight),
            (connectives, lists.connectives.weight),
        ];
        let weights: f64 = parts.iter().map(|(_, weight)| weight).sum();
        let score = parts.iter().map(|(part, weight)| part * weight).sum::<f64>() / weights;
        ChainScore { score, length, verification, exploration, connectives, words: count }
    }
}

/// The formula that circulates: substrings counted in the text in lower case, a thousand times their number by that of the words between spaces.
pub fn sketch(chain: &str) -> ChainScore {
    let words = chain.split_whitespace().count() as f64;
    let lower = chain.to_lowercase();
    let rate = |list: &[&str]| {
        let count: usize = list.iter().map(|word| lower.matches(word).count()).sum();
        if words > 0.0 { count as f64 / words * 1000.0 } else { 0.0 }
    };
    let length = (words / 2000.0).min(1.0);
    let verification = rate(&["check", "verify", "confirm", "validate", "let me verify"]);
    let exploration = rate(&["perhaps", "might", "maybe", "alternatively", "let me try"]);
    let connectives = rate(&["therefore", "since", "because", "thus", "hence", "so"]);
    let score = 0.3 * length + 0.2 * verification + 0.25 * exploration + 0.25 * connectives;
    ChainScore { score, length, verification, exploration, connectives, words }
}

/// How often words that are not common come in some chains: what the keywords of a level are taken from.
#[derive(Debug, Default)]
pub struct Keywords {
    counts: HashMap<String, usize>,
}

impl Keywords {
    pub fn add(&mut self, chain: &str, lists: &WordLists) {
        let spelt = |word: &String| word.chars().count() > 1 && !lists.common.english.contains(word);
        for word in english_words(chain).into_iter().filter(spelt) {
            *self.counts.entry(word).or_default() += 1;
        }
        let chinese =
            lists.components().into_iter().flat_map(|part| &part.chinese).filter(|word| !lists.common.chinese.contains(*word));
        for (word, count) in chinese.map(|word| (word, lists.except.occurrences(word, chain))).filter(|(_, count)| *count > 0) {
            *self.counts.entry(word.clone()).or_default() += count;
        }
    }

    /// The most frequent, equals by the alphabet.
    pub fn top(&self, count: usize) -> Vec<&str> {
        let mut words: Vec<_> = self.counts.iter().collect();
        words.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
        words.into_iter().take(count).map(|(word, _)| word.as_str()).collect()
    }
}
