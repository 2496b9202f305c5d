//! `limo-select`.

use super::frame::{CHAINS, Frame, FrameArgs, PROBLEMS, Row, Source, chain_key, id, present, text, value};
use crate::curation::selection::{Candidate, Options, Reason, select};
use crate::error::{Error, Result, write_error};
use crate::io::write_atomic;
use crate::report::{Bar, Review, bins, review};
use clap::Parser;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use xxhash_rust::xxh3::xxh3_64;

/// Choose the chains to train on: the best right one of each problem, ranked, balanced, without repetition
///
/// Reads scored chains (limo-score) with correct (limo-grade). Writes training rows: question, solution, answer, and where they came from, best first.
///
/// Example: limo-select scored.jsonl --top 800 --balance subject,level --review review.html > limo.jsonl
///
/// docs/data.md has the rules. The result depends on nothing but the chains and --seed.
#[derive(Parser)]
#[command(name = "limo-select", version)]
pub struct SelectArgs {
    #[command(flatten)]
    frame: FrameArgs,
    /// Problems that are wanted
    #[arg(long, value_name = "K", default_value_t = 800)]
    top: usize,
    /// Decides between equals
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Also take chains that nobody graded; wrong ones are never taken
    #[arg(long)]
    ungraded: bool,
    /// Only chains with one of these values in this field, as level=1,2 or quality=L1; of several flags all must hold
    #[arg(long, value_name = "FIELD=VALUE,…")]
    only: Vec<Only>,
    /// Only chains of the problems whose ids this file has
    #[arg(long, value_name = "FILE")]
    problems: Option<PathBuf>,
    /// Fields whose values are to be even, as subject,level,source
    #[arg(long, value_name = "FIELD,…", value_delimiter = ',')]
    balance: Vec<String>,
    /// A problem is left out that shares this much of its runs of five words (Jaccard) with a chosen one
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share)]
    likeness: f64,
    /// Rows of id and mean_logprob of the problems, from `limo-engine score --target prompt` with the base model: what it finds unlikely is novel
    #[arg(long, value_name = "FILE")]
    novelty: Option<PathBuf>,
    /// What novelty weighs beside the score; both are ranked first
    #[arg(long, value_name = "SHARE", default_value_t = 0.25, value_parser = share, requires = "novelty")]
    novelty_weight: f64,
    /// Also write a page on which a person accepts, edits or rejects the chosen chains
    #[arg(long, value_name = "FILE")]
    review: Option<PathBuf>,
    /// What that page saved: rejected chains make way for others, edited ones have the new text
    #[arg(long, value_name = "FILE")]
    decisions: Option<PathBuf>,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("must be a number from 0 to 1".to_string()),
    }
}

/// What a field must be.
#[derive(Debug, Clone)]
struct Only {
    field: String,
    values: Vec<String>,
}

impl FromStr for Only {
    type Err = String;

    fn from_str(text: &str) -> Result<Only, String> {
        let (field, values) = text.split_once('=').filter(|(field, _)| !field.is_empty()).ok_or("must be FIELD=VALUE,…")?;
        Ok(Only { field: field.to_string(), values: values.split(',').map(str::to_string).collect() })
    }
}

/// What a person said of a chain.
enum Decision {
    Accept,
    Reject,
    Edit(String),
}

