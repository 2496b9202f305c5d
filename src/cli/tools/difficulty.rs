//! `limo-difficulty`.

use super::frame::{Frame, FrameArgs, Source};
use crate::curation::difficulty::{Filter, Rule, Tally};
use crate::curation::fields::{Row, id};
use crate::error::{Error, Result};
use crate::report::Bar;
use clap::Parser;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Keep the problems that solvers find as hard as wanted
///
/// Reads problems (limo-pool), joins them by id with graded samples (limo-grade), and writes those that every rule keeps: rows that `limo-engine sample` reads for the next stage,
/// with what each solver reached as `solved`.
///
/// Example: limo-difficulty pool.jsonl --samples small=graded.jsonl --rule "0..=0 of 4" > hard.jsonl
#[derive(Parser)]
#[command(name = "limo-difficulty", version)]
pub struct DifficultyArgs {
    #[command(flatten)]
    frame: FrameArgs,
    /// Graded samples of a solver, whose name is the file's if none is given; may be given several times
    #[arg(long, value_name = "[NAME=]FILE", required = true)]
    samples: Vec<Solver>,
    /// How many samples may be correct, of how many there must be, of one solver or of each: "0..=0", "1..=3 of 32", "small=0..=0 of 4"; may be given several times
    #[arg(long, value_name = "RULE", required = true)]
    rule: Vec<Rule>,
}

#[derive(Debug, Clone)]
struct Solver {
    name: String,
    file: PathBuf,
}

impl FromStr for Solver {
    type Err = String;

    fn from_str(text: &str) -> Result<Solver, String> {
        // A path may have an equals sign.
        let named = text.split_once('=').filter(|_| !Path::new(text).exists());
        let (name, file) = named.map_or((None, text), |(name, file)| (Some(name), file));
        let file = PathBuf::from(file);
        let own = || file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let name = name.map_or_else(own, str::to_string);
        if name.is_empty() { Err("must be FILE or NAME=FILE".to_string()) } else { Ok(Solver { name, file }) }
    }
}

pub fn run(args: DifficultyArgs) -> Result<()> {
    let inputs: Vec<(&str, &Path)> = args.samples.iter().map(|solver| ("--samples", solver.file.as_path())).collect();
    let mut frame = Frame::open(&args.frame, &inputs, &[])?;
    let tallies = args.samples.iter().map(|solver| read_tally(&mut frame, solver)).collect::<Result<Vec<_>>>()?;
    let wrong = |what: String| Error::usage(what).help("--samples names solvers, --rule says what is wanted of them");
    let filter = Filter::new(tallies, args.rule.clone()).map_err(wrong)?;
    // Of each solver: problems by the number of their correct samples.
    let mut solved: Vec<(String, BTreeMap<u32, usize>)> =
        filter.tallies().iter().map(|tally| (tally.solver.clone(), BTreeMap::new())).collect();
    while let Some((place, row)) = frame.next_row()? {
        let row = Value::Object(row);
        let request = filter.request(&row);
        let Value::Object(row) = row else { continue };
        if request.as_ref().is_ok_and(|request| request.as_ref().err().is_none_or(|reason| !reason.is_incomplete())) {
            let id = id(&row).unwrap_or_default();
            for (tally, (_, problems)) in filter.tallies().iter().zip(&mut solved) {
                *problems.entry(tally.count(&id).correct).or_default() += 1;
            }
        }
        match request {
            Err(what) => frame.broken_row(row, &place, &what)?,
            Ok(Ok(Value::Object(request))) => frame.write(&request)?,
            Ok(Ok(_)) => return Err(Error::internal("a request is an object")),
            // Without its samples nobody knows how hard a problem is.
            Ok(Err(reason)) if reason.is_incomplete() => frame.broken_row(row, &place, &reason.to_string())?,
            Ok(Err(reason)) => {
                frame.drop(row, "difficulty", Row::from_iter([("why".to_string(), json!(reason.to_string()))]))?;
            }
        }
    }
    for (solver, problems) in &solved {
        let histogram = problems.iter().map(|(correct, problems)| format!("{correct}: {problems}")).collect::<Vec<_>>();
        frame.tell(&format!("{solver}: problems by correct samples: {}", histogram.join(", ")));
    }
    frame.finish("Difficulty of problems", |report| {
        for (solver, problems) in &solved {
            let bars: Vec<Bar> =
                problems.iter().map(|(correct, &problems)| Bar::new(correct.to_string(), problems as f64)).collect();
            report.heading(solver).histogram("problems by correct samples", &bars);
        }
    })
}

/// The graded samples of a solver; rows that cannot be used are told.
fn read_tally(frame: &mut Frame, solver: &Solver) -> Result<Tally> {
    let mut tally = Tally::new(&solver.name);
    let mut source = Source::new(std::slice::from_ref(&solver.file));
    while let Some((place, row)) = source.next_row()? {
        if let Err(what) = row.and_then(|row| tally.add(&Value::Object(row))) {
            frame.broken_beside(&place, &what)?;
        }
    }
    Ok(tally)
}
