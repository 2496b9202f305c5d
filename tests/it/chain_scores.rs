//! Scores of chains against a transcription in Python, and what the default formula promises.

use limo_engine::curation::chain_score::{ChainScore, Keywords, WordLists, sketch};
use serde_json::Value;

#[test]
fn sketch_scores_are_those_of_the_transcription() {
    let rows: Vec<Value> = serde_json::from_str(include_str!("../fixtures/chain_score.json")).unwrap();
    assert_eq!(rows.len(), 200);
    for row in &rows {
        let text = row["text"].as_str().unwrap();
        let ours = sketch(text);
        for (name, ours) in [
            ("score", ours.score),
            ("length", ours.length),
            ("verification", ours.verification),
            ("exploration", ours.exploration),
            ("connectives", ours.connectives),
            ("words", ours.words),
        ] {
            let theirs = row[name].as_f64().unwrap();
            assert!((ours - theirs).abs() <= 1e-12 * theirs.abs(), "{name} of {text:?}: {ours}, {theirs}");
        }
    }
}

fn score(text: &str) -> ChainScore {
    ChainScore::of(text, &WordLists::built_in())
}

#[test]
fn words_are_whole_and_parts_stay_between_0_and_1() {
    // No word of any list, though each of them is a substring here.
    let none = score("Also sought Almighty checkers thusly reasons, sincerely, mightily \\therefore \\because ");
    assert_eq!((none.verification, none.exploration, none.connectives), (0.0, 0.0, 0.0));
    let swamped = score(&"so therefore perhaps check ".repeat(50));
    assert_eq!((swamped.verification, swamped.exploration, swamped.connectives), (1.0, 1.0, 1.0));
    assert!(swamped.score < 0.75, "words alone do not make a good chain: {swamped:?}");
    assert_eq!(score("").score, 0.0);
    assert!(!score("x").score.is_nan());
}

/// The weights are LIMO's, and each part counts in proportion to its own.
#[test]
fn parts_weigh_as_published() {
    let full = [("filler ", 2000, 0.30), ("check", 1, 0.20), ("perhaps", 1, 0.25), ("therefore", 1, 0.25)];
    for (word, count, weight) in full {
        let got = score(&word.repeat(count)).score;
        let short = if count == 1 { 0.3 / 2000.0 } else { 0.0 };
        assert!((got - weight - short).abs() < 1e-12, "{word}: {got}");
    }
}

#[test]
fn more_of_a_part_never_lowers_it() {
    let mut text = String::new();
    let mut before = score(&text);
    for _ in 0..300 {
        text.push_str("step by step we count apples and pears until nothing is left of them ");
        let now = score(&text);
        assert!(now.length >= before.length && now.score >= before.score);
        before = now;
    }
    // The same rate in a longer chain is the same part.
    let (short, long) = (score(&"apples fall therefore ".repeat(10)), score(&"apples fall therefore ".repeat(100)));
    assert_eq!(short.connectives, long.connectives);
    let rate = |every: usize| score(&(["apple "].repeat(every).concat() + "check ").repeat(20)).verification;
    assert!(rate(2000) < rate(1000) && rate(1000) < rate(500) && rate(500) <= 1.0);
}

#[test]
fn chinese_chains_are_scored() {
    let parts = score("规则说这不可能，否则故事就完了，苹果、等等。");
    assert_eq!((parts.verification, parts.exploration, parts.connectives), (0.0, 0.0, 0.0), "these are other words");
    let chain = score("因此我们得到答案。让我验证一下：也许有另一种方法。");
    assert!(chain.verification > 0.0 && chain.exploration > 0.0 && chain.connectives > 0.0, "{chain:?}");
}

#[test]
fn keywords_are_frequent_words_that_are_not_common() {
    let lists = WordLists::built_in();
    let mut keywords = Keywords::default();
    keywords.add("Wait, the number is the number of the apples. Wait: therefore wait", &lists);
    keywords.add("因此 number 因此 因此 因此", &lists);
    assert_eq!(keywords.top(3), ["因此", "number", "wait"]);
}

#[test]
fn lists_of_others_are_checked() {
    let own = include_str!("../../src/curation/words.toml");
    for (text, expected) in [
        (own.replacen("weight = 0.20", "weight = 0", 1), "verification"),
        (own.replacen("full = 2000.0", "full = nan", 1), "length"),
        (own.replacen("\"check\"", "\"检查\"", 1), "has no word"),
        (own.replacen("weight = 0.20", "wieght = 0.20", 1), "wieght"),
        ("[".to_string(), "expected"),
    ] {
        let error = WordLists::parse(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
