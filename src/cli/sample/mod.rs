//! `limo-engine sample`.

mod args;
mod describe;
mod model;
mod part;
mod progress;

use super::memory::resident;
use super::replaced::refuse_to_replace_inputs;
use super::signals::Signals;
use crate::config::resolve_model;
use crate::data::PromptReader;
use crate::error::{Error, Kind, Result};
use crate::sample::{
    Asked, Capacity, Finished, JobRecord, LoadedModel, Output, Request, Requests, Sampler, Settings, Stats, StopRules,
    StopTexts, Times,
};
use crate::tensor::format_bytes;
pub use args::SampleArgs;
use args::SamplingArgs;
use model::Model;
use part::{Part, STDIN};
use progress::Progress;
use std::cell::RefCell;
use std::path::Path;

pub fn run(mut args: SampleArgs) -> Result<()> {
    if args.input == Path::new("-") {
        args.input = STDIN.into();
    }
    let part = Part::of(&args)?;
    args.model = resolve_model(&args.model)?;
    let beside = JobRecord::path(&part.output);
    refuse_to_replace_inputs(
        &[("--input", &args.input), ("--model", &args.model)],
        &[("--output", &part.output), ("--output", &beside)],
    )?;
    let model = Model::open(&args.model, &args.sampling, &args.engine, part.ordinal)?;
    let stop_texts = StopTexts::new(&model.chat, &model.stop_texts)?;
    let record = model.record(&args.sampling, args.token_ids)?;
    let (mut output, done) = Output::open(&part.output, &record, part.resume, part.overwrite)?;
    let rows = PromptReader::count(&args.input)?.map(|rows| part.shard.share(rows));
    let samples = args.sampling.samples as usize;
    let (capacity, ledgers) = model.plan(&args.engine, part.on_machine, rows.map(|rows| rows.saturating_mul(samples)))?;
    if part.speaks() {
        describe::job(&model, &args.sampling, capacity, &ledgers)?;
    }
    let progress = Progress::new(part.shard);
    if done.rows > 0 {
        progress.line(&format!("going on with {}, which has {} samples", part.output.display(), done.rows))?;
    }
    if let Some(program) = output.begun_by() {
        progress.line(&format!(
            "{program} began it: where that computes otherwise, the new rows are not what it would have written"
        ))?;
    }
    if output.torn() > 0 {
        progress.line(&format!("{}: its last row was cut off, and is removed", part.output.display()))?;
    }

    let prompts = PromptReader::open(&args.input, model.system.clone())?;
    let asked = Asked {
        seed: args.sampling.seed,
        samples: args.sampling.samples,
        max_tokens: args.sampling.max_tokens as usize,
        stop_ids: &model.stop_ids,
        stop_texts: &stop_texts,
        token_ids: args.token_ids,
        logprobs: args.sampling.logprobs,
    };
    let mut requests = Requests::new(args.input.clone(), prompts, &model.chat, asked, part.shard, capacity, done);
    let first = requests.next(&mut |line| progress.report(line))?;
    let signals = Signals::catch()?;
    // With --overwrite the old rows stay until the model is known to be sound.
    if first.is_none() && (requests.counts.kept == 0 || output.torn() > 0) || first.is_some() && !output.replaces() {
        output.begin(&record)?;
    }
    let mut job = Job { requests, output, progress, signals, rows, samples, stats: Stats::default(), times: Times::default() };
    let end = match first {
        Some(first) => job.run(first, &model, capacity, &args.sampling, &stop_texts, &record),
        None => Ok(()),
    };
    job.progress.finish();
    let Job { requests, output, progress, stats, times, .. } = job;
    match end {
        Err(error) if error.kind == Kind::Stopped => Err(Error::stopped(format!(
            "{} after {} new samples, which are in {}: the same command goes on",
            error.message,
            requests.counts.finished,
            part.output.display()
        ))),
        end => {
            end?;
            output.sync()?;
            if let Some((_, peak)) = resident() {
                progress.line(&format!("peak: {} of this process in memory ({peak} bytes)", format_bytes(peak)))?;
            }
            if stats.drawn > 0 {
                progress.line(&describe::times(&times, &stats))?;
            }
            progress.line(&describe::summary(&requests.counts, &stats, &part.output, progress.seconds()))
        }
    }
}

/// What the engine takes from and gives to.
struct Job<'a> {
    requests: Requests<'a>,
    output: Output,
    progress: Progress,
    signals: Signals,
    /// Rows of this shard, where that is known.
    rows: Option<usize>,
    /// Of each.
    samples: usize,
    /// The last that the engine told.
    stats: Stats,
    times: Times,
}

impl Job<'_> {
    fn run(
        &mut self,
        first: Request,
        model: &Model,
        capacity: Capacity,
        sampling: &SamplingArgs,
        stop_texts: &StopTexts,
        record: &JobRecord,
    ) -> Result<()> {
        let ops = model.ops.as_ref();
        let Sampler { model: qwen2, weights, mut engine } = Sampler::load(ops, &model.config, &model.files, capacity)?;
        if self.output.replaces() {
            self.output.begin(record)?;
        }
        let found = |tokens: &[i32]| stop_texts.found(tokens);
        let text = (!stop_texts.is_empty()).then_some(&found as &dyn Fn(&[i32]) -> bool);
        let settings = Settings {
            narrowing: sampling.narrowing(),
            stop: StopRules { ids: &model.stop_ids, text, repetition: sampling.repetition_stop },
            log_probabilities: sampling.logprobs,
            vocabulary: model.chat.vocabulary(),
        };
        self.progress.begin();
        let mut first = Some(first);
        let job = RefCell::new(self);
        let mut next = || match first.take() {
            Some(first) => Ok(Some(first)),
            None => job.borrow_mut().next(),
        };
        let mut sink = |finished| job.borrow_mut().append(finished);
        let mut watch = |stats: &Stats, times: &Times| job.borrow_mut().watch(stats, times);
        let on = LoadedModel { ops, model: &qwen2, weights: &weights };
        engine.run(on, &settings, &mut next, &mut sink, &mut watch)
    }

    fn next(&mut self) -> Result<Option<Request>> {
        let Job { requests, progress, .. } = self;
        requests.next(&mut |line| progress.report(line))
    }

    fn append(&mut self, finished: Finished) -> Result<()> {
        let row = self.requests.row(finished)?;
        self.output.append(&row)
    }

    fn watch(&mut self, stats: &Stats, times: &Times) -> Result<()> {
        (self.stats, self.times) = (*stats, *times);
        let counts = self.requests.counts;
        let total = self.rows.map(|rows| rows.saturating_sub(counts.broken) * self.samples);
        self.progress.show(stats, &counts, total)?;
        self.signals.check()
    }
}
