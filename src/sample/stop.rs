//! When a sample ends.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// A stop token or a stop string.
    Stop,
    /// As many tokens as were allowed.
    Length,
    /// It repeated itself; see [`repeats`].
    Repetition,
}

/// Whether new tokens, of which the last was just drawn, end with a token that completes a stop string.
pub type Completes<'a> = dyn Fn(&[i32]) -> bool + 'a;

/// What ends samples, besides their length. All of it is a function of a sample's tokens.
#[derive(Clone, Copy)]
pub struct StopRules<'a> {
    /// Tokens that end a sample.
    pub ids: &'a BTreeSet<i32>,
    /// Stop strings, where there are some.
    pub text: Option<&'a Completes<'a>>,
    /// Ends samples that repeat themselves.
    pub repetition: bool,
}

impl StopRules<'_> {
    /// Why a sample of these new tokens ends with the last of them; `full` if it may have no more.
    pub fn finished(&self, tokens: &[i32], full: bool) -> Option<FinishReason> {
        let last = tokens.last()?;
        if self.ids.contains(last) || self.text.is_some_and(|completes| completes(tokens)) {
            Some(FinishReason::Stop)
        } else if full {
            Some(FinishReason::Length)
        } else if self.repetition && tokens.len().is_multiple_of(EVERY) && repeats(tokens) {
            Some(FinishReason::Repetition)
        } else {
            None
        }
    }
}

/// Repetition is looked for every so many tokens.
const EVERY: usize = 64;
/// A repeating end has at least so many tokens, and so many turns.
const LEAST: usize = 512;
const TURNS: usize = 4;
/// No longer end is looked at, so periods up to a quarter of it are found.
const MOST: usize = 4096;

/// Whether the tokens end with the same run over and over: at least four turns and 512 tokens of it, of a run of up to 1024 tokens.
pub fn repeats(tokens: &[i32]) -> bool {
    let end: Vec<i32> = tokens.iter().rev().take(MOST).copied().collect();
    // The prefix function (Knuth, Morris, Pratt 1977) of the reversed end: the last n tokens have the period n − border[n − 1].
    let mut border = vec![0; end.len()];
    for i in 1..end.len() {
        let mut length = border[i - 1];
        while length > 0 && end[i] != end[length] {
            length = border[length - 1];
        }
        border[i] = if end[i] == end[length] { length + 1 } else { 0 };
        let period = i + 1 - border[i];
        if i + 1 >= LEAST.max(TURNS * period) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endless_ends_are_found_and_others_are_not() {
        let run = |period: usize, length: usize| (0..length).map(move |i| ((i % period) * 31 % 1009) as i32);
        let text = |start: usize, end: Vec<i32>| [(0..start as i32).map(|i| -i - 1).collect(), end].concat();
        for (period, length, found) in [
            (1, 511, false),
            (1, 512, true),
            (7, 512, true),
            (128, 512, true),
            (129, 515, false),
            (129, 516, true),
            (1000, 3999, false),
            (1000, 4000, true),
            (1024, 4096, true),
            (1025, 8200, false),
        ] {
            let tokens = text(300, run(period, length).collect());
            assert_eq!(repeats(&tokens), found, "period {period}, {length} tokens");
            let spoilt = [tokens, vec![-5]].concat();
            assert!(!repeats(&spoilt), "period {period}, and then another token");
        }
        let mut state = 1u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 62) as i32
        });
        assert!(!repeats(&noise.take(5000).collect::<Vec<_>>()));
    }

    #[test]
    fn the_first_rule_that_holds_is_the_reason() {
        let ids = BTreeSet::from([7]);
        let completes = |tokens: &[i32]| tokens.ends_with(&[1, 2]);
        let rules = StopRules { ids: &ids, text: Some(&completes), repetition: true };
        assert_eq!(rules.finished(&[3, 7], true), Some(FinishReason::Stop));
        assert_eq!(rules.finished(&[1, 2], false), Some(FinishReason::Stop));
        assert_eq!(rules.finished(&[2, 1], true), Some(FinishReason::Length));
        assert_eq!(rules.finished(&[2, 1], false), None);
        assert_eq!(rules.finished(&[5; 512], false), Some(FinishReason::Repetition));
        assert_eq!(StopRules { repetition: false, ..rules }.finished(&[5; 512], false), None);
    }
}
