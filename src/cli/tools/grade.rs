//! `limo-grade`.

use super::frame::{Frame, FrameArgs, Place, Source};
use crate::curation::fields::{CHAINS, PROBLEMS, Row, id, present, text, value};
use crate::error::{Error, Result};
use crate::grading::strict::Options;
use crate::grading::{Estimate, Extraction, Gold, Mode, Votes, majority_at_k, mean_with_interval, pass_at_k, votes};
use crate::report::Bar;
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

/// Grade answers: find the final answer of each response, and compare it with the gold answer
///
/// Reads rows with response, text or solution and their own answer, or joins them by id to the rows of --gold. Writes each row with extracted and correct, and what it lacks of the gold row's problem, answer, source, subject and level. Prints avg@n with
/// an interval, pass@k and maj@k, of all and by subject and level.
///
/// Example: limo-grade --gold configs/tiny/heldout.jsonl samples.jsonl > graded.jsonl
///
/// docs/data.md has the rules of both modes.
#[derive(Parser)]
#[command(name = "limo-grade", version)]
pub struct GradeArgs {
    #[command(flatten)]
    frame: FrameArgs,
    /// Rows of id and answer (or choice_answer), with subject and level where they are known
    #[arg(long, value_name = "FILE")]
    gold: Option<PathBuf>,
    /// strict: the same mathematics; limo: the published rules of LIMO, which accept more
    #[arg(long, value_enum, default_value_t = ModeChoice::Strict)]
    mode: ModeChoice,
    /// boxed: the last \boxed; auto: without one also "the answer is", the last formula, the last number, a letter
    #[arg(long, value_enum, default_value_t = ExtractChoice::Boxed)]
    extract: ExtractChoice,
    /// Samples of pass@k and maj@k; only those that every problem has enough samples for are printed
    #[arg(long, value_name = "K,…", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    k: Vec<u32>,
    /// In strict mode 28 % also equals 0.28
    #[arg(long)]
    percent_as_fraction: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ModeChoice {
    Strict,
    Limo,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ExtractChoice {
    Boxed,
    Auto,
}

/// A problem's gold answer, and what it is counted under.
struct Problem {
    gold: Gold,
    /// What its samples are given where they lack it, so that they can be scored and selected.
    fields: Row,
    /// "subject: algebra", "level: 5"
    groups: Vec<String>,
    place: Place,
}

/// Fields of gold rows that samples are given.
const JOINED: [&str; 7] = ["problem", "question", "prompt", "answer", "source", "subject", "level"];

/// The samples of each problem by each model, which is empty where rows name none.
type Graded = BTreeMap<(String, String), Samples>;

/// The samples of a problem by a model.
#[derive(Default)]
struct Samples {
    groups: Vec<String>,
    /// What each one answered, and whether that is right.
    answers: Vec<(Option<String>, bool)>,
    names: HashSet<String>,
    /// Classes of equal answers, where there are votes.
    votes: Vec<Votes>,
}

pub fn run(args: GradeArgs) -> Result<()> {
    let options = Options { percent_as_fraction: args.percent_as_fraction };
    let mode = if args.mode == ModeChoice::Limo { Mode::Limo } else { Mode::Strict(options) };
    let inputs: Vec<(&str, &Path)> = args.gold.iter().map(|path| ("--gold", path.as_path())).collect();
    let mut frame = Frame::open(&args.frame, &inputs, &[])?;
    let problems = args.gold.as_ref().map(|path| read_gold(&mut frame, path, mode)).transpose()?;
    let mut graded = Graded::new();
    let mut number = 0usize;
    while let Some((place, mut row)) = frame.next_row()? {
        let result = grade(&mut row, number, problems.as_ref(), &mut graded, mode, args.extract);
        number += 1;
        match result {
            Ok(()) => frame.write(&row)?,
            Err(what) => frame.broken_row(row, &place, &what)?,
        }
    }
    // Once nobody reads what is written, samples are left unread.
    let all_read = !frame.closed;
    let models: BTreeSet<String> = graded.keys().map(|(model, _)| model.clone()).collect();
    let models = if models.is_empty() { BTreeSet::from([String::new()]) } else { models };
    for model in models.iter().filter(|_| all_read) {
        for (id, problem) in problems.iter().flatten().filter(|(id, _)| !graded.contains_key(&(model.clone(), id.to_string())))
        {
            let by = if model.is_empty() { String::new() } else { format!(" of {model}") };
            frame.broken_beside(&problem.place, &format!("id {id} has no samples{by}"))?;
        }
    }
    let ks: BTreeSet<usize> = args.k.iter().map(|&k| k as usize).collect();
    let samples = graded.iter().map(|((_, id), samples)| (id, samples.answers.len()));
    if let Some((id, fewest)) = samples.min_by_key(|(_, samples)| *samples) {
        for k in ks.iter().filter(|&&k| k > fewest) {
            frame.tell(&format!("no pass@{k} and maj@{k}: id {id} has {fewest} samples"));
        }
    }
    // A vote of one sample is that sample.
    if ks.iter().any(|&k| k > 1) {
        graded.values_mut().for_each(|samples| samples.votes = votes(&samples.answers, mode));
    }
    let table = table(&graded, &ks);
    let headers: Vec<&str> = table.headers.iter().map(String::as_str).collect();
    super::print_table(&frame, &headers, &table.rows);
    frame.finish("Grades", |report| {
        report.heading("Results").table(&headers, &table.rows);
        report.text("Intervals are of 95 % for the mean over all problems like these; problems are the units, not samples.");
        let (title, bars) = solved(&graded);
        report.heading("Problems").histogram(title, &bars);
    })
}

/// The gold answers of a file by id.
fn read_gold(frame: &mut Frame, path: &PathBuf, mode: Mode) -> Result<BTreeMap<String, Problem>> {
    let mut source = Source::new(std::slice::from_ref(path));
    let mut problems = BTreeMap::new();
    let mut number = 0usize;
    while let Some((place, row)) = source.next_row()? {
        let read = row.and_then(|row| {
            let id = if present(&row, "id").is_some() { id(&row)? } else { number.to_string() };
            let fields = JOINED.iter().filter_map(|name| Some((name.to_string(), present(&row, name)?.clone()))).collect();
            let problem = Problem { gold: gold(&row, mode)?, fields, groups: groups(&row), place: place.clone() };
            if problems.contains_key(&id) { Err(format!("there is an answer to id {id} already")) } else { Ok((id, problem)) }
        });
        number += 1;
        match read {
            Ok((id, problem)) => drop(problems.insert(id, problem)),
            Err(what) => frame.broken_beside(&place, &what)?,
        }
    }
    if problems.is_empty() {
        return Err(Error::data(format!("{}: no gold answers", path.display())).help("rows have id and answer"));
    }
    Ok(problems)
}

fn gold(row: &Row, mode: Mode) -> Result<Gold, String> {
    // Where the answer is the text of an option, its letter stands beside it.
    let value = present(row, "choice_answer").or_else(|| present(row, "answer")).ok_or("no gold answer: no \"answer\"")?;
    Gold::new(value, mode).ok_or_else(|| "no gold answer: \"answer\" is empty".to_string())
}

fn groups(row: &Row) -> Vec<String> {
    let named = |name: &str| match present(row, name)? {
        Value::String(value) => Some(format!("{name}: {value}")),
        Value::Number(value) => Some(format!("{name}: {value}")),
        _ => None,
    };
    ["subject", "level"].into_iter().filter_map(named).collect()
}

/// Grades a row, and adds what it found.
fn grade(
    row: &mut Row,
    number: usize,
    problems: Option<&BTreeMap<String, Problem>>,
    graded: &mut Graded,
    mode: Mode,
    extract: ExtractChoice,
) -> Result<(), String> {
    let response = text(row, &CHAINS)?;
    let id = if present(row, "id").is_some() || problems.is_some() { id(row)? } else { number.to_string() };
    let own;
    let problem =
        problems.map(|problems| problems.get(&id).ok_or_else(|| format!("--gold has no answer to id {id}"))).transpose()?;
    let (gold, groups) = match problem {
        Some(problem) => (&problem.gold, problem.groups.clone()),
        None => {
            own = gold(row, mode)?;
            (&own, groups(row))
        }
    };
    let model = present(row, "model").map_or_else(String::new, |_| value(row, "model"));
    let samples = graded.get(&(model.clone(), id.clone()));
    let name = present(row, "sample").map_or_else(|| samples.map_or(0, |s| s.answers.len()).to_string(), Value::to_string);
    if samples.is_some_and(|samples| samples.names.contains(&name)) {
        return Err(format!("sample {name} of id {id} was graded already"));
    }
    let choice = matches!(gold.text().trim().as_bytes(), [b'A'..=b'J']);
    let extraction = match (extract, choice) {
        (ExtractChoice::Boxed, _) => Extraction::Boxed,
        (ExtractChoice::Auto, true) => Extraction::AutoChoice,
        (ExtractChoice::Auto, false) => Extraction::Auto,
    };
    let answer = gold.answer_in(response, extraction);
    let correct = answer.as_ref().is_some_and(|answer| gold.accepts(answer));
    if present(row, "id").is_none() {
        row.insert("id".into(), id.clone().into());
    }
    if present(row, "sample").is_none() {
        row.insert("sample".into(), samples.map_or(0, |samples| samples.answers.len()).into());
    }
    row.insert("extracted".into(), json!(answer));
    row.insert("correct".into(), correct.into());
    let asked = PROBLEMS.iter().any(|name| present(row, name).is_some());
    for (name, value) in problem.into_iter().flat_map(|problem| &problem.fields) {
        if present(row, name).is_none() && !(asked && PROBLEMS.contains(&name.as_str())) {
            row.insert(name.clone(), value.clone());
        }
    }
    let samples = graded.entry((model, id)).or_insert_with(|| Samples { groups, ..Samples::default() });
    samples.names.insert(name);
    samples.answers.push((answer, correct));
    Ok(())
}

struct Table {
    headers: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// What is estimated of groups of problems, of each model if there are several.
fn table(graded: &Graded, ks: &BTreeSet<usize>) -> Table {
    let several = graded.keys().any(|(model, _)| Some(model) != graded.keys().next().map(|(model, _)| model));
    let mut by_group: BTreeMap<(&str, &str), Vec<&Samples>> = BTreeMap::new();
    for ((model, _), samples) in graded {
        let model = if several { model.as_str() } else { "" };
        by_group.entry((model, "")).or_default().push(samples);
        samples.groups.iter().for_each(|name| by_group.entry((model, name)).or_default().push(samples));
    }
    let fewest = graded.values().map(|samples| samples.answers.len()).min().unwrap_or(0);
    let ks: Vec<usize> = ks.iter().copied().filter(|&k| k <= fewest).collect();
    let mut headers = ["", "problems", "samples", "avg@n", "95 % interval"].map(String::from).to_vec();
    headers.extend(ks.iter().map(|k| format!("pass@{k}")));
    headers.extend(ks.iter().filter(|&&k| k > 1).map(|k| format!("maj@{k}")));
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let name = |(model, group): (&str, &str)| match (model, group) {
        ("", "") => if several { "no model" } else { "all" }.to_string(),
        ("", name) | (name, "") => name.to_string(),
        (model, group) => format!("{model}, {group}"),
    };
    let row = |(group, samples): ((&str, &str), Vec<&Samples>)| {
        let count: usize = samples.iter().map(|samples| samples.answers.len()).sum();
        let results: Vec<(usize, usize)> = samples.iter().map(|samples| (samples.correct(), samples.answers.len())).collect();
        let mut cells = vec![name(group), samples.len().to_string(), count.to_string()];
        match mean_with_interval(&results, 0.95) {
            Some(Estimate { mean, low, high, .. }) => {
                cells.extend([percent(mean), format!("{:.1} to {:.1}", 100.0 * low, 100.0 * high)])
            }
            None => cells.extend(["?", "?"].map(String::from)),
        }
        let mean = |of: &dyn Fn(&Samples) -> Option<f64>| {
            let values: Option<Vec<f64>> = samples.iter().map(|samples| of(samples)).collect();
            values.map_or("?".to_string(), |values| percent(values.iter().sum::<f64>() / values.len().max(1) as f64))
        };
        for &k in &ks {
            cells.push(mean(&|samples| pass_at_k(samples.answers.len() as u64, samples.correct() as u64, k as u64)));
        }
        for &k in ks.iter().filter(|&&k| k > 1) {
            cells.push(mean(&|samples| majority_at_k(&samples.votes, samples.silent(), k)));
        }
        cells
    };
    Table { headers, rows: by_group.into_iter().map(row).collect() }
}

impl Samples {
    fn correct(&self) -> usize {
        self.answers.iter().filter(|(_, correct)| *correct).count()
    }

    fn silent(&self) -> usize {
        self.answers.iter().filter(|(answer, _)| answer.is_none()).count()
    }
}

/// Problems by how many of their samples are right, or by shares if these are many or not the same number of all.
fn solved(graded: &Graded) -> (&'static str, Vec<Bar>) {
    const MOST: usize = 16;
    const BINS: usize = 10;
    let counts: BTreeSet<usize> = graded.values().map(|samples| samples.answers.len()).collect();
    let bars = |bins: usize, bin: &dyn Fn(&Samples) -> usize, label: &dyn Fn(usize) -> String| {
        let mut problems = vec![0usize; bins];
        graded.values().for_each(|samples| problems[bin(samples)] += 1);
        problems.into_iter().enumerate().map(|(at, count)| Bar::new(label(at), count as f64)).collect()
    };
    match counts.first() {
        Some(&n) if counts.len() == 1 && n <= MOST => {
            ("problems by correct samples", bars(n + 1, &Samples::correct, &|at| at.to_string()))
        }
        _ => {
            let bin = |samples: &Samples| (samples.correct() * BINS / samples.answers.len().max(1)).min(BINS - 1);
            let label = |at: usize| format!("{}–{} %", 100 * at / BINS, 100 * (at + 1) / BINS);
            ("problems by share of correct samples", bars(BINS, &bin, &label))
        }
    }
}
