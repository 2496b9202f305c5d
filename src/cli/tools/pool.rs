//! `limo-pool`.

use super::frame::{Frame, FrameArgs, Source};
use crate::curation::decontaminate::{Benchmarks, Known, Match, Rule};
use crate::curation::dedupe::{Dedupe, Duplicate, THRESHOLD};
use crate::curation::fields::Row;
use crate::curation::pool::{Format, Problem, Reading, own_id, problem_text};
use crate::error::{Error, Result};
use crate::report::Bar;
use clap::Parser;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Bring problem files to one form, without duplicates and without benchmark problems
///
/// Reads rows as NuminaMath-CoT, DeepScaleR, MATH, AIME, GSM8K and benchmarks have them. Writes id, problem, answer, solution, source, subject, level.
///
/// Example: limo-pool examples/problems/numina.jsonl examples/problems/gsm8k.jsonl --benchmark examples/problems/benchmark.jsonl > pool.jsonl
///
/// docs/data.md has the fields, and what counts as a duplicate or a copy.
#[derive(Parser)]
#[command(name = "limo-pool", version)]
pub struct PoolArgs {
    #[command(flatten)]
    frame: FrameArgs,
    /// The format of all rows [default: what each row's fields show]: numinamath, deepscaler, math, aime, gsm8k, benchmark
    #[arg(long, value_name = "NAME")]
    format: Option<Format>,
    /// The source of all rows [default: the row's own, else the format's name, else the file's]
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// Near-duplicates share this much of their runs of five words (Jaccard); 1: only exact duplicates
    #[arg(long, value_name = "SHARE", default_value_t = THRESHOLD, value_parser = share)]
    similarity: f64,
    /// Keep duplicates
    #[arg(long)]
    keep_duplicates: bool,
    /// Drop problems that this file has too; may be given several times
    #[arg(long, value_name = "FILE")]
    benchmark: Vec<PathBuf>,
    /// What drops a row: copy, 13-gram (or a copy), 8-gram (or a copy); what the others find is counted
    #[arg(long, value_name = "RULE", default_value = "copy", requires = "benchmark")]
    rule: Rule,
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err("must be a number above 0, at most 1".to_string()),
    }
}

pub fn run(args: PoolArgs) -> Result<()> {
    let inputs: Vec<(&str, &Path)> = args.benchmark.iter().map(|path| ("--benchmark", path.as_path())).collect();
    let mut frame = Frame::open(&args.frame, &inputs, &[])?;
    let benchmarks = read_benchmarks(&mut frame, &args.benchmark)?;
    let threshold = if args.similarity < 1.0 { args.similarity } else { f64::INFINITY };
    let mut dedupe = (!args.keep_duplicates).then(|| Dedupe::new(threshold));
    let mut ids = Ids::default();
    let mut sources: BTreeMap<String, usize> = BTreeMap::new();
    // Rows that each test found, whatever drops them.
    let mut found: BTreeMap<&str, usize> = BTreeMap::new();
    let mut reading = Reading { format: args.format, source: args.source.clone(), file: String::new() };
    let mut file = PathBuf::new();
    while let Some((place, row)) = frame.next_row()? {
        if place.file != file {
            file.clone_from(&place.file);
            reading.file = stem(&file);
            ids.files += 1;
        }
        let own = own_id(&row).ok().flatten().is_some();
        let problem = match reading.problem(&row).and_then(|problem| ids.add(problem, own, &reading.file)) {
            Ok(problem) => problem,
            Err(what) => {
                frame.broken_row(row, &place, &what)?;
                continue;
            }
        };
        if let Some(benchmarks) = &benchmarks {
            let findings = benchmarks.find(&problem.problem);
            for (name, one) in [("copy", &findings.copy), ("8-gram", &findings.grams8), ("13-gram", &findings.grams13)] {
                *found.entry(name).or_default() += usize::from(one.is_some());
            }
            if let Some(Match { benchmark, id, share, text }) = findings.dropped_by(args.rule) {
                frame.drop(
                    row,
                    "benchmark",
                    object(json!({"benchmark": benchmark, "id": id, "share": share, "text": text})),
                )?;
                continue;
            }
        }
        if let Some(Duplicate { of, similarity, exact }) =
            dedupe.as_mut().and_then(|dedupe| dedupe.add(&name(&problem.id), &problem.problem))
        {
            let reason = if exact { "duplicate" } else { "near-duplicate" };
            frame.drop(row, reason, object(json!({"of": of, "similarity": similarity})))?;
            continue;
        }
        *sources.entry(problem.source.clone()).or_default() += 1;
        let row = serde_json::to_value(&problem).map_err(|e| Error::internal(e.to_string()))?;
        frame.write(&object(row))?;
    }
    if ids.renamed > 0 {
        frame.tell(&format!("{} ids were those of rows of earlier files: the file's name was put before them", ids.renamed));
    }
    if let Some(benchmarks) = &benchmarks {
        let tests = found.iter().map(|(test, rows)| format!("{test} {rows}")).collect::<Vec<_>>().join(", ");
        frame.tell(&format!("rows that share with {} benchmark rows, by test: {tests}", benchmarks.rows()));
    }
    frame.finish("Pool of problems", |report| {
        let bars = |counts: &mut dyn Iterator<Item = (String, usize)>| {
            counts.map(|(name, count)| Bar::new(name, count as f64)).collect::<Vec<_>>()
        };
        report.heading("Sources").bars("problems that stay, by source", &bars(&mut sources.into_iter()));
        if benchmarks.is_some() {
            let mut found = found.into_iter().map(|(test, rows)| (test.to_string(), rows));
            report.heading("Benchmarks").bars("rows that share with benchmarks, by test", &bars(&mut found));
        }
    })
}

