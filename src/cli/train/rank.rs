//! One rank of a training run: from its share of memory to the exported model.

use super::Inputs;
use super::samples::Sampler;
use crate::cli::memory::{budget, resident};
use crate::cli::progress::{Progress, clock};
use crate::cli::say;
use crate::comm::{Comm, agree};
use crate::config::{Config, Every, ModelConfig, OutputDtype, read_json};
use crate::data::Dataset;
use crate::error::{Error, Kind, Result};
use crate::io::{TensorFiles, free_space};
use crate::model::{Keep, Layout, checkpoint_reader, random_reader};
use crate::ops::Ops;
use crate::tensor::{DType, format_bytes};
use crate::train::{Demand, Engine, EvalRecord, Job, Observer, Outcome, Plan, RunFolder, Start, StepRecord, Steps};
use crate::train::{RECOMPUTE, measure, most_packed, train};
use serde_json::Value;
use std::path::Path;
use std::rc::Rc;

/// How many ranks share this machine's memory, and this rank's device.
#[derive(Debug, Clone, Copy)]
pub struct Neighbours {
    pub machine: usize,
    pub device: usize,
}

impl Neighbours {
    pub const NONE: Neighbours = Neighbours { machine: 1, device: 1 };
}

/// Plans, loads, trains, exports. Rank 0 has the folder, and speaks.
pub fn run(
    inputs: &Inputs,
    ops: Box<dyn Ops>,
    comm: Rc<dyn Comm>,
    neighbours: Neighbours,
    folder: &mut RunFolder,
    start: &Start,
) -> Result<()> {
    let Inputs { config, architecture, data, eval, .. } = inputs;
    let speaks = comm.rank() == 0;
    let datasets: Vec<&Dataset> = std::iter::once(data).chain(eval).collect();
    let plan = plan(inputs, ops.as_ref(), comm.clone(), neighbours, &datasets)?;
    let steps = Steps::new(data.examples.len(), &config.train, &config.optimizer);
    if speaks {
        describe_run(architecture, ops.as_ref(), comm.as_ref(), &plan, data, steps)?;
    }
    if inputs.dry_run {
        return if speaks { say!("dry run: nothing was written") } else { Ok(()) };
    }
    let free = ops.free_memory()?;
    let mut engine = Engine::new(ops, comm.clone(), architecture, &plan.sizes)?;
    // Dropped before the engine, whose memory waits for all work: that has an end only where the others are there, or the group was given up.
    let mut unfinished = Unfinished(Some(comm.as_ref()));
    let end = match inputs.measure {
        None => train_rank(inputs, &mut engine, &plan, steps, folder, start),
        Some(count) => measure_rank(inputs, &mut engine, &plan, count, free, folder),
    };
    unfinished.end(end)
}

/// Tells the other ranks when this one goes early.
struct Unfinished<'a>(Option<&'a dyn Comm>);

impl Unfinished<'_> {
    /// Whether a run stops is agreed on; everything else is an error of this rank, or one that it heard of.
    fn end(&mut self, end: Result<()>) -> Result<()> {
        match (&end, self.0.take()) {
            (Err(error), Some(comm)) if error.kind != Kind::Stopped => comm.abort(error),
            _ => {}
        }
        end
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if let Some(comm) = self.0 {
            comm.abort(&Error::internal("a panic, which is a bug in limo-engine"));
        }
    }
}

/// Times some steps, and says what the system counts of the memory that they took. `free` bytes of the device were free before.
fn measure_rank(
    inputs: &Inputs,
    engine: &mut Engine,
    plan: &Plan,
    count: usize,
    free: Option<usize>,
    folder: &RunFolder,
) -> Result<()> {
    let Inputs { config, architecture, data, companions, .. } = inputs;
    let comm = engine.comm.clone();
    agree(comm.as_ref(), load_weights(engine, config, architecture))?;
    let stop = || agree(comm.as_ref(), inputs.signals.check());
    let (total, dtype) = (plan.ledgers.total(), engine.ops.dtype());
    let job = Job { config, train: data, eval: None, companions, dtype, memory: total, stop: &stop };
    let speaks = comm.rank() == 0;
    let steps = Steps::new(data.examples.len(), &config.train, &config.optimizer);
    let mut reporter = Reporter { progress: speaks.then(|| Progress::new(steps)), sampler: None };
    let records = measure(engine, &job, folder, count, &mut reporter)?;
    let Some(progress) = &reporter.progress else { return Ok(()) };
    progress.finish();
    // The first step also chooses algorithms and loads code.
    let warm = &records[records.len().min(2) - 1..];
    let (tokens, seconds) = warm.iter().fold((0, 0.0), |sum, record| (sum.0 + record.tokens, sum.1 + record.seconds));
    say!(
        "measured: {:.1} tokens/s over {} steps after the first, {:.3} s a step",
        tokens as f64 / seconds,
        warm.len(),
        seconds / warm.len() as f64
    )?;
    if let Some(mfu) = warm.last().and_then(|record| record.mfu) {
        say!("mfu: {mfu:.3} of the device's peak")?;
    }
    if let (Some(before), Some(after)) = (free, engine.ops.free_memory()?) {
        let (taken, planned) = (before.saturating_sub(after), plan.ledgers.device.total());
        say!(
            "device memory: {} taken ({taken} bytes), {} planned ({planned} bytes)",
            format_bytes(taken),
            format_bytes(planned)
        )?;
    }
    match resident() {
        Some((_, most)) => say!("peak: {} of this process in memory ({most} bytes)", format_bytes(most)),
        None => Ok(()),
    }
}

