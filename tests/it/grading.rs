//! The graders against a table of cases, hostile input, and a clock.

use limo_engine::grading::strict::Options;
use limo_engine::grading::{Extraction, Gold, Mode, extract, limo, majority_at_k, same_answer, strict, votes};
use limo_engine::testing::random::Random;
use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

const CASES: &str = include_str!("../fixtures/grading/cases.txt");
pub const STRICT: Mode = Mode::Strict(Options { percent_as_fraction: false });

struct Case {
    category: &'static str,
    prediction: &'static str,
    gold: &'static str,
    strict: bool,
    limo: bool,
}

fn cases() -> Vec<Case> {
    let mut category = "";
    let mut cases = Vec::new();
    for line in CASES.lines().filter(|line| !line.is_empty() && !line.starts_with("# ")) {
        if let Some(name) = line.strip_prefix("## ") {
            category = name;
            continue;
        }
        let line = line.split(" (published ").next().unwrap();
        let (pair, limo) = match line.split_once(" @limo ") {
            Some((pair, verdict)) => (pair, Some(verdict == "==")),
            None => (line, None),
        };
        let (prediction, strict, gold) = match (pair.split_once(" == "), pair.split_once(" != ")) {
            (Some((prediction, gold)), None) => (prediction, true, gold),
            (None, Some((prediction, gold))) => (prediction, false, gold),
            _ => panic!("not a case: {line}"),
        };
        cases.push(Case { category, prediction, gold, strict, limo: limo.unwrap_or(strict) });
    }
    cases
}

/// Wrong verdicts of a mode, and a table of the counts by category.
fn wrong(name: &str, expected: impl Fn(&Case) -> bool, verdict: impl Fn(&Case) -> bool) -> Vec<String> {
    let mut counts: BTreeMap<&str, [usize; 4]> = BTreeMap::new();
    let mut wrong = Vec::new();
    for case in cases() {
        let (expected, actual) = (expected(&case), verdict(&case));
        let count = counts.entry(case.category).or_default();
        count[usize::from(!expected)] += 1;
        if expected != actual {
            count[2 + usize::from(expected)] += 1;
            wrong.push(format!(
                "{name}, {}: {} {} {}",
                case.category,
                case.prediction,
                if actual { "==" } else { "!=" },
                case.gold
            ));
        }
    }
    println!("{name}: category, equal, different, false positives, false negatives");
    for (category, [equal, different, positives, negatives]) in counts {
        println!("  {category:32} {equal:4} {different:4} {positives:4} {negatives:4}");
    }
    wrong
}

