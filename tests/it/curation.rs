//! Duplicates and benchmark copies in texts made for it, and in real benchmarks where they are.

use limo_engine::curation::decontaminate::{Benchmarks, Findings, Known};
use limo_engine::curation::dedupe::{Dedupe, THRESHOLD};
use limo_engine::curation::normalise::{normalise, words};
use limo_engine::curation::pool::problem_text;
use limo_engine::testing::random::Random;
use std::collections::{HashMap, HashSet};
use std::path::Path;

const BENCHMARKS: [&str; 9] =
    ["aime", "amc", "math", "minerva", "olympiadbench", "cn_math_2024", "gaokao", "kaoyan", "grade_school_math"];

/// A benchmark's problems. None where the data is not there.
fn benchmark(name: &str) -> Option<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../shared/data/benchmarks/{name}.jsonl"));
    let text = std::fs::read_to_string(&path).ok()?;
    Some(text.lines().map(|line| problem_text(&serde_json::from_str(line).unwrap()).unwrap()).collect())
}

fn known(name: &str, problems: &[String]) -> Benchmarks {
    let row = |(at, problem): (usize, &'_ String)| (at.to_string(), problem.clone());
    let rows: Vec<_> = problems.iter().enumerate().map(row).collect();
    Benchmarks::new(rows.iter().map(|(id, problem)| Known { benchmark: name, id: id.clone(), problem }))
}

/// Problems that nobody wrote: 12 to 60 words, many of them common, with formulas.
fn made_up(count: usize, random: &mut Random) -> Vec<String> {
    const COMMON: [&str; 24] = [
        "the", "of", "a", "and", "is", "that", "find", "number", "let", "for", "all", "positive", "integers", "such", "value",
        "what", "in", "to", "be", "with", "points", "line", "sum", "which",
    ];
    let word = |random: &mut Random| match random.below(10) {
        0 => format!("$x_{{{}}}+{}y$", random.below(9), random.below(50)),
        1 => format!("$\\frac{{{}}}{{{}}}$", random.below(30), random.below(30) + 1),
        2 => random.below(2000).to_string(),
        3..6 => COMMON[random.below(COMMON.len())].to_string(),
        _ => (0..2 + random.below(3)).map(|_| ["ba", "ke", "lo", "mi", "nu", "ra", "sto", "ven"][random.below(8)]).collect(),
    };
    (0..count).map(|_| (0..12 + random.below(48)).map(|_| word(random)).collect::<Vec<_>>().join(" ") + ".").collect()
}

/// Chinese problems that nobody wrote.
fn made_up_chinese(count: usize, random: &mut Random) -> Vec<String> {
    let characters: Vec<char> = "小明红有个苹果梨共多少千米每时走到学校分钟求几甲乙两地相距车速已知函数正整数和差积面半径圆三角形边长元买书页天工人完成".chars().collect();
    let text = |random: &mut Random| {
        let mut text = String::new();
        for at in 0..20 + random.below(60) {
            text.push(characters[random.below(characters.len())]);
            if at % 9 == 8 {
                text.push_str(&format!("${}$，", random.below(99)));
            }
        }
        text + "？"
    };
    (0..count).map(|_| text(random)).collect()
}

/// Upper case, but for LaTeX.
fn recased(text: &str) -> String {
    let word = |word: &str| if word.contains('\\') { word.to_string() } else { word.to_uppercase() };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn repunctuated(text: &str) -> String {
    let change = |c| match c {
        ',' => ';',
        '.' => ',',
        ';' => ':',
        '?' => '.',
        '，' => '、',
        '。' => '；',
        '？' => '。',
        c => c,
    };
    text.replace('$', "").chars().map(change).collect()
}

fn is_chinese(c: char) -> bool {
    ('\u{4e00}'..='\u{9fff}').contains(&c)
}

/// Every tenth word of the normalised text is another. None for fewer than ten.
fn one_in_ten_words(text: &str, random: &mut Random) -> Option<String> {
    let (text, first) = (normalise(text), random.below(10));
    let word = |(at, word)| if at % 10 == first { "zebra" } else { word };
    (words(&text).count() >= 10).then(|| words(&text).enumerate().map(word).collect::<Vec<_>>().join(" "))
}

/// Every tenth word as spaces part them is another, be it a formula, or in a Chinese text every tenth Chinese character; which one is first is drawn. None for fewer than ten.
fn one_in_ten(text: &str, random: &mut Random) -> Option<String> {
    let first = random.below(10);
    let characters = text.chars().filter(|c| is_chinese(*c)).count();
    if characters >= 10 {
        let mut at = 0;
        let mut other = |c| {
            at += usize::from(is_chinese(c));
            if is_chinese(c) && at % 10 == first { '鑫' } else { c }
        };
        return Some(text.chars().map(&mut other).collect());
    }
    let words: Vec<_> = text.split_whitespace().collect();
    let word = |(at, word)| if at % 10 == first { "zebra" } else { word };
    (words.len() >= 10).then(|| words.into_iter().enumerate().map(word).collect::<Vec<_>>().join(" "))
}

fn inside(text: &str) -> String {
    format!(
        "Our teacher wrote this on the board last week, and nobody in the whole class knew how to begin: {text} Explain every step of \
         your work, so that a pupil of ten can follow it, and check the result in a second way."
    )
}

/// How many problems each kind of copy was found of, and what was missed.
fn plant(problems: &[String], known: &Benchmarks, random: &mut Random) -> HashMap<&'static str, (usize, Vec<String>)> {
    let mut counts = HashMap::new();
    for problem in problems {
        let copies = [
            ("verbatim", Some(problem.clone())),
            ("re-cased", Some(recased(problem))),
            ("punctuation", Some(repunctuated(problem))),
            ("one word in ten", one_in_ten_words(problem, random)),
            ("one word or formula in ten", one_in_ten(problem, random)),
            ("inside", Some(inside(problem))),
        ];
        for (kind, text) in copies.into_iter().filter_map(|(kind, text)| Some((kind, text?))) {
            let (found, missed): &mut (usize, Vec<String>) = counts.entry(kind).or_default();
            match known.find(&text).copy {
                Some(_) => *found += 1,
                None => missed.push(text),
            }
        }
    }
    counts
}

#[test]
fn planted_copies_of_made_up_problems_are_all_found() {
    let mut random = Random::new(11);
    for problems in [made_up(200, &mut random), made_up_chinese(200, &mut random)] {
        let known = known("made-up", &problems);
        for (kind, (found, missed)) in plant(&problems, &known, &mut random) {
            assert_eq!((found, missed), (200, Vec::new()), "{kind}");
        }
    }
}

#[test]
fn short_problems_are_found_by_their_whole_text() {
    let mut random = Random::new(12);
    let problem = |at: usize| match at % 4 {
        0 => format!("Compute ${}+{}$.", 100 + at, random.below(1000)),
        1 => format!("What is $\\sqrt{{{}}}$?", 100 + at),
        2 => format!("Solve ${}x = {}$.", 100 + at, random.below(1000)),
        _ => format!("计算：${}\\times{}$", 100 + at, random.below(1000)),
    };
    let problems: Vec<String> = (0..200).map(problem).collect();
    assert!(problems.iter().all(|problem| (4..8).contains(&words(&normalise(problem)).count())));
    let known = known("short", &problems);
    for (at, problem) in problems.iter().enumerate() {
        for text in [problem.clone(), recased(problem), repunctuated(problem), inside(problem)] {
            // The characters of four Chinese words can stand anywhere, so they must be the whole text.
            let whole = at % 4 == 3 && text.contains("teacher") && words(&normalise(problem)).count() < 4;
            let copy = known.find(&text).copy;
            assert_eq!(copy.map(|copy| copy.id), (!whole).then(|| at.to_string()), "{text}");
        }
    }
}

#[test]
fn unrelated_problems_are_left_alone() {
    let mut random = Random::new(13);
    let known = known("made-up", &made_up(1000, &mut random));
    let others = made_up(1000, &mut random);
    let found: Vec<_> = others.iter().map(|problem| known.find(problem)).collect();
    assert!(found.iter().all(|found| found.copy.is_none() && found.grams13.is_none()));
}

#[test]
fn planted_copies_of_real_problems_are_found() {
    let sets: Vec<_> = BENCHMARKS.iter().filter_map(|name| Some((*name, benchmark(name)?))).collect();
    if sets.len() < BENCHMARKS.len() {
        eprintln!("skipped 1 test: {} of {} benchmarks are not there", BENCHMARKS.len() - sets.len(), BENCHMARKS.len());
        return;
    }
    let mut random = Random::new(14);
    let mut all: HashMap<&str, (usize, Vec<String>)> = HashMap::new();
    for (name, problems) in sets {
        for (kind, (found, missed)) in plant(&problems, &known(name, &problems), &mut random) {
            let (sum, list) = all.entry(kind).or_default();
            *sum += found;
            list.extend(missed.into_iter().map(|text| format!("{name} {text}")));
        }
    }
    for (kind, (found, missed)) in &all {
        eprintln!("{kind}: {found} found, {} missed", missed.len());
        missed.iter().for_each(|text| eprintln!("    {}", text.chars().take(300).collect::<String>()));
    }
    for exact in ["verbatim", "re-cased", "punctuation", "inside"] {
        assert_eq!(all[exact].1, Vec::<String>::new(), "{exact}");
    }
    assert!(all["one word in ten"].1.is_empty(), "{:?}", all["one word in ten"].1);
    assert!(
        all["one word or formula in ten"].1.len() <= 12,
        "formulas that are gone: {:?}",
        all["one word or formula in ten"].1
    );
}

#[test]
fn olympiad_problems_flag_few_of_math500() {
    let (Some(math), Some(olympiad)) = (benchmark("math"), benchmark("olympiadbench")) else {
        eprintln!("skipped 1 test: the benchmarks are not there");
        return;
    };
    let known = known("olympiadbench", &olympiad);
    let found: Vec<_> = math.iter().map(|problem| known.find(problem)).collect();
    let count = |test: fn(&Findings) -> bool| found.iter().filter(|found| test(found)).count();
    for (at, copy) in found.iter().enumerate().filter_map(|(at, found)| Some((at, found.copy.as_ref()?))) {
        eprintln!("math {at}, olympiadbench {}, share {:.2}: {}", copy.id, copy.share, copy.text);
        eprintln!("    {}\n    {}", math[at], olympiad[copy.id.parse::<usize>().unwrap()]);
    }
    let (copies, long, short) =
        (count(|found| found.copy.is_some()), count(|found| found.grams13.is_some()), count(|found| found.grams8.is_some()));
    eprintln!("copies {copies}, 13-grams {long}, 8-grams {short} of {}", math.len());
    assert!(copies <= 10, "{copies} copies");
}

fn letters(random: &mut Random, n: usize) -> String {
    (0..n).map(|_| char::from(b'a' + random.below(26) as u8)).collect()
}

/// Two texts of distinct words whose shingle sets have about this Jaccard similarity: they share a beginning.
fn pair(similarity: f64, random: &mut Random) -> (String, String) {
    let shingles = 100.0;
    // With n shingles each and b in both: J = b / (2n - b).
    let both = (2.0 * shingles * similarity / (1.0 + similarity)).round() as usize;
    let mut fresh = |n: usize| (0..n).map(|_| letters(random, 12)).collect::<Vec<_>>();
    let shared = fresh(both + 4);
    let [a, b] = [fresh(100 - both), fresh(100 - both)].map(|rest| [shared.clone(), rest].concat().join(" "));
    (a, b)
}

#[test]
fn near_duplicates_are_found_as_often_as_theory_says() {
    const PAIRS: usize = 2000;
    let mut random = Random::new(15);
    for similarity in [0.6, 0.7, 0.8, 0.9f64] {
        let mut dedupe = Dedupe::new(0.01);
        let mut found = 0;
        for at in 0..PAIRS {
            let (a, b) = pair(similarity, &mut random);
            assert_eq!(dedupe.add(&format!("{at} a"), &a), None);
            if let Some(duplicate) = dedupe.add(&format!("{at} b"), &b) {
                assert_eq!(duplicate.of, format!("{at} a"));
                assert!((duplicate.similarity - similarity).abs() < 0.01, "{duplicate:?}");
                found += 1;
            }
        }
        let theory = 1.0 - (1.0 - similarity.powi(8)).powi(14);
        let recall = found as f64 / PAIRS as f64;
        eprintln!("Jaccard {similarity}: found {recall:.4}, in theory {theory:.4}");
        // Four standard errors, and the rounding of the similarity.
        let error = 4.0 * (theory * (1.0 - theory) / PAIRS as f64).sqrt() + 0.01;
        assert!((recall - theory).abs() <= error, "Jaccard {similarity}: {recall} against {theory} ± {error}");
    }
}

#[test]
fn decisions_depend_on_the_rows_before_alone() {
    let mut random = Random::new(16);
    let mut texts = made_up(400, &mut random);
    for _ in 0..200 {
        let copy = texts[random.below(texts.len())].clone();
        texts.push(if random.below(2) == 0 { recased(&copy) } else { one_in_ten(&copy, &mut random).unwrap() });
    }
    random.shuffle(&mut texts);
    let decide = |texts: &[String]| {
        let mut dedupe = Dedupe::new(THRESHOLD);
        texts.iter().enumerate().map(|(at, text)| dedupe.add(&at.to_string(), text)).collect::<Vec<_>>()
    };
    let decisions = decide(&texts);
    assert_eq!(decide(&texts[..300]), decisions[..300]);
    // What is dropped names a row that stays and came before.
    let kept: HashSet<_> = (0..texts.len()).filter(|at| decisions[*at].is_none()).collect();
    for (at, duplicate) in decisions.iter().enumerate().filter_map(|(at, found)| Some((at, found.as_ref()?))) {
        let of: usize = duplicate.of.parse().unwrap();
        assert!(of < at && kept.contains(&of) && duplicate.similarity >= THRESHOLD, "{at}: {duplicate:?}");
    }
    assert!(kept.len() < 500, "{} of {} kept", kept.len(), texts.len());
    // A second pass over what stays drops nothing.
    let rest: Vec<String> = (0..texts.len()).filter(|at| kept.contains(at)).map(|at| texts[at].clone()).collect();
    assert!(decide(&rest).iter().all(Option::is_none));
}

/// Peak resident memory of this process in bytes.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
}