fn train_rank(
    inputs: &Inputs,
    engine: &mut Engine,
    plan: &Plan,
    steps: Steps,
    folder: &mut RunFolder,
    start: &Start,
) -> Result<()> {
    let Inputs { config, architecture, chat, data, eval, samples, companions, .. } = inputs;
    let comm = engine.comm.clone();
    let speaks = comm.rank() == 0;
    agree(comm.as_ref(), if speaks { require_disk(engine, config, folder, steps) } else { Ok(()) })?;
    let checkpoint = start.checkpoint();
    comm.note("loading weights");
    let loaded = match checkpoint {
        Some(checkpoint) => checkpoint.load(engine),
        None => load_weights(engine, config, architecture),
    };
    agree(comm.as_ref(), loaded)?;
    agree(comm.as_ref(), if speaks { folder.begin(config, engine.ops.dtype(), start) } else { Ok(()) })?;
    comm.heartbeats(&folder.path)?;

    let stop = || agree(comm.as_ref(), inputs.signals.check());
    let sampler = samples.as_ref().map(|samples| Sampler::new(samples, engine, chat, &stop)).transpose()?;
    let mut reporter = Reporter { progress: speaks.then(|| Progress::new(steps)), sampler };
    let job = Job {
        config,
        train: data,
        eval: eval.as_ref(),
        companions,
        dtype: exported_dtype(config, &config.model.config_file()?)?,
        memory: plan.ledgers.total(),
        stop: &stop,
    };
    let outcome = train(engine, &job, folder, checkpoint, &mut reporter)?;
    match &reporter.progress {
        Some(progress) => {
            progress.finish();
            summarise(&outcome, engine, &folder.model())
        }
        None => Ok(()),
    }
}

/// The fastest plan that fits every rank.
fn plan(inputs: &Inputs, ops: &dyn Ops, comm: Rc<dyn Comm>, neighbours: Neighbours, datasets: &[&Dataset]) -> Result<Plan> {
    let Inputs { config, architecture, samples, .. } = inputs;
    let longest = datasets.iter().flat_map(|d| &d.examples).map(|e| e.tokens.len()).max().unwrap_or(1);
    let samples = match samples {
        Some(samples) => (samples.positions(), samples.plan(ops, architecture)?),
        None => Default::default(),
    };
    let packed = most_packed(config, datasets);
    let (device, storage, multiple) = (ops.device(), ops.dtype(), ops.token_multiple());
    let demand = Demand { config, architecture, device, storage, multiple, comm: comm.clone(), longest, packed, samples };
    let chosen = demand.choose(budget(ops, neighbours.machine, neighbours.device)?);
    agree(comm.as_ref(), chosen.as_ref().map(|_| ()).map_err(Error::clone))?;
    let plan = chosen?;
    // Where memories differ, the ranks take the most careful choice.
    let level = RECOMPUTE.iter().position(|(keep, _)| *keep == plan.sizes.keep).unwrap_or_default();
    let levels = comm.share(&[level as u8])?;
    let level = levels.iter().filter_map(|level| level.first()).copied().max().unwrap_or_default();
    demand.with(RECOMPUTE[usize::from(level)].0)
}

/// Refuses a run whose checkpoints and model the disk has no room for, as far as that is known.
fn require_disk(engine: &Engine, config: &Config, folder: &RunFolder, steps: Steps) -> Result<()> {
    let period = match config.train.save_every {
        Every::Epoch => steps.per_epoch,
        Every::Steps(every) => every.try_into().unwrap_or(usize::MAX),
    };
    // While the newest is written, the one that it replaces is still there.
    let (checkpoint, count) =
        (engine.checkpoint_bytes(), steps.total.div_ceil(period).min(config.train.keep.saturating_add(1)));
    let model: usize = engine.model_tensors(DType::F32).iter().map(|tensor| tensor.bytes()).sum();
    let needed = checkpoint.saturating_mul(count).saturating_add(model);
    say!("disk: {}: {count} × {} of checkpoints, and the model", format_bytes(needed), format_bytes(checkpoint))?;
    let reused = checkpoint * folder.checkpoints().steps()?.len() + if folder.model().exists() { model } else { 0 };
    match free_space(&folder.path) {
        Some(free) if free < needed.saturating_sub(reused) as u64 => Err(Error::does_not_fit(format!(
            "{}: this run writes up to {}, the disk has {} left",
            folder.path.display(),
            format_bytes(needed),
            format_bytes(free as usize)
        ))
        .help("make room, choose another output.dir, or lower train.keep")),
        _ => Ok(()),
    }
}