/// The ids that were given so far, as text, since 60 and "60" are one to whoever joins rows by them.
#[derive(Default)]
struct Ids {
    known: HashMap<String, Given>,
    files: usize,
    renamed: usize,
}

#[derive(Default)]
struct Given {
    /// The number of the last file that had it.
    file: usize,
    /// How often another id was made of it.
    copies: usize,
}

impl Ids {
    /// Makes the problem's id one that no row had before. A row's `own` id may come in several files, but in one file only once.
    fn add(&mut self, mut problem: Problem, own: bool, file: &str) -> Result<Problem, String> {
        let plain = name(&problem.id);
        let mut id = plain.clone();
        if own && let Some(given) = self.known.get_mut(&plain) {
            if given.file == self.files {
                return Err(format!("its id {plain} is that of an earlier row"));
            }
            given.file = self.files;
            self.renamed += 1;
            id = format!("{file}-{plain}");
        }
        // Equal problems have equal hashes, and files may have equal names.
        let base = id.clone();
        while self.known.contains_key(&id) {
            let given = self.known.entry(base.clone()).or_default();
            given.copies += 1;
            id = format!("{base}-{}", given.copies + 1);
        }
        if id != plain {
            problem.id = id.clone().into();
        }
        self.known.insert(id, Given { file: self.files, copies: 0 });
        Ok(problem)
    }
}

fn object(value: Value) -> Row {
    match value {
        Value::Object(row) => row,
        _ => Row::new(),
    }
}

fn name(id: &Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_string)
}

fn stem(path: &Path) -> String {
    path.file_stem().map_or_else(|| "rows".to_string(), |name| name.to_string_lossy().into_owned())
}

/// The problems of the benchmark files; none if there are no files. Nothing but problem and id of their rows is needed.
fn read_benchmarks(frame: &mut Frame, files: &[PathBuf]) -> Result<Option<Benchmarks>> {
    let mut rows: Vec<(String, String, String)> = Vec::new();
    for path in files {
        let mut source = Source::new(std::slice::from_ref(path));
        let (before, benchmark) = (rows.len(), stem(path));
        let mut number = 0usize;
        while let Some((place, row)) = source.next_row()? {
            match row.and_then(|row| Ok((problem_text(&row)?, own_id(&row).ok().flatten()))) {
                Ok((problem, id)) => {
                    rows.push((benchmark.clone(), id.map_or_else(|| format!("row {number}"), |id| name(&id)), problem));
                }
                Err(what) => frame.broken_beside(&place, &what)?,
            }
            number += 1;
        }
        if rows.len() == before {
            return Err(Error::data(format!("{}: no row has a problem", path.display()))
                .help("rows of a benchmark have problem or question"));
        }
    }
    let known = rows.iter().map(|(benchmark, id, problem)| Known { benchmark, id: id.clone(), problem });
    Ok((!files.is_empty()).then(|| Benchmarks::new(known)))
}