#[test]
fn the_table_of_cases() {
    let all = cases();
    let equal = all.iter().filter(|case| case.strict).count();
    assert!(all.len() >= 600 && (equal * 2).abs_diff(all.len()) < all.len() / 8, "{equal} of {} are equal", all.len());
    let mut failures = wrong("strict", |case| case.strict, |case| same_answer(case.prediction, case.gold, STRICT));
    failures.extend(wrong("limo", |case| case.limo, |case| limo::is_equal(case.prediction, case.gold)));
    assert!(failures.is_empty(), "{} wrong verdicts:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn strict_mode_is_symmetric_but_for_loose_units() {
    let differ: Vec<_> = cases()
        .iter()
        .filter(|case| same_answer(case.prediction, case.gold, STRICT) != same_answer(case.gold, case.prediction, STRICT))
        .map(|case| format!("{} ~ {}", case.prediction, case.gold))
        .collect();
    // "5 m" is a length where 5 is asked for, and five times m where 5m is. An option letter is one only as a gold answer.
    let expected = ["5 m ~ 5", "5 m/s ~ 5\\text{ m/s}", "b ~ B", "E ~ e"];
    assert!(differ.iter().all(|pair| expected.contains(&pair.as_str())), "{differ:#?}");
}

#[test]
fn percent_as_a_fraction_where_asked() {
    let fraction = Mode::Strict(Options { percent_as_fraction: true });
    assert!(
        same_answer("28\\%", "0.28", fraction) && same_answer("0.28", "28%", fraction) && same_answer("28", "28%", fraction)
    );
    assert!(!same_answer("2.8", "28%", fraction) && !same_answer("28", "0.28", fraction));
}

/// Pieces that answers are made of, and hostile ones.
const PIECES: &[&str] = &[
    "\\frac",
    "\\sqrt",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "\\left",
    "\\right",
    "\\{",
    "\\}",
    "1",
    "23",
    "0.5",
    ",",
    ";",
    "x",
    "n",
    "_",
    "^",
    "+",
    "-",
    "*",
    "/",
    "=",
    "<",
    "\\le",
    "\\pm",
    "\\cup",
    "\\in",
    "\\infty",
    "!",
    "|",
    "\\|",
    "%",
    "\\%",
    "$",
    "\\$",
    "\\text{",
    "cm",
    " ",
    "\\sin",
    "\\log_",
    "\\begin{pmatrix}",
    "\\end{pmatrix}",
    "&",
    "\\\\",
    "\\boxed{",
    "boxed",
    "和",
    "（",
    "。",
    "９",
    "é",
    "\u{0}",
    "\u{1F600}",
    "²",
    "e9",
    "1e999",
    ".",
    "...",
    "\\",
    "\\overline{",
    "π",
    "\\binom",
    "i",
    "e",
    ":",
    "\\mid",
    "'",
    "9999999999",
    "°",
    "A",
    "\\mathrm{",
    "~",
    "\\mathbb{R}",
    "∞",
    "±",
    "√",
    "\\lfloor",
    "\\rfloor",
    "and",
    "or",
    "2(2(",
    "2(2(\\begin{pmatrix}1\\end{pmatrix}))",
    "立方",
    "平方米",
    "HTH",
    "\\angle ABC",
    "x>2",
    "1:2:3",
    "20℃",
    "(A)",
    "100!",
    "\u{301}",
    "\u{202e}",
];

fn random_text(random: &mut Random, seeds: &[&str]) -> String {
    let pick = |random: &mut Random, n: usize| random.below(n);
    match pick(random, 3) {
        0 => (0..1 + pick(random, 24)).map(|_| PIECES[pick(random, PIECES.len())]).collect(),
        1 => (0..pick(random, 40)).filter_map(|_| char::from_u32(pick(random, 0x300) as u32)).collect(),
        _ => {
            let mut chars: Vec<char> = seeds[pick(random, seeds.len())].chars().collect();
            for _ in 0..1 + pick(random, 4) {
                let at = pick(random, chars.len() + 1);
                match pick(random, 4) {
                    0 if at < chars.len() => drop(chars.remove(at)),
                    1 => chars.truncate(at),
                    2 => chars.extend_from_within(at..),
                    _ => drop(chars.splice(at..at, PIECES[pick(random, PIECES.len())].chars())),
                }
            }
            chars.into_iter().collect()
        }
    }
}

/// For how long this thread has computed. Unlike the clock this does not go on while others compute.
fn computed() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// 50,000 inputs, or as many as LIMO_FUZZ says.
#[test]
fn random_and_mutated_input_never_panics_or_hangs() {
    const LIMIT: Duration = Duration::from_secs(2);
    let inputs: u64 = std::env::var("LIMO_FUZZ").map_or(50_000, |n| n.parse().expect("LIMO_FUZZ is a number"));
    let cases = cases();
    let seeds: Vec<&str> = cases.iter().flat_map(|case| [case.prediction, case.gold]).collect();
    let mut random = Random::new(7);
    let (mut slowest, mut slowest_text) = (Duration::ZERO, String::new());
    for i in 0..inputs {
        let text = random_text(&mut random, &seeds);
        let other = if i % 2 == 0 { seeds[i as usize % seeds.len()].to_string() } else { random_text(&mut random, &seeds) };
        let start = computed();
        let result = catch_unwind(AssertUnwindSafe(|| {
            extract(&text, Extraction::Auto);
            extract(&text, Extraction::AutoChoice);
            limo::extract(&text);
            for mode in [STRICT, Mode::Limo] {
                same_answer(&text, &other, mode);
                same_answer(&text, &text, mode);
            }
            Gold::new(&Value::from(vec![other.clone(), text.clone()]), STRICT).map(|gold| gold.accepts(&text));
        }));
        assert!(result.is_ok(), "input {i} panics: {text:?} against {other:?}");
        let took = computed() - start;
        if took > slowest {
            (slowest, slowest_text) = (took, text);
        }
    }
    println!("{inputs} inputs, the slowest took {slowest:?}: {slowest_text:?}");
    assert!(slowest < LIMIT, "{slowest:?}: {slowest_text:?}");
}

#[test]
fn huge_and_nested_inputs_end_quickly() {
    // A quarter of a thread's usual stack: nesting is limited before it fills one.
    const STACK: usize = 512 << 10;
    std::thread::Builder::new().stack_size(STACK).spawn(grade_huge_and_nested_inputs).unwrap().join().unwrap();
}

fn grade_huge_and_nested_inputs() {
    let repeat = |piece: &str| piece.repeat(100_000 / piece.len());
    let mut inputs: Vec<String> =
        ["1", "(", "{", "\\frac{", "\\sqrt{", "x^", "-", "+1", "1,", "\\pm", "\\text{", "$", "boxed{", "9!", "a b ", "|"]
            .iter()
            .flat_map(|piece| [repeat(piece), piece.repeat(8000 / piece.len())])
            .collect();
    // Within the limit of length, and hard.
    inputs.extend([
        (1..900).map(|i| format!("x+{i}")).collect::<Vec<_>>().join(","),
        (1..400).map(|i| format!("\\sqrt{{{i}}}")).collect::<Vec<_>>().join(","),
        format!("2{}", "^2".repeat(60)),
        format!("{}5{}", "(".repeat(3000), ")".repeat(3000)),
        format!("9{}", "!".repeat(1000)),
        format!("{}1{}", "1\\frac{".repeat(500), "}{2}".repeat(500)),
        "9^9999 * 9^9999 * 8^8888".repeat(100),
        (1..200).map(|_| "\\pm 1").collect::<Vec<_>>().join(" + "),
        format!("{}1{}", "\\{\\pm ".repeat(15), "\\}".repeat(15)),
        "1".repeat(999) + "/" + &"7".repeat(999),
        format!("{}\\begin{{pmatrix}}1\\end{{pmatrix}}{}", "2(".repeat(30), ")".repeat(30)),
        (1..60).map(|i| format!("{i}(2(\\begin{{pmatrix}}1&{i}\\end{{pmatrix}}))")).collect::<Vec<_>>().join(","),
        format!("5 \\text{{{}公里 mm}}", "立方".repeat(11)),
        format!("5 \\text{{{}米}}", "平方".repeat(12)),
        (1..300).map(|i| format!("x \\ne {i}")).collect::<Vec<_>>().join(" and "),
        (1..300).map(|i| format!("{i}")).collect::<Vec<_>>().join(":"),
        "\\binom{99999999999}{49999999999}".into(),
        "A. ".repeat(2000),
        "∠A".repeat(1500),
    ]);
    for text in &inputs {
        for other in [
            text.clone(),
            format!("{text} "),
            "5".into(),
            text.replace('1', "2"),
            format!("{text}+1"),
            format!("0,{text}"),
            "\\begin{pmatrix}1\\end{pmatrix}".into(),
        ] {
            let start = computed();
            for mode in [STRICT, Mode::Limo] {
                let equal = same_answer(&text.clone(), &other, mode);
                assert!(
                    !equal || text.len() <= 8192 || text.trim() == other.trim(),
                    "{} bytes are equal to {} bytes",
                    text.len(),
                    other.len()
                );
            }
            let head: String = text.chars().take(40).collect();
            let took = computed() - start;
            assert!(took < Duration::from_secs(2), "{head}… of {} bytes took {took:?}", text.len());
        }
        extract(text, Extraction::Auto);
        extract(text, Extraction::AutoChoice);
        limo::extract(text);
    }
    let nested = |depth| format!("{}5{}", "(".repeat(depth), ")".repeat(depth));
    assert!(same_answer(&nested(20), "5", STRICT) && !same_answer(&nested(200), "5", STRICT));
    let response = "we get 12 ".repeat(1_000_000) + "\\boxed{7}";
    assert_eq!(extract(&response, Extraction::Auto).as_deref(), Some("7"));
}

#[test]
fn every_variable_takes_both_signs_and_parities() {
    const GREEK: &[&str] = &[
        "alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu", "nu", "xi",
        "rho", "sigma", "tau", "upsilon", "phi", "chi", "psi", "omega", "Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi",
        "Sigma", "Phi", "Psi", "Omega",
    ];
    let same = |a: &str, b: &str| same_answer(a, b, STRICT);
    let letters: Vec<String> = ('a'..='z').chain('A'..='Z').filter(|c| !"ei".contains(*c)).map(String::from).collect();
    let names =
        letters.iter().cloned().chain(GREEK.iter().map(|name| format!("\\{name}"))).chain(["x_1".into(), "x_{12}".into()]);
    for v in names {
        assert!(!same(&format!("|{v}|"), &v) && !same(&format!("\\sqrt{{{v}^2}}"), &v), "{v} is always positive");
        assert!(!same(&format!("-|{v}|"), &v), "{v} is always negative");
        assert!(!same(&format!("(-1)^{{{v}}}"), "1") && !same(&format!("(-1)^{{{v}}}"), "-1"), "{v} has one parity");
        assert!(same(&format!("|{v}|"), &format!("\\sqrt{{{v}^2}}")) && same(&format!("(-1)^{{2{v}}}"), "1"), "{v}");
    }
    for (i, v) in letters.iter().enumerate() {
        for w in &letters[..i] {
            assert!(!same(&format!("|{v} {w}|"), &format!("{v} {w}")), "{v} and {w} have the same signs");
            assert!(!same(&format!("-|{v} {w}|"), &format!("{v} {w}")), "{v} and {w} have opposite signs");
            assert!(!same(&format!("(-1)^{{{v}+{w}}}"), "1"), "{v} and {w} have the same parities");
        }
    }
}

/// 800 distinct wrong answers of one problem: parsed once each, whatever the number of comparisons.
#[test]
fn many_distinct_answers_vote_quickly() {
    let answers = (0..800).map(|i| (Some(format!("\\frac{{{i} + \\sqrt{{{}}}}}{{3}}", 2 * i + 1)), false)).collect::<Vec<_>>();
    for mode in [STRICT, Mode::Limo] {
        let start = computed();
        let count = votes(&answers, mode).len();
        let took = computed() - start;
        println!("{mode:?}: {count} classes in {took:?}");
        assert!(took < Duration::from_secs(10), "{mode:?} takes {took:?}");
        assert!(count == 800);
    }
}

#[test]
fn answers_are_parsed_once_for_many_comparisons() {
    let gold = strict::Answer::parse("\\frac{1}{2}");
    let votes: Vec<bool> =
        ["0.5", "1/2", "2", "50\\%"].map(|text| strict::Answer::parse(text).equals(&gold, Options::default())).into();
    assert_eq!(votes, [true, true, false, false]);
    assert_eq!(majority_at_k(&[], 3, 1), Some(0.0));
}