fn describe_run(
    architecture: &ModelConfig,
    ops: &dyn Ops,
    comm: &dyn Comm,
    plan: &Plan,
    data: &Dataset,
    steps: Steps,
) -> Result<()> {
    let layout = Layout::new(architecture);
    say!("model: {} parameters, {} layers, on {}", layout.parameter_count(), architecture.num_hidden_layers, ops.device())?;
    if comm.world() > 1 {
        say!("ranks: {}", comm.describe())?;
    }
    let kept = match plan.sizes.keep {
        Keep::All => "nothing is computed again",
        Keep::Attention => "the feed-forward blocks are computed again",
        Keep::Stream | Keep::Nothing => "each layer is computed again",
    };
    let each = if comm.world() > 1 { " a rank" } else { "" };
    let total = plan.ledgers.total();
    say!("memory: {}{each} ({total} bytes); {kept} in the backward pass", format_bytes(total))?;
    for (group, bytes) in plan.ledgers.device.by_group() {
        say!("  {group:<13} {:>10}", format_bytes(bytes))?;
    }
    for (group, bytes) in plan.ledgers.host.by_group() {
        say!("  {group:<13} {:>10} in host memory", format_bytes(bytes))?;
    }
    let tokens: usize = data.examples.iter().map(|e| e.tokens.len()).sum();
    say!(
        "steps: {} ({} an epoch, {} warm-up), about {} tokens each",
        steps.total,
        steps.per_epoch,
        steps.warmup,
        tokens / steps.per_epoch
    )
}

fn load_weights(engine: &mut Engine, config: &Config, architecture: &ModelConfig) -> Result<()> {
    let Engine { ops, state, .. } = engine;
    match config.model.folder()? {
        Some(folder) => {
            let checkpoint = TensorFiles::open(&folder)?;
            let mut reader = checkpoint_reader(&checkpoint, &state.model.layout);
            let loaded = reader.as_mut().map_err(|e| e.clone()).and_then(|read| state.weights.load(ops.as_ref(), &mut **read));
            loaded.map_err(|e| e.context(folder.display()))
        }
        None => {
            let std = architecture.initializer_range as f32;
            state.weights.load(ops.as_ref(), &mut *random_reader(config.train.seed, std))
        }
    }
}

struct Reporter<'a> {
    /// Of the rank that speaks.
    progress: Option<Progress>,
    sampler: Option<Sampler<'a>>,
}

impl Observer for Reporter<'_> {
    fn step(&mut self, record: &StepRecord, steps: Steps) -> Result<()> {
        self.progress.as_mut().map_or(Ok(()), |progress| progress.step(record, steps))
    }
    fn evaluation(&mut self, record: &EvalRecord) -> Result<()> {
        self.progress.as_ref().map_or(Ok(()), |progress| progress.evaluation(record))
    }
    fn samples(&mut self, engine: &mut Engine, step: usize) -> Result<()> {
        match &mut self.sampler {
            Some(sampler) => sampler.run(engine, step, self.progress.as_ref()),
            None => Ok(()),
        }
    }
    fn saved(&mut self, path: &Path) -> Result<()> {
        self.line(&format!("saved {}", path.display()))
    }
    fn skipped(&mut self, error: &Error) -> Result<()> {
        self.line(&format!("skipped: {}", error.message))
    }
}

impl Reporter<'_> {
    fn line(&self, line: &str) -> Result<()> {
        self.progress.as_ref().map_or(Ok(()), |progress| progress.line(line))
    }
}

/// The element type of the exported weights.
fn exported_dtype(config: &Config, source: &Path) -> Result<DType> {
    Ok(match config.output.dtype {
        OutputDtype::Float32 => DType::F32,
        OutputDtype::Bfloat16 => DType::Bf16,
        OutputDtype::Source => {
            let json = read_json(source)?;
            let stated = json.get("dtype").or_else(|| json.get("torch_dtype")).and_then(Value::as_str);
            if stated == Some("bfloat16") { DType::Bf16 } else { DType::F32 }
        }
    })
}

fn summarise(outcome: &Outcome, engine: &Engine, model: &Path) -> Result<()> {
    let flops = 6.0 * engine.state.model.layout.parameter_count() as f64 * outcome.tokens as f64;
    // A run that only exported has no step of its own.
    if let Some(last) = &outcome.last {
        say!("done: {} steps, last loss {:.4}", last.step, last.loss)?;
        say!(
            "trained {} tokens in {} ({:.0} tokens/s, {:.0} GFLOP/s without attention)",
            outcome.tokens,
            clock(outcome.seconds),
            outcome.tokens as f64 / outcome.seconds,
            flops / outcome.seconds / 1e9
        )?;
    }
    if let Some((_, most)) = resident() {
        say!("peak: {} of this process in memory ({most} bytes)", format_bytes(most))?;
    }
    say!("model: {}", model.display())
}
