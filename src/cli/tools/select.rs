//! `limo-select`.

use super::frame::{Frame, FrameArgs, Source, chain_key};
use crate::curation::fields::{CHAINS, NONE, PROBLEMS, Row, id, present, some_text, text, value};
use crate::curation::selection::{Candidate, Options, Reason, select};
use crate::data::kind;
use crate::error::{Error, Result, write_error};
use crate::io::write_atomic;
use crate::report::{Bar, Review, bins, review};
use clap::Parser;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    #[arg(long, value_name = "K", default_value_t = 800, value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
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
    /// What that page saved: rejected chains make way for others, edited ones have the new text; may be given several times, later rows win
    #[arg(long, value_name = "FILE")]
    decisions: Vec<PathBuf>,
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

/// A chain that was read.
struct Chain {
    row: Row,
    /// Leads from a person's decision back to it.
    key: String,
}

impl Chain {
    fn text(&self) -> &str {
        text(&self.row, &CHAINS).unwrap_or_default()
    }
}

pub fn run(args: SelectArgs) -> Result<()> {
    let beside = [("--novelty", &args.novelty), ("--problems", &args.problems)];
    let mut inputs: Vec<(&str, &Path)> = beside.iter().filter_map(|(flag, path)| Some((*flag, path.as_deref()?))).collect();
    inputs.extend(args.decisions.iter().map(|path| ("--decisions", path.as_path())));
    let mut frame = Frame::open(&args.frame, &inputs, &[("--review", args.review.as_ref())])?;
    let problems = args.problems.as_ref().map(|path| frame.read_keyed(path, |row| Ok((id(&row)?, ())))).transpose()?;
    let novelty = args.novelty.as_ref().map(|path| frame.read_keyed(path, novelty)).transpose()?;
    let decisions = read_decisions(&mut frame, &args.decisions)?;
    let (mut chains, mut candidates) = (Vec::new(), Vec::new());
    // Of each problem, a hash of its text.
    let mut texts: HashMap<String, u64> = HashMap::new();
    let mut found = 0usize;
    while let Some((place, mut row)) = frame.next_row()? {
        let (mut candidate, key) = match candidate(&row, &args, novelty.as_ref()) {
            Ok(read) => read,
            Err(what) => {
                frame.broken_row(row, &place, &what)?;
                continue;
            }
        };
        let text = xxh3_64(candidate.problem.as_bytes());
        if *texts.entry(candidate.id.clone()).or_insert(text) != text {
            frame.broken_row(row, &place, &format!("its problem is not that of an earlier row of id {}", candidate.id))?;
            continue;
        }
        let wanted = problems.as_ref().is_none_or(|problems| problems.contains_key(&candidate.id));
        if !wanted || !args.only.iter().all(|only| only.values.contains(&value(&row, &only.field))) {
            frame.drop(row, "not wanted", Row::new())?;
            continue;
        }
        let decision = decisions.get(&key);
        found += usize::from(decision.is_some());
        match decision.and_then(|decision| decision["decision"].as_str()) {
            Some("reject") => {
                frame.drop(row, "rejected by a reviewer", Row::new())?;
                continue;
            }
            Some("edit") => {
                CHAINS.iter().for_each(|name| drop(row.remove(*name)));
                row.insert(CHAINS[0].into(), decision.map_or(Value::Null, |decision| decision["solution"].clone()));
                row.insert("edited".into(), true.into());
            }
            _ => {}
        }
        let chain = Chain { row, key };
        candidate.hash = xxh3_64(Value::Object(training_row(&chain)).to_string().as_bytes());
        chains.push(chain);
        candidates.push(candidate);
    }
    if !decisions.is_empty() {
        frame.tell(&format!("decisions: {} of {} are of chains that are here", found, decisions.len()));
    }
    if let Some(novelty) = &novelty {
        let known: BTreeSet<&str> =
            candidates.iter().filter(|candidate| candidate.novelty.is_some()).map(|candidate| candidate.id.as_str()).collect();
        let all: BTreeSet<&str> = candidates.iter().map(|candidate| candidate.id.as_str()).collect();
        frame.tell(&format!(
            "novelty: {} rows, known of {} of {} problems; the others rank as the least novel",
            novelty.len(),
            known.len(),
            all.len()
        ));
        if known.is_empty() && !all.is_empty() {
            return Err(Error::data("--novelty knows none of the problems").help("its ids must be those of the problems"));
        }
    }
    let options = Options {
        top: args.top as usize,
        seed: args.seed,
        ungraded: args.ungraded,
        novelty: if novelty.is_some() { args.novelty_weight } else { 0.0 },
        balance: args.balance.clone(),
        likeness: args.likeness,
    };
    for (key, name) in args.balance.iter().enumerate().filter(|_| !candidates.is_empty()) {
        if candidates.iter().all(|candidate| candidate.groups[key] == NONE) {
            return Err(Error::usage(format!("--balance {name}: no row has this field"))
                .help("limo-pool writes subject, level, source"));
        }
    }
    let selection = select(&candidates, &options);
    for (rank, &at) in selection.chosen.iter().enumerate() {
        let mut row = training_row(&chains[at]);
        row.insert("rank".into(), json!(rank + 1));
        frame.write(&row)?;
    }
    if let Some(path) = &args.review {
        let items: Vec<Review> =
            selection.chosen.iter().map(|&at| page_item(&chains[at], decisions.get(&chains[at].key))).collect();
        let shown: BTreeSet<&str> = items.iter().map(|item| item.key).collect();
        let others: Vec<&Row> = decisions.iter().filter(|(key, _)| !shown.contains(key.as_str())).map(|(_, row)| row).collect();
        let html = review("Review of the chosen chains", &items, &others);
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
        frame.drop(std::mem::take(&mut chains[*at].row), reason, more)?;
    }
    if selection.chosen.len() < args.top as usize {
        frame.tell(&format!("{} chosen, {} were wanted: there are no more", selection.chosen.len(), args.top));
    }
    let groups = |key: usize| {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        selection.chosen.iter().for_each(|&at| *counts.entry(&candidates[at].groups[key]).or_default() += 1);
        counts
    };
    for (key, name) in args.balance.iter().enumerate() {
        let counts = groups(key).into_iter().map(|(group, count)| format!("{group} {count}")).collect::<Vec<_>>();
        frame.tell(&format!("chosen by {name}: {}", counts.join(", ")));
    }
    frame.finish("Selection of chains", |report| {
        for (key, name) in args.balance.iter().enumerate() {
            let bars: Vec<Bar> = groups(key).into_iter().map(|(group, count)| Bar::new(group, count as f64)).collect();
            report.heading(name).bars("chosen problems", &bars);
        }
        let scores =
            |numbers: &mut dyn Iterator<Item = usize>| bins(&numbers.map(|at| candidates[at].score).collect::<Vec<_>>(), 20);
        report.heading("Scores").histogram("all chains", &scores(&mut (0..candidates.len())));
        report.histogram("chosen chains", &scores(&mut selection.chosen.iter().copied()));
    })
}

