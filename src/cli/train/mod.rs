//! `limo-engine train`: what a run reads, and the ranks that it has.

mod rank;
mod samples;

use super::device::{DeviceChoice, Storage};
use super::launch::{Group, Ranks, connect, ordinal};
use super::memory::resident;
use super::say;
use super::signals::Signals;
use super::terminal::visible;
use crate::comm::launch::LaunchEnvironment;
use crate::comm::{Comm, Solo, agree, handshake};
use crate::config::{Config, MasterWeights, ModelConfig, Offload};
use crate::data::{Chat, Dataset, load, require_fit};
use crate::error::{Error, Kind, Result};
use crate::io::{Companions, TensorFiles};
use crate::model::Qwen2;
use crate::ops::Ops;
use crate::tensor::{DType, format_bytes};
use crate::train::{Resume, RunFolder, Start, digest};
use rank::Neighbours;
use samples::Samples;
use std::path::{Path, PathBuf};
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
    /// Time this many steps and the memory that they take, and save nothing: no run folder is read or written
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u32).range(1..), conflicts_with_all = ["resume", "overwrite", "dry_run"])]
    measure: Option<u32>,
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
    measure: Option<usize>,
}

pub fn run(mut args: TrainArgs) -> Result<()> {
    args.device = args.device.resolve()?;
    let resume = match args.resume.as_str() {
        "auto" => Resume::Auto,
        "never" => Resume::Never,
        path => Resume::From(path.into()),
    };
    let ranks = Ranks::detect(args.ranks, args.device)?;
    let config = Config::load(&args.config, &args.set)?;
    match ranks {
        Ranks::Threads(world) => {
            let ops = args.device.ops(args.dtype)?;
            refuse_precision(&config, ops.as_ref())?;
            let (mut folder, start) = match args.measure {
                None => RunFolder::open(&config, ops.dtype(), &resume, args.overwrite)?,
                Some(_) => (RunFolder::of_another_rank(config.output.dir.clone()), Start::Fresh { invalid: Vec::new() }),
            };
            describe_start(&start, &folder)?;
            if matches!(start, Start::Finished) && !args.dry_run {
                return Ok(());
            }
            let inputs = Inputs::read(&args, config, ops.as_ref(), true)?;
            start.checkpoint().map_or(Ok(()), |checkpoint| checkpoint.require_data(&inputs.data))?;
            match world {
                1 => rank::run(&inputs, ops, Rc::new(Solo), Neighbours::NONE, &mut folder, &start),
                _ => {
                    drop(ops);
                    run_threads(&args, &inputs, world, &mut folder, &start)
                }
            }
        }
        Ranks::Processes(launch) => run_process(&args, &resume, config, &launch),
    }
}

/// Refuses choices about bits that the weights of this backend do not have.
fn refuse_precision(config: &Config, ops: &dyn Ops) -> Result<()> {
    if ops.dtype() != DType::F32 {
        return Ok(());
    }
    let (device, pass) = (ops.device(), "leave it out, or pass --dtype bf16");
    if config.optimizer.master == MasterWeights::Stochastic {
        let what = format!("optimizer.master = \"stochastic\": weights are f32 on {device}, there is nothing to round");
        return Err(Error::usage(what).help(pass));
    }
    if config.memory.offload.contains(&Offload::Remainder) {
        let what = format!("memory.offload = [\"remainder\"]: weights are f32 on {device}, they have none");
        return Err(Error::usage(what).help(pass));
    }
    Ok(())
}

/// Runs every rank on a thread of its own.
fn run_threads(args: &TrainArgs, inputs: &Inputs, world: usize, folder: &mut RunFolder, start: &Start) -> Result<()> {
    let path = folder.path.clone();
    let mut folder = Some(folder);
    // All devices are opened before any rank waits for another.
    let mut ranks = Vec::with_capacity(world);
    for end in Group::new(world, args.device, args.patience())? {
        let opened = args.device.open(args.dtype, end.ordinal())?;
        ranks.push((end, opened));
    }
    let ends: Vec<Result<()>> = std::thread::scope(|scope| {
        let ranks: Vec<_> = ranks
            .into_iter()
            .map(|(end, opened)| {
                let (folder, path) = (folder.take(), path.clone());
                scope.spawn(move || {
                    let neighbours = Neighbours { machine: world, device: end.on_device(world) };
                    let (ops, comm) = end.connect(opened)?;
                    let other = &mut RunFolder::of_another_rank(path);
                    with_abort(&comm, || rank::run(inputs, ops, comm.clone(), neighbours, folder.unwrap_or(other), start))
                })
            })
            .collect();
        let bug = |_| Err(Error::internal("a rank panicked: this is a bug in limo-engine"));
        ranks.into_iter().map(|rank| rank.join().unwrap_or_else(bug)).collect()
    });
    // Not the errors of those that only heard of it.
    let errors: Vec<Error> = ends.into_iter().filter_map(Result::err).collect();
    let own = errors.iter().find(|error| error.kind != Kind::Communication).or(errors.first());
    own.map_or(Ok(()), |error| Err(error.clone()))
}

