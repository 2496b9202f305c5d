//! `limo-engine train`: what a run reads, and the ranks that it has.

mod rank;
mod samples;

use super::device::{DeviceChoice, Opened, Storage};
use super::launch::Ranks;
use super::say;
use super::signals::Signals;
use super::terminal::visible;
use crate::comm::{Comm, Solo, threads};
use crate::config::{Config, MasterWeights, ModelConfig, Offload};
use crate::data::{Chat, Dataset, load, require_fit};
use crate::error::{Error, Kind, Result};
use crate::io::Companions;
use crate::model::Qwen2;
use crate::ops::Ops;
use crate::tensor::DType;
use crate::train::{Resume, RunFolder, Start};
use samples::Samples;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// Train a model as a configuration file says
///
/// Example: limo-engine train configs/tiny.toml -s train.epochs=1 -s output.dir=runs/short
#[derive(clap::Args)]
pub struct TrainArgs {
    /// The configuration (docs/config.md has every key)
    config: PathBuf,
    /// Override a key, as in train.batch=8; values are TOML, else text
    #[arg(short, long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[arg(long, value_enum, default_value_t = DeviceChoice::Auto)]
    device: DeviceChoice,
    #[arg(long, value_enum)]
    dtype: Option<Storage>,
    /// Ranks of this process, which share the work and the state (ZeRO-3); a launcher decides instead where one started it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ranks: Option<u32>,
    /// Seconds that a rank may do nothing while others wait for it
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    patience: u64,
    /// auto: go on from the newest valid checkpoint of output.dir, if it has one; never: refuse a folder that is used; PATH: go on from
    /// this checkpoint
    #[arg(long, value_name = "auto|never|PATH", default_value = "auto")]
    resume: String,
    /// Delete the run that output.dir holds
    #[arg(long)]
    overwrite: bool,
    /// Check configuration, data and memory, then stop
    #[arg(long)]
    dry_run: bool,
}

/// What all ranks of a process read, and only read.
struct Inputs {
    config: Config,
    architecture: ModelConfig,
    chat: Chat,
    data: Dataset,
    eval: Option<Dataset>,
    samples: Option<Samples>,
    companions: Companions,
    signals: Signals,
    dry_run: bool,
}

pub fn run(args: TrainArgs) -> Result<()> {
    let resume = match args.resume.as_str() {
        "auto" => Resume::Auto,
        "never" => Resume::Never,
        path => Resume::From(path.into()),
    };
    let ranks = Ranks::detect(args.ranks)?;
    let config = Config::load(&args.config, &args.set)?;
    let ops = args.device.ops(args.dtype)?;
    if config.optimizer.master == MasterWeights::Stochastic && ops.dtype() == DType::F32 {
        return Err(Error::usage(format!(
            "optimizer.master = \"stochastic\": weights are f32 on {}, there is nothing to round",
            ops.device()
        ))
        .help("leave the key out, or pass --dtype bf16"));
    }
    if config.memory.offload.contains(&Offload::Remainder) && ops.dtype() == DType::F32 {
        return Err(Error::usage(format!(
            "memory.offload = \"remainder\": weights are f32 on {}, they have none",
            ops.device()
        ))
        .help("leave it out, or pass --dtype bf16"));
    }
    let (mut folder, start) = RunFolder::open(&config, ops.dtype(), &resume, args.overwrite)?;
    describe_start(&start, &folder)?;
    if matches!(start, Start::Finished) && !args.dry_run {
        return Ok(());
    }
    let inputs = Inputs::read(config, ops.as_ref(), args.dry_run)?;
    start.checkpoint().map_or(Ok(()), |checkpoint| checkpoint.require_data(&inputs.data))?;
    match ranks {
        Ranks::Threads(1) => rank::run(&inputs, ops, Rc::new(Solo), 1, &mut folder, &start),
        Ranks::Threads(world) => {
            drop(ops);
            let open = || args.device.open(args.dtype, 0);
            run_threads(&inputs, world, args.patience(), &open, &mut folder, &start)
        }
    }
}

impl TrainArgs {
    fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }
}