/// What is known of a row's chain but its hash, and its key.
fn candidate(row: &Row, args: &SelectArgs, novelty: Option<&HashMap<String, f64>>) -> Result<(Candidate, String), String> {
    let id = id(row)?;
    let score = present(row, "score").ok_or("no \"score\": limo-score writes it")?;
    let correct = match present(row, "correct") {
        None => None,
        Some(Value::Bool(correct)) => Some(*correct),
        Some(other) => return Err(format!("\"correct\" must be true or false, but is {}", kind(other))),
    };
    let key = chain_key(&id, some_text(row, &CHAINS)?);
    let candidate = Candidate {
        problem: some_text(row, &PROBLEMS)?.to_string(),
        score: score.as_f64().ok_or_else(|| format!("\"score\" must be a number, but is {}", kind(score)))?,
        correct,
        novelty: novelty.and_then(|novelty| novelty.get(&id).copied()),
        groups: args.balance.iter().map(|name| value(row, name)).collect(),
        hash: 0,
        id,
    };
    Ok((candidate, key))
}

/// A row as LIMO's own are, with what is known of where it came from.
fn training_row(chain: &Chain) -> Row {
    let Chain { row, .. } = chain;
    let mut made = Row::new();
    made.insert("id".into(), row["id"].clone());
    made.insert("question".into(), text(row, &PROBLEMS).unwrap_or_default().into());
    made.insert("solution".into(), chain.text().into());
    for name in ["answer", "source", "model", "subject", "level", "sample", "score", "quality", "correct", "edited"] {
        made.extend(present(row, name).map(|value| (name.to_string(), value.clone())));
    }
    made
}

fn page_item<'a>(chain: &'a Chain, decision: Option<&'a Row>) -> Review<'a> {
    let fact = |name: &&str| present(&chain.row, name).map(|_| (name.to_string(), value(&chain.row, name)));
    let facts = ["id", "answer", "source", "model", "subject", "level", "score", "quality"].iter().filter_map(fact).collect();
    Review { key: &chain.key, problem: text(&chain.row, &PROBLEMS).unwrap_or_default(), chain: chain.text(), facts, decision }
}

/// A problem's id, and how unlikely the base model finds its text, a token.
fn novelty(row: Row) -> Result<(String, f64), String> {
    let value = present(&row, "mean_logprob").ok_or("no \"mean_logprob\"")?;
    Ok((id(&row)?, -value.as_f64().ok_or("\"mean_logprob\" must be a number")?))
}

/// What a person decided, by the key of the chain: `accept`, `edit` with `solution`, `reject`. Of several rows the last one counts.
fn read_decisions(frame: &mut Frame, paths: &[PathBuf]) -> Result<BTreeMap<String, Row>> {
    let read = |row: Row| {
        let key = text(&row, &["key"])?.to_string();
        match text(&row, &["decision"])? {
            "accept" | "reject" => {}
            "edit" => drop(some_text(&row, &["solution"])?),
            other => return Err(format!("\"decision\" is {other:?}, which is none of accept, edit, reject")),
        }
        Ok((key, row))
    };
    let mut decisions = BTreeMap::new();
    let mut source = Source::new(paths);
    while let Some((place, row)) = if paths.is_empty() { None } else { source.next_row()? } {
        match row.and_then(read) {
            Ok((key, row)) => drop(decisions.insert(key, row)),
            Err(what) => frame.broken_beside(&place, &what)?,
        }
    }
    Ok(decisions)
}
