//! `limo-engine train`.

use super::device::{DeviceChoice, Storage};
use super::launch::require_single_process;
use super::memory::{available_memory, does_not_fit};
use super::progress::{Progress, clock};
use super::say;
use super::signals::Signals;
use super::terminal::visible;
use crate::config::{Config, Every, MasterWeights, ModelConfig, OptimizerConfig, OutputDtype, Recompute, read_json};
use crate::data::{Chat, Dataset, Message, Prompt, load, read_prompts, require_fit};
use crate::error::{Error, Result};
use crate::grading::boxed_answer;
use crate::io::{self, Companions, free_space};
use crate::model::{Keep, Layout, Qwen2};
use crate::ops::Ops;
use crate::sample::{Greedy, Limits};
use crate::tensor::{DType, Ledger, format_bytes};
use crate::train::{Engine, EvalRecord, Job, Observer, Outcome, Resume, RunFolder, Sizes, Start, StepRecord, Steps};
use crate::train::{checkpoint_bytes, train};
use serde_json::Value;
use std::path::{Path, PathBuf};

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
    /// Data-parallel ranks; this version has one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    ranks: Option<u32>,
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

pub fn run(args: TrainArgs) -> Result<()> {
    let resume = match args.resume.as_str() {
        "auto" => Resume::Auto,
        "never" => Resume::Never,
        path => Resume::From(path.into()),
    };
    require_single_process(args.ranks)?;
    let config = Config::load(&args.config, &args.set)?;
    let ops = args.device.ops(args.dtype)?;
    if config.optimizer.master == MasterWeights::Stochastic && ops.dtype() == DType::F32 {
        return Err(Error::usage(format!(
            "optimizer.master = \"stochastic\": weights are f32 on {}, there is nothing to round",
            ops.device()
        ))
        .help("leave the key out, or pass --dtype bf16"));
    }
    let (mut folder, start) = RunFolder::open(&config, ops.dtype(), &resume, args.overwrite)?;
    describe_start(&start, &folder)?;
    if matches!(start, Start::Finished) && !args.dry_run {
        return Ok(());
    }
    let architecture = ModelConfig::from_file(&config.model.config_file()?)?;
    Qwen2::require(ops.as_ref(), &architecture)?;
    let tokenizer = config.model.tokenizer_folder()?;
    let chat = Chat::load(&tokenizer, config.model.chat_template.as_deref(), architecture.vocab_size)?;
    let data = load(&config.data.train, &config.data, &chat)?;
    say!("{}", describe("train", &data))?;
    let eval = (!config.data.eval.is_empty()).then(|| load(&config.data.eval, &config.data, &chat)).transpose()?;
    if let Some(eval) = &eval {
        say!("{}", describe("eval", eval))?;
    }
    let checkpoint = match &start {
        Start::Continue { checkpoint, .. } => Some(checkpoint),
        _ => None,
    };
    checkpoint.map_or(Ok(()), |checkpoint| checkpoint.require_data(&data))?;
    let datasets: Vec<&Dataset> = std::iter::once(&data).chain(&eval).collect();
    require_fit(datasets.iter().flat_map(|d| &d.examples), config.train.micro_tokens)?;
    let samples = Samples::load(&config, &chat)?;
    let plan = plan(&config, &architecture, ops.as_ref(), &datasets, samples.as_ref())?;
    let steps = Steps::new(data.examples.len(), &config.train, &config.optimizer);
    describe_run(&architecture, ops.as_ref(), &plan, &data, steps)?;
    if args.dry_run {
        return say!("dry run: nothing was written");
    }

    let mut engine = Engine::new(ops, &architecture, plan.sizes)?;
    require_disk(&engine, &config, &folder, steps)?;
    match checkpoint {
        Some(checkpoint) => checkpoint.load(&mut engine)?,
        None => load_weights(&mut engine, &config, &architecture)?,
    }
    let source = config.model.config_file()?;
    let template = config.model.chat_template.as_deref();
    let companions = Companions::read(&source, &tokenizer, template, config.data.system.as_deref())?;
    folder.begin(&config, engine.ops.dtype(), &start)?;

    let signals = Signals::catch()?;
    let stop = || signals.check();
    let sampler = samples.map(|samples| Sampler::new(samples, &engine, &chat, &stop)).transpose()?;
    let mut reporter = Reporter { progress: Progress::new(steps), sampler };
    let job = Job {
        config: &config,
        train: &data,
        eval: eval.as_ref(),
        companions: &companions,
        dtype: exported_dtype(&config, &source)?,
        memory: plan.ledger.total(),
        stop: &stop,
    };
    let outcome = train(&mut engine, &job, &folder, checkpoint, &mut reporter)?;
    reporter.progress.finish();
    summarise(&outcome, &engine, &folder.model())
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

/// Refuses a run whose checkpoints and model the disk has no room for, as far as that is known.
fn require_disk(engine: &Engine, config: &Config, folder: &RunFolder, steps: Steps) -> Result<()> {
    let period = match config.train.save_every {
        Every::Epoch => steps.per_epoch,
        Every::Steps(every) => every.try_into().unwrap_or(usize::MAX),
    };
    // While the newest is written, the one that it replaces is still there.
    let (checkpoint, count) = (checkpoint_bytes(engine), steps.total.div_ceil(period).min(config.train.keep.saturating_add(1)));
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

/// What a run reserves.
struct Plan {
    sizes: Sizes,
    /// Of engine and sampler.
    ledger: Ledger,
}

/// The most tokens that are packed together: the longest rows of a step, or an evaluation, which is packed as a whole.
fn most_packed(config: &Config, data: &[&Dataset]) -> usize {
    let together = |index: usize| if index == 0 { config.train.batch } else { usize::MAX };
    let packed = data.iter().enumerate().map(|(index, dataset)| {
        let mut lengths: Vec<usize> = dataset.examples.iter().map(|e| e.tokens.len()).collect();
        lengths.sort_unstable_by_key(|&length| std::cmp::Reverse(length));
        lengths.iter().take(together(index)).sum()
    });
    packed.max().unwrap_or(1)
}

/// Buffers no longer than the data needs, and the fastest recompute policy that fits.
fn plan(
    config: &Config,
    architecture: &ModelConfig,
    ops: &dyn Ops,
    data: &[&Dataset],
    samples: Option<&Samples>,
) -> Result<Plan> {
    let lengths = || data.iter().flat_map(|d| &d.examples).map(|e| e.tokens.len());
    let longest = lengths().max().unwrap_or(1);
    let positions = longest.max(samples.map_or(0, Samples::capacity));
    let micro_tokens = if config.train.packing { config.train.micro_tokens.min(most_packed(config, data)) } else { longest };
    let planned = |keep, micro_tokens| -> Result<Plan> {
        let OptimizerConfig { state, master, .. } = config.optimizer;
        let sizes = Sizes { micro_tokens, positions, keep, state, master };
        let mut ledger = Engine::plan(ops, architecture, sizes)?;
        if let Some(samples) = samples {
            ledger.entries.extend(samples.plan(ops, architecture)?.entries);
        }
        Ok(Plan { sizes, ledger })
    };
    const POLICIES: [(Keep, &str); 3] = [(Keep::All, "none"), (Keep::Attention, "mlp"), (Keep::Stream, "block")];
    let allowed = match config.memory.recompute {
        Recompute::Auto => 0..3,
        Recompute::None => 0..1,
        Recompute::Mlp => 1..2,
        Recompute::Block => 2..3,
    };
    let (first, last) = (allowed.start, allowed.end - 1);
    let available = available_memory(ops)?.unwrap_or(usize::MAX);
    let fits = |plan: &Plan| plan.ledger.total() <= available;
    for (keep, _) in &POLICIES[allowed] {
        let plan = planned(*keep, micro_tokens)?;
        if fits(&plan) {
            return Ok(plan);
        }
    }
    // What would fit: more recomputation, then shorter micro-batches, each as long as the longest row at least.
    let halves = std::iter::successors(Some(micro_tokens), |&n| (n > longest).then_some((n / 2).max(longest)));
    let smaller = halves.flat_map(|n| POLICIES[first..].iter().map(move |&(keep, name)| (keep, name, n)));
    let mut help = "use a smaller model or a larger device, or lower data.max_tokens".to_string();
    for (keep, name, tokens) in smaller {
        let plan = planned(keep, tokens)?;
        if fits(&plan) {
            let total = format_bytes(plan.ledger.total());
            help = format!("memory.recompute = \"{name}\" with train.micro_tokens = {tokens} needs {total}");
            break;
        }
    }
    let needed = planned(POLICIES[last].0, micro_tokens)?.ledger.total();
    Err(does_not_fit(ops, needed, available).help(help))
}

fn describe_run(architecture: &ModelConfig, ops: &dyn Ops, plan: &Plan, data: &Dataset, steps: Steps) -> Result<()> {
    let layout = Layout::new(architecture);
    say!("model: {} parameters, {} layers, on {}", layout.parameter_count(), architecture.num_hidden_layers, ops.device())?;
    let kept = match plan.sizes.keep {
        Keep::All => "nothing is computed again",
        Keep::Attention => "the feed-forward blocks are computed again",
        Keep::Stream | Keep::Nothing => "each layer is computed again",
    };
    say!("memory: {} ({kept} in the backward pass)", format_bytes(plan.ledger.total()))?;
    for (group, bytes) in plan.ledger.by_group() {
        say!("  {group:<12} {:>10}", format_bytes(bytes))?;
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
    let ops = engine.ops.as_ref();
    match config.model.folder()? {
        Some(folder) => {
            let checkpoint = io::TensorFiles::open(&folder)?;
            engine.state.weights.load_checkpoint(ops, &checkpoint).map_err(|e| e.context(folder.display()))
        }
        None => engine.state.weights.initialise(ops, config.train.seed, architecture.initializer_range as f32),
    }
}

/// Rows to answer during training.
struct Samples {
    prompts: Vec<Prompt>,
    /// Token ids of each prompt.
    tokens: Vec<Vec<i32>>,
    max_tokens: usize,
}

impl Samples {
    fn load(config: &Config, chat: &Chat) -> Result<Option<Samples>> {
        let Some(file) = &config.samples.file else { return Ok(None) };
        let mut prompts = read_prompts(file, &config.data.fields, config.data.system.as_deref())?;
        if config.samples.n > 0 {
            prompts.truncate(config.samples.n);
        }
        let encode = |prompt: &Prompt| {
            chat.encode_prompt(&prompt.messages).map_err(|e| e.context(format!("{} (id {})", file.display(), prompt.id)))
        };
        let tokens = prompts.iter().map(encode).collect::<Result<_>>()?;
        Ok(Some(Samples { prompts, tokens, max_tokens: config.samples.max_tokens }))
    }

    /// Tokens of the longest prompt with its longest answer.
    fn capacity(&self) -> usize {
        self.tokens.iter().map(Vec::len).max().unwrap_or(1) + self.max_tokens
    }

    /// Sequences decoded at a time.
    fn slots(&self) -> usize {
        const MOST: usize = 64;
        self.tokens.len().clamp(1, MOST)
    }

    /// What decoding them reserves.
    fn plan(&self, ops: &dyn Ops, architecture: &ModelConfig) -> Result<Ledger> {
        let mut ledger = Greedy::plan(ops.dtype(), architecture, self.slots(), self.capacity())?;
        ledger.entries.iter_mut().for_each(|entry| entry.name.insert_str(0, "samples."));
        Ok(ledger)
    }
}

struct Sampler<'a> {
    samples: Samples,
    chat: &'a Chat,
    greedy: Greedy,
    stop: &'a dyn Fn() -> Result<()>,
}

impl<'a> Sampler<'a> {
    /// Answers printed in full.
    const SHOWN: usize = 3;

    fn new(samples: Samples, engine: &Engine, chat: &'a Chat, stop: &'a dyn Fn() -> Result<()>) -> Result<Self> {
        let config = &engine.state.model.config;
        let greedy = Greedy::new(engine.ops.as_ref(), config, samples.slots(), samples.capacity())?;
        Ok(Sampler { samples, chat, greedy, stop })
    }

    fn run(&mut self, engine: &Engine, step: usize, progress: &Progress) -> Result<()> {
        let state = &engine.state;
        let limits =
            Limits { max_tokens: self.samples.max_tokens, stop: self.chat.stop_ids(), vocabulary: self.chat.vocabulary() };
        let ops = engine.ops.as_ref();
        let answers = self.greedy.generate(ops, &state.model, &state.weights, &self.samples.tokens, limits, self.stop)?;
        let texts: Vec<String> = answers.iter().map(|a| self.chat.decode(&a.tokens)).collect();
        for ((prompt, text), answer) in self.samples.prompts.iter().zip(&texts).zip(&answers).take(Self::SHOWN) {
            let question = prompt.messages.last().map_or("", |m: &Message| m.content.as_str());
            let (question, text) = (visible(question), visible(text));
            let end = if answer.stopped { "" } else { " […]" };
            progress.line(&format!(
                "sample at step {step}, id {}: {question}\n  {}{end}",
                prompt.id,
                text.replace('\n', "\n  ")
            ))?;
        }
        let graded: Vec<bool> =
            self.samples.prompts.iter().zip(&texts).filter_map(|(p, t)| exact_match(p.answer.as_ref()?, t)).collect();
        if !graded.is_empty() {
            let correct = graded.iter().filter(|&&correct| correct).count();
            let percent = 100.0 * correct as f64 / graded.len() as f64;
            progress.line(&format!("exact match at step {step}: {correct}/{} = {percent:.1} %", graded.len()))?;
        }
        Ok(())
    }
}

/// Whether the boxed answer of `response` is the reference answer, character by character. None where the reference is not text or a number.
fn exact_match(reference: &Value, response: &str) -> Option<bool> {
    let reference = match reference {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    Some(boxed_answer(response).is_some_and(|answer| answer.trim() == reference.trim()))
}

struct Reporter<'a> {
    progress: Progress,
    sampler: Option<Sampler<'a>>,
}

impl Observer for Reporter<'_> {
    fn step(&mut self, record: &StepRecord, steps: Steps) -> Result<()> {
        self.progress.step(record, steps)
    }
    fn evaluation(&mut self, record: &EvalRecord) -> Result<()> {
        self.progress.evaluation(record)
    }
    fn samples(&mut self, engine: &mut Engine, step: usize) -> Result<()> {
        match &mut self.sampler {
            Some(sampler) => sampler.run(engine, step, &self.progress),
            None => Ok(()),
        }
    }
    fn saved(&mut self, path: &Path) -> Result<()> {
        self.progress.line(&format!("saved {}", path.display()))
    }
    fn skipped(&mut self, error: &Error) -> Result<()> {
        self.progress.line(&format!("skipped: {}", error.message))
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
    say!("model: {}", model.display())
}