pub fn run(args: SelectArgs) -> Result<()> {
    let inputs = [("--novelty", &args.novelty), ("--decisions", &args.decisions), ("--problems", &args.problems)];
    let inputs: Vec<(&str, &Path)> = inputs.iter().filter_map(|(flag, path)| Some((*flag, path.as_deref()?))).collect();
    let mut frame = Frame::open(&args.frame, &inputs, &[("--review", args.review.as_ref())])?;
    let problems = args.problems.as_ref().map(|path| read_all(&mut frame, path, |row| Ok((id(&row)?, ())))).transpose()?;
    let novelty = args.novelty.as_ref().map(|path| read_novelty(&mut frame, path)).transpose()?;
    let decisions = args.decisions.as_ref().map(|path| read_decisions(&mut frame, path)).transpose()?.unwrap_or_default();
    let (mut rows, mut candidates, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    let mut found = 0usize;
    while let Some((place, mut row)) = frame.next_row()? {
        let read = candidate(&row, &args, novelty.as_ref());
        let mut candidate = match read {
            Ok(candidate) => candidate,
            Err(what) => {
                frame.broken_row(row, &place, &what)?;
                continue;
            }
        };
        let wanted = problems.as_ref().is_none_or(|problems| problems.contains_key(&candidate.id));
        if !wanted || !args.only.iter().all(|only| only.values.contains(&value(&row, &only.field))) {
            frame.drop(row, "not wanted", Row::new())?;
            continue;
        }
        let key = chain_key(&candidate.id, &candidate.chain);
        match decisions.get(&key) {
            Some(Decision::Reject) => {
                found += 1;
                frame.drop(row, "rejected by a reviewer", Row::new())?;
                continue;
            }
            Some(Decision::Edit(text)) => {
                found += 1;
                candidate.chain.clone_from(text);
                row.insert("edited".into(), true.into());
            }
            Some(Decision::Accept) => found += 1,
            None => {}
        }
        rows.push(row);
        candidates.push(candidate);
        keys.push(key);
    }
    if found < decisions.len() {
        frame.tell(&format!("{} of {} decisions are of chains that are not here", decisions.len() - found, decisions.len()));
    }
    let options = Options {
        top: args.top,
        seed: args.seed,
        ungraded: args.ungraded,
        novelty: if novelty.is_some() { args.novelty_weight } else { 0.0 },
        balance: args.balance.clone(),
        likeness: args.likeness,
    };
    let selection = select(&candidates, &options);
    let chosen: Vec<Row> = selection.chosen.iter().map(|&at| training_row(&rows[at], &candidates[at])).collect();
    for (rank, mut row) in chosen.into_iter().enumerate() {
        row.insert("rank".into(), json!(rank + 1));
        frame.write(&row)?;
    }
    if let Some(path) = &args.review {
        let items = selection.chosen.iter().map(|&at| page_item(&rows[at], &candidates[at], &keys[at]));
        let html = review("Review of the chosen chains", &items.collect::<Vec<_>>());
        write_atomic(path, |out| out.write_all(html.as_bytes()).map_err(|e| write_error(path, e)))?;
    }
    for (at, reason) in &selection.dropped {
        let (reason, more) = match reason {
            Reason::Wrong => ("wrong", Row::new()),
            Reason::NotGraded => ("not graded", Row::new()),
            Reason::NotTheBest => ("not the best of its problem", Row::new()),
            Reason::BelowTheTop => ("below the top", Row::new()),
            Reason::Like { id, likeness } => {
                ("like a chosen problem", Row::from_iter([("of".into(), json!(id)), ("likeness".into(), json!(likeness))]))
            }
        };
        frame.drop(std::mem::take(&mut rows[*at]), reason, more)?;
    }
    if selection.chosen.len() < args.top {
        frame.tell(&format!("{} chosen, {} were wanted: there are no more", selection.chosen.len(), args.top));
    }
    if selection.beyond_balance > 0 {
        frame.tell(&format!("{} of them are beyond the balance: without them there were not enough", selection.beyond_balance));
    }
    frame.finish("Selection of chains", |report| {
        for (key, name) in args.balance.iter().enumerate() {
            let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
            selection.chosen.iter().for_each(|&at| *counts.entry(&candidates[at].groups[key]).or_default() += 1);
            let bars: Vec<Bar> = counts.into_iter().map(|(group, count)| Bar::new(group, count as f64)).collect();
            report.heading(name).bars("chosen problems", &bars);
        }
        let scores =
            |numbers: &mut dyn Iterator<Item = usize>| bins(&numbers.map(|at| candidates[at].score).collect::<Vec<_>>(), 20);
        report.heading("Scores").histogram("all chains", &scores(&mut (0..candidates.len())));
        report.histogram("chosen chains", &scores(&mut selection.chosen.iter().copied()));
    })
}

fn candidate(row: &Row, args: &SelectArgs, novelty: Option<&HashMap<String, f64>>) -> Result<Candidate, String> {
    let id = id(row)?;
    let score = present(row, "score").ok_or("field `score` is missing: limo-score writes it")?;
    let correct = match present(row, "correct") {
        None => None,
        Some(Value::Bool(correct)) => Some(*correct),
        Some(_) => return Err("field `correct`: must be true or false".to_string()),
    };
    Ok(Candidate {
        problem: text(row, &PROBLEMS)?.to_string(),
        chain: text(row, &CHAINS)?.to_string(),
        score: score.as_f64().ok_or("field `score`: must be a number")?,
        correct,
        novelty: novelty.and_then(|novelty| novelty.get(&id).copied()),
        groups: args.balance.iter().map(|name| value(row, name)).collect(),
        row: xxh3_64(Value::Object(row.clone()).to_string().as_bytes()),
        id,
    })
}

/// A row as LIMO's own are, with what is known of where it came from.
fn training_row(row: &Row, candidate: &Candidate) -> Row {
    let mut made = Row::new();
    made.insert("id".into(), row["id"].clone());
    made.insert("question".into(), candidate.problem.clone().into());
    made.insert("solution".into(), candidate.chain.clone().into());
    for name in ["answer", "source", "model", "subject", "level", "sample", "score", "quality", "correct", "edited"] {
        made.extend(present(row, name).map(|value| (name.to_string(), value.clone())));
    }
    made
}

fn page_item<'a>(row: &Row, candidate: &'a Candidate, key: &'a str) -> Review<'a> {
    let fact = |name: &&str| {
        present(row, name).map(|value| (name.to_string(), value.as_str().map_or_else(|| value.to_string(), str::to_string)))
    };
    let facts = ["id", "answer", "source", "model", "subject", "level", "score", "quality"].iter().filter_map(fact).collect();
    Review { key, problem: &candidate.problem, chain: &candidate.chain, facts }
}

/// How unlikely the base model finds the problem of each id, a token.
fn read_novelty(frame: &mut Frame, path: &Path) -> Result<HashMap<String, f64>> {
    let read = |row: Row| {
        let value = present(&row, "mean_logprob").ok_or("field `mean_logprob` is missing")?;
        Ok((id(&row)?, -value.as_f64().ok_or("field `mean_logprob`: must be a number")?))
    };
    read_all(frame, path, read)
}

/// Decisions by the key of their chain.
fn read_decisions(frame: &mut Frame, path: &Path) -> Result<HashMap<String, Decision>> {
    let read = |row: Row| {
        let key = text(&row, &["key"])?.to_string();
        let decision = match text(&row, &["decision"])? {
            "accept" => Decision::Accept,
            "reject" => Decision::Reject,
            "edit" => Decision::Edit(text(&row, &["solution"])?.to_string()),
            other => return Err(format!("field `decision`: {other:?} is none of accept, edit, reject")),
        };
        Ok((key, decision))
    };
    read_all(frame, path, read)
}

/// Reads the rows of a file beside the chains by their keys; those that cannot be read are told.
fn read_all<T>(
    frame: &mut Frame,
    path: &Path,
    read: impl Fn(Row) -> Result<(String, T), String>,
) -> Result<HashMap<String, T>> {
    let mut source = Source::new(&[path.to_path_buf()]);
    let mut all = HashMap::new();
    while let Some((place, row)) = source.next_row()? {
        match row.and_then(&read) {
            Ok((key, _)) if all.contains_key(&key) => frame.broken(&place, &format!("there is a row for {key} already"))?,
            Ok((key, value)) => drop(all.insert(key, value)),
            Err(what) => frame.broken(&place, &what)?,
        }
    }
    match all.is_empty() {
        true => {
            Err(Error::data(format!("{}: no row can be used", path.display())).help("docs/data.md has the fields of each file"))
        }
        false => Ok(all),
    }
}