impl Inputs {
    fn read(config: Config, ops: &dyn Ops, dry_run: bool) -> Result<Inputs> {
        let source = config.model.config_file()?;
        let architecture = ModelConfig::from_file(&source)?;
        Qwen2::require(ops, &architecture)?;
        let tokenizer = config.model.tokenizer_folder()?;
        let template = config.model.chat_template.as_deref();
        let chat = Chat::load(&tokenizer, template, architecture.vocab_size)?;
        let data = load(&config.data.train, &config.data, &chat)?;
        say!("{}", describe("train", &data))?;
        let eval = (!config.data.eval.is_empty()).then(|| load(&config.data.eval, &config.data, &chat)).transpose()?;
        if let Some(eval) = &eval {
            say!("{}", describe("eval", eval))?;
        }
        let rows = std::iter::once(&data).chain(&eval).flat_map(|d| &d.examples);
        require_fit(rows, config.train.micro_tokens)?;
        let samples = Samples::load(&config, &chat)?;
        let companions = Companions::read(&source, &tokenizer, template, config.data.system.as_deref())?;
        let signals = Signals::catch()?;
        Ok(Inputs { config, architecture, chat, data, eval, samples, companions, signals, dry_run })
    }
}

/// Runs every rank on a thread of its own.
fn run_threads(
    inputs: &Inputs,
    world: usize,
    patience: Duration,
    open: &(dyn Fn() -> Result<Opened> + Sync),
    folder: &mut RunFolder,
    start: &Start,
) -> Result<()> {
    let path = folder.path.clone();
    let mut folder = Some(folder);
    let ends: Vec<Result<()>> = std::thread::scope(|scope| {
        let ranks: Vec<_> = threads::group(world, patience)
            .into_iter()
            .map(|comm| {
                let (folder, path) = (folder.take(), path.clone());
                scope.spawn(move || {
                    let Opened { ops, queue } = open().inspect_err(|error| comm.abort(error))?;
                    let comm = Rc::new(comm.over(queue));
                    let other = &mut RunFolder::of_another_rank(path);
                    rank::run(inputs, ops, comm.clone(), world, folder.unwrap_or(other), start)
                        .inspect_err(|error| comm.abort(error))
                })
            })
            .collect();
        let bug = |_| Err(Error::internal("a rank panicked: this is a bug in limo-engine"));
        ranks.into_iter().map(|rank| rank.join().unwrap_or_else(bug)).collect()
    });
    // The error that the others only heard of.
    let errors: Vec<Error> = ends.into_iter().filter_map(Result::err).collect();
    let own = errors.iter().find(|error| error.kind != Kind::Communication).or(errors.first());
    own.map_or(Ok(()), |error| Err(error.clone()))
}

/// What the run folder holds, where that is worth a word.
fn describe_start(start: &Start, folder: &RunFolder) -> Result<()> {
    if let Start::Fresh { invalid } | Start::Continue { invalid, .. } = start {
        for error in invalid {
            say!("checkpoint not used: {}", visible(&error.message))?;
        }
    }
    match start {
        Start::Fresh { .. } if folder.metrics().exists() => {
            say!("{}: no checkpoint to go on from: the earlier run there starts over", folder.path.display())
        }
        Start::Fresh { .. } => Ok(()),
        Start::Continue { checkpoint, .. } => {
            say!("continuing after step {}: {}", checkpoint.manifest.step, checkpoint.path.display())
        }
        Start::Finished => say!("{} holds a finished run; --overwrite starts over", folder.path.display()),
    }
}

fn describe(what: &str, data: &Dataset) -> String {
    let tokens: usize = data.examples.iter().map(|e| e.tokens.len()).sum();
    let longest = data.examples.iter().map(|e| e.tokens.len()).max().unwrap_or_default();
    let mut text = format!(
        "{what}: {} rows in, {} used, {} rejected, {} truncated; {tokens} tokens, longest row {longest}",
        data.rows,
        data.examples.len(),
        data.rejected.len(),
        data.truncated.len()
    );
    for rejected in &data.rejected {
        text += &format!("\n  rejected {} (id {}): {}", rejected.source, visible(&rejected.id), rejected.reason);
    }
    for cut in &data.truncated {
        text += &format!("\n  truncated {} (id {}): had {} tokens", cut.source, visible(&cut.id), cut.tokens);
    }
    text
}