/// Runs the rank of this process. Rank 0 has the folder, and tells the others where the run stands.
fn run_process(args: &TrainArgs, resume: &Resume, config: Config, launch: &LaunchEnvironment) -> Result<()> {
    let opened = args.device.open(args.dtype, if args.device == DeviceChoice::Cuda { ordinal(launch)? } else { 0 })?;
    refuse_precision(&config, opened.ops.as_ref())?;
    let storage = opened.ops.dtype();
    let path = config.output.dir.clone();
    let first = launch.rank == 0;
    // Before anybody waits for it: tokenising may take long. What goes wrong is told when the ranks have met.
    let inputs = Inputs::read(args, config, opened.ops.as_ref(), first);
    let (ops, comm) = connect(launch, opened, meeting_place(&path), args.patience())?;
    with_abort(&comm, || {
        agree(comm.as_ref(), inputs.as_ref().map(|_| ()).map_err(Error::clone))?;
        let inputs = inputs?;
        handshake(comm.as_ref(), &facts(&inputs, ops.as_ref(), launch.world)?)?;
        // A job that is started again goes on, whatever it was told at first.
        let (resume, overwrite) = if launch.restarts > 0 { (&Resume::Auto, false) } else { (resume, args.overwrite) };
        let open = || {
            if args.measure.is_some() {
                return Ok((RunFolder::of_another_rank(path.clone()), Start::Fresh { invalid: Vec::new() }));
            }
            let found = RunFolder::open_with(&inputs.config, storage, resume, overwrite, &|file| {
                comm.note(&format!("verifying {file}"))
            })?;
            describe_start(&found.1, &found.0)?;
            found.1.checkpoint().map_or(Ok(()), |checkpoint| checkpoint.require_data(&inputs.data))?;
            Ok(found)
        };
        let found = first.then(open).transpose();
        agree(comm.as_ref(), found.as_ref().map(|_| ()).map_err(Error::clone))?;
        let (mut folder, start) = found?.unwrap_or_else(|| (RunFolder::of_another_rank(path.clone()), Start::Finished));
        let start = start.of_rank_0(comm.as_ref())?;
        if matches!(start, Start::Finished) && !args.dry_run {
            return Ok(());
        }
        let neighbours = Neighbours { machine: launch.local_world.unwrap_or(1), device: 1 };
        rank::run(&inputs, ops, comm.clone(), neighbours, &mut folder, &start)
    })
}

/// A folder that is there before the run's own is made.
fn meeting_place(path: &Path) -> &Path {
    let parents = path.ancestors().skip(1).map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    parents.into_iter().find(|p| p.exists()).unwrap_or(Path::new("."))
}

/// What must be the same on all ranks.
fn facts(inputs: &Inputs, ops: &dyn Ops, world: usize) -> Result<Vec<(&'static str, String)>> {
    let Inputs { config, architecture, data, eval, samples, .. } = inputs;
    let weights = match config.model.folder()? {
        Some(folder) => format!("{} bytes", TensorFiles::open(&folder)?.size_on_disk()),
        None => "random".to_string(),
    };
    let hash = |text: String| blake3::hash(text.as_bytes()).to_hex()[..16].to_string();
    Ok(vec![
        ("the version", env!("CARGO_PKG_VERSION").to_string()),
        ("the binary", build()),
        ("the number of ranks", world.to_string()),
        ("the configuration", hash(config.to_toml())),
        ("the architecture", hash(format!("{architecture:?}"))),
        ("the size of the weights", weights),
        ("the type of weights", ops.dtype().to_string()),
        ("the training data", hash(digest(data))),
        ("the evaluation data", hash(eval.as_ref().map_or(String::new(), digest))),
        ("the samples", hash(samples.as_ref().map_or(String::new(), Samples::digest))),
    ])
}

/// A hash of the running program.
fn build() -> String {
    let bytes = std::env::current_exe().and_then(std::fs::read);
    bytes.map_or("unknown".to_string(), |bytes| blake3::hash(&bytes).to_hex()[..16].to_string())
}

/// Tells the other ranks of an error, or a panic, of this one. A stop is no error: all ranks agreed on it, and end as if they were done.
fn with_abort(comm: &Rc<dyn Comm>, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Error::internal("a rank panicked: this is a bug in limo-engine")));
    end.inspect_err(|error| {
        if error.kind != Kind::Stopped {
            comm.abort(error);
        }
    })
}

impl TrainArgs {
    fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }
}

impl Inputs {
    /// `speaks`: says what was found.
    fn read(args: &TrainArgs, config: Config, ops: &dyn Ops, speaks: bool) -> Result<Inputs> {
        let source = config.model.config_file()?;
        let architecture = ModelConfig::from_file(&source)?;
        Qwen2::require(ops, &architecture)?;
        let tokenizer = config.model.tokenizer_folder()?;
        let template = config.model.chat_template.as_deref();
        let chat = Chat::load(&tokenizer, template, architecture.vocab_size)?;
        let data = load(&config.data.train, &config.data, &chat)?;
        if speaks {
            say!("{}", describe("train", &data))?;
        }
        let eval = (!config.data.eval.is_empty()).then(|| load(&config.data.eval, &config.data, &chat)).transpose()?;
        if let Some(eval) = eval.as_ref().filter(|_| speaks) {
            say!("{}", describe("eval", eval))?;
        }
        let rows = std::iter::once(&data).chain(&eval).flat_map(|d| &d.examples);
        require_fit(rows, config.train.micro_tokens)?;
        let samples = Samples::load(&config, &chat)?;
        let companions = Companions::read(&source, &tokenizer, template, config.data.system.as_deref())?;
        let signals = Signals::catch()?;
        if let Some((now, _)) = resident().filter(|_| speaks) {
            say!("baseline: {} of this process in memory before anything is reserved ({now} bytes)", format_bytes(now))?;
        }
        let (dry_run, measure) = (args.dry_run, args.measure.map(|steps| steps as usize));
        Ok(Inputs { config, architecture, chat, data, eval, samples, companions, signals, dry_run, measure })
    }
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