/// Run alone, since memory is the process's: cargo test --test it a_million -- --ignored --nocapture --exact curation::a_million_rows
#[test]
#[ignore = "minutes, and measures the memory of the whole process"]
fn a_million_rows() {
    const ROWS: usize = 1_000_000;
    let mut random = Random::new(17);
    let problems = made_up(2000, &mut random);
    let known = known("made-up", &problems);
    // Words of an alphabet of 20,000, around 60 a row; 2 % exact and 3 % near duplicates of an earlier row, 1 % copies of the benchmark.
    let words: Vec<String> = (0..20_000)
        .map(|_| {
            let length = 3 + random.below(6);
            letters(&mut random, length)
        })
        .collect();
    let fresh = |random: &mut Random| {
        (0..40 + random.below(41)).map(|_| words[random.below(words.len())].as_str()).collect::<Vec<_>>().join(" ")
    };
    let row = |random: &mut Random, recent: &mut Vec<String>, planted: &mut [usize; 3]| match random.below(100) {
        0..2 if !recent.is_empty() => {
            planted[0] += 1;
            recent[random.below(recent.len())].to_uppercase()
        }
        2..5 if !recent.is_empty() => {
            planted[1] += 1;
            let text = &recent[random.below(recent.len())];
            text[..text.rfind(' ').unwrap()].to_string() + " zebra"
        }
        5 => {
            planted[2] += 1;
            one_in_ten(&problems[random.below(problems.len())], random).unwrap() + &format!(" {}", random.bits())
        }
        _ => {
            let text = fresh(random);
            if recent.len() < 1000 {
                recent.push(text.clone())
            } else {
                recent[random.below(1000)] = text.clone()
            }
            text
        }
    };
    let mut generate = random.clone();
    let (mut recent, mut planted) = (Vec::new(), [0usize; 3]);
    let begin = std::time::Instant::now();
    let bytes: usize = (0..ROWS).map(|_| row(&mut generate, &mut recent, &mut planted).len()).sum();
    let generating = begin.elapsed().as_secs_f64();
    eprintln!(
        "{ROWS} rows, {:.0} bytes each, made in {generating:.1} s; {planted:?} planted; peak {:.0} MB",
        bytes as f64 / ROWS as f64,
        peak() / 1e6
    );

    let before = peak();
    let mut dedupe = Dedupe::new(THRESHOLD);
    let (mut recent, mut planted) = (Vec::new(), [0usize; 3]);
    let (mut exact, mut near) = (0, 0);
    let begin = std::time::Instant::now();
    for at in 0..ROWS {
        match dedupe.add(&format!("synthetic-{at}"), &row(&mut random, &mut recent, &mut planted)) {
            Some(found) if found.exact => exact += 1,
            Some(_) => near += 1,
            None => {}
        }
    }
    let seconds = begin.elapsed().as_secs_f64() - generating;
    eprintln!(
        "duplicates: {:.0} rows a second, {} kept, {exact} exact, {near} near, of {planted:?}; peak {:.0} MB, {:.0} bytes a kept row",
        ROWS as f64 / seconds,
        dedupe.kept(),
        peak() / 1e6,
        (peak() - before) / dedupe.kept() as f64
    );
    assert!(exact >= planted[0] && near >= planted[1], "{exact} exact and {near} near of {planted:?}");
    drop(dedupe);

    let (mut recent, mut planted) = (Vec::new(), [0usize; 3]);
    let begin = std::time::Instant::now();
    let copies = (0..ROWS).filter(|_| known.find(&row(&mut random, &mut recent, &mut planted)).copy.is_some()).count();
    let seconds = begin.elapsed().as_secs_f64() - generating;
    eprintln!("benchmark copies: {:.0} rows a second, {copies} of {}", ROWS as f64 / seconds, planted[2]);
    // A changed word may be a long formula.
    assert!(1000 * copies >= 999 * planted[2], "{copies} of {planted:?}");
}
