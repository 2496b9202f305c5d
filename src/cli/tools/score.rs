//! `limo-score`.

use super::frame::{Frame, FrameArgs, chain_key};
use crate::curation::chain_score::{ChainScore, Keywords, WordLists, sketch};
use crate::curation::fields::{CHAINS, PROBLEMS, Row, id, present, some_text, text, value};
use crate::curation::ranks::{levels, rank_correlation};
use crate::curation::rubric::{self, Verdict};
use crate::error::{Result, io_error, write_error};
use crate::io::write_atomic;
use crate::report::{Report, bins};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Score reasoning chains: length, verification, exploration, connectives
///
/// Reads chains (id of the problem, and response, completion, solution, output or text), writes them with score, score_parts and quality (L1 to L5).
///
/// Example: limo-score chains.jsonl --report scores.html > scored.jsonl
///
/// docs/data.md has the fields and the formula.
#[derive(Parser)]
#[command(name = "limo-score", version)]
pub struct ScoreArgs {
    #[command(flatten)]
    frame: FrameArgs,
    /// default: whole words, parts from 0 to 1; sketch: the formula that circulates, for comparison
    #[arg(long, value_enum, default_value_t = Formula::Default)]
    formula: Formula,
    /// Word lists instead of the built-in ones, which src/curation/words.toml has
    #[arg(long, value_name = "FILE")]
    words: Option<PathBuf>,
    /// Fifths of the chains of each problem, or of all chains
    #[arg(long, value_enum, default_value_t = Scope::Problem)]
    levels: Scope,
    /// The table has a row for each value of this field; `file`, where rows have no such field: for each file
    #[arg(long, value_name = "FIELD", default_value = "quality")]
    by: String,
    /// Also write requests to a judge, as `limo-engine sample` reads them
    #[arg(long, value_name = "FILE")]
    rubric: Option<PathBuf>,
    /// What a judge answered to these requests, as `limo-engine sample` writes it: added to the rows as `rubric`
    #[arg(long, value_name = "FILE")]
    verdicts: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Formula {
    Default,
    Sketch,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scope {
    Problem,
    All,
}

/// A chain that was read, and its score.
struct Scored {
    row: Row,
    /// Of the problem.
    id: String,
    /// Of the chain, for the judge.
    key: String,
    score: ChainScore,
    file: PathBuf,
}

pub fn run(args: ScoreArgs) -> Result<()> {
    let lists = match &args.words {
        None => WordLists::built_in(),
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| io_error(path, e))?;
            WordLists::parse(&text).map_err(|e| e.context(path.display()))?
        }
    };
    let inputs = [("--words", &args.words), ("--verdicts", &args.verdicts)];
    let inputs: Vec<(&str, &Path)> = inputs.iter().filter_map(|(flag, path)| Some((*flag, path.as_deref()?))).collect();
    let mut frame = Frame::open(&args.frame, &inputs, &[("--rubric", args.rubric.as_ref())])?;
    let verdicts = args.verdicts.as_ref().map(|path| frame.read_keyed(path, verdict)).transpose()?;
    let mut chains: Vec<Scored> = Vec::new();
    while let Some((place, row)) = frame.next_row()? {
        match score(&row, &args, &lists) {
            Ok((id, key, score)) => chains.push(Scored { row, id, key, score, file: place.file }),
            Err(what) => frame.broken_row(row, &place, &what)?,
        }
    }
    if let Some(path) = &args.rubric {
        write_requests(path, &chains)?;
    }
    add_levels(&mut chains, args.levels);
    let mut agreement = Vec::new();
    for chain in &mut chains {
        if let Some(verdict) = verdicts.as_ref().and_then(|verdicts| verdicts.get(&chain.key)) {
            agreement.push((chain.score.score, verdict.mean()));
            chain.row.insert("rubric".into(), json!(verdict));
        }
        frame.write(&chain.row)?;
    }
    let table = table(&chains, &args.by, &lists);
    super::print_table(&frame, &HEADERS, &table);
    if let Some(verdicts) = &verdicts {
        let keys: HashSet<&str> = chains.iter().map(|chain| chain.key.as_str()).collect();
        let found = verdicts.keys().filter(|key| keys.contains(key.as_str())).count();
        frame.tell(&format!("verdicts: {found} of {} are on chains that are here", verdicts.len()));
    }
    let agrees = verdicts.map(|_| match rank_correlation(&agreement) {
        Some(rho) => format!("score and rubric: rank correlation {rho:.3} over {} chains", agreement.len()),
        None => format!("score and rubric: {} chains have both, or they are all alike: no correlation", agreement.len()),
    });
    agrees.iter().for_each(|line| frame.tell(line));
    frame.finish("Scores of chains", |report| fill(report, &chains, &table, agrees.as_deref()))
}

fn score(row: &Row, args: &ScoreArgs, lists: &WordLists) -> Result<(String, String, ChainScore), String> {
    let (id, chain) = (id(row)?, some_text(row, &CHAINS)?);
    if args.rubric.is_some() {
        some_text(row, &PROBLEMS).map_err(|what| format!("{what}: a judge needs the problem"))?;
    }
    let (key, score) =
        (chain_key(&id, chain), if args.formula == Formula::Sketch { sketch(chain) } else { ChainScore::of(chain, lists) });
    Ok((id, key, score))
}

fn add_levels(chains: &mut [Scored], scope: Scope) {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, chain) in chains.iter().enumerate() {
        groups.entry(if scope == Scope::All { "" } else { &chain.id }).or_default().push(at);
    }
    let mut of = vec![0; chains.len()];
    for group in groups.values() {
        let scores: Vec<f64> = group.iter().map(|&at| chains[at].score.score).collect();
        group.iter().zip(levels(&scores)).for_each(|(&at, level)| of[at] = level);
    }
    for (chain, level) in chains.iter_mut().zip(of) {
        let ChainScore { score, length, verification, exploration, connectives, words } = chain.score;
        chain.row.insert("score".into(), json!(score));
        let parts = json!({"length": length, "verification": verification, "exploration": exploration, "connectives": connectives, "words": words});
        chain.row.insert("score_parts".into(), parts);
        chain.row.insert("quality".into(), json!(format!("L{level}")));
    }
}

const HEADERS: [&str; 6] = ["", "chains", "mean score", "mean words", "mean tokens", "keywords"];

/// Lengths and keywords by the values of a field.
fn table(chains: &[Scored], by: &str, lists: &WordLists) -> Vec<Vec<String>> {
    #[derive(Default)]
    struct Group {
        chains: f64,
        score: f64,
        words: f64,
        tokens: Option<f64>,
        keywords: Keywords,
    }
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for chain in chains {
        let by_file = by == "file" && present(&chain.row, by).is_none();
        let name = if by_file { chain.file.display().to_string() } else { value(&chain.row, by) };
        let group = groups.entry(name).or_insert_with(|| Group { tokens: Some(0.0), ..Group::default() });
        group.chains += 1.0;
        group.score += chain.score.score;
        group.words += chain.score.words;
        let tokens = present(&chain.row, "tokens").and_then(Value::as_f64);
        group.tokens = group.tokens.zip(tokens).map(|(sum, tokens)| sum + tokens);
        group.keywords.add(text(&chain.row, &CHAINS).unwrap_or_default(), lists);
    }
    let row = |(name, group): (String, Group)| {
        let mean = |sum: f64| format!("{:.0}", sum / group.chains);
        vec![
            name,
            format!("{:.0}", group.chains),
            format!("{:.3}", group.score / group.chains),
            mean(group.words),
            group.tokens.map_or("?".to_string(), mean),
            group.keywords.top(5).join(", "),
        ]
    };
    groups.into_iter().map(row).collect()
}

fn fill(report: &mut Report, chains: &[Scored], table: &[Vec<String>], agreement: Option<&str>) {
    report.heading("Lengths and keywords").table(&HEADERS, table);
    let of = |part: fn(&ChainScore) -> f64| bins(&chains.iter().map(|chain| part(&chain.score)).collect::<Vec<_>>(), 20);
    report.heading("Scores").histogram("chains by score", &of(|s| s.score)).histogram("chains by words", &of(|s| s.words));
    report.heading("Parts").histogram("length", &of(|s| s.length)).histogram("verification", &of(|s| s.verification));
    report.histogram("exploration", &of(|s| s.exploration)).histogram("connectives", &of(|s| s.connectives));
    if let Some(line) = agreement {
        report.heading("Agreement with the judge").text(line);
    }
}

/// A request a chain, one for equal ones; its id leads back to it.
fn write_requests(path: &Path, chains: &[Scored]) -> Result<()> {
    let mut asked = HashSet::new();
    write_atomic(path, |out| {
        for Scored { row, key, .. } in chains.iter().filter(|chain| asked.insert(&chain.key)) {
            let (problem, chain) = (text(row, &PROBLEMS).unwrap_or_default(), text(row, &CHAINS).unwrap_or_default());
            let messages = json!([
                {"role": "system", "content": rubric::SYSTEM},
                {"role": "user", "content": rubric::question(problem, chain)},
            ]);
            writeln!(out, "{}", json!({"id": key, "messages": messages})).map_err(|e| write_error(path, e))?;
        }
        Ok(())
    })
}

/// A verdict, and the key of its chain.
fn verdict(row: Row) -> Result<(String, Verdict), String> {
    Ok((id(&row)?, rubric::read(text(&row, &["text"])?)?))
}
