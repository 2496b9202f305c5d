//! A run: epochs of steps, with evaluations, samples and records between them.

use super::engine::Engine;
use super::metrics::{EvalRecord, Metrics, StepRecord};
use super::run_folder::RunFolder;
use super::schedule::Steps;
use crate::config::{Config, Every};
use crate::data::{Dataset, Example, MicroBatch, order, pack};
use crate::error::{Error, Result};
use std::time::Instant;

/// Told of everything that happens; all of it is also in metrics.jsonl.
pub trait Observer {
    fn step(&mut self, record: &StepRecord, steps: Steps) -> Result<()>;
    fn evaluation(&mut self, record: &EvalRecord) -> Result<()>;
    /// Called before the first step, at every evaluation and after the last step, to generate samples. `step` updates are done.
    fn samples(&mut self, engine: &mut Engine, step: usize) -> Result<()>;
    /// A step whose loss or gradient norm is not finite was left out.
    fn skipped(&mut self, error: &Error) -> Result<()>;
}

/// What is trained on.
pub struct Job<'a> {
    pub config: &'a Config,
    pub train: &'a Dataset,
    pub eval: Option<&'a Dataset>,
    /// Bytes that the whole job reserved.
    pub memory: usize,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub steps: Steps,
    pub last: Option<StepRecord>,
    /// Wall-clock time in steps, without evaluation and samples.
    pub seconds: f64,
    pub tokens: usize,
}

/// Trains from step 1 to the end and writes metrics.jsonl to `folder`.
pub fn train(engine: &mut Engine, job: &Job, folder: &RunFolder, observer: &mut dyn Observer) -> Result<Outcome> {
    let Config { train, optimizer, data, .. } = job.config;
    let examples = &job.train.examples;
    let steps = Steps::new(examples.len(), train, optimizer);
    let evaluation = job.eval.map(|eval| pack_all(&eval.examples, job.config)).transpose()?;
    let mut metrics = Metrics::create(&folder.metrics())?;
    let mut outcome = Outcome { steps, last: None, seconds: 0.0, tokens: 0 };
    let mut rows = Vec::new();

    let mut algorithms = 0;
    observer.samples(engine, 0)?;
    for step in 0..steps.total {
        let (epoch, index) = (step / steps.per_epoch, step % steps.per_epoch);
        if index == 0 {
            rows = if data.shuffle { order(train.seed, epoch as u64, examples.len()) } else { (0..examples.len()).collect() };
        }
        let began = Instant::now();
        let first = index * train.batch;
        let rows: Vec<&Example> =
            rows[first..examples.len().min(first + train.batch)].iter().map(|&row| &examples[row]).collect();
        let batches = pack(&rows, train.micro_tokens, train.packing)?;
        let lr = steps.lr(step, optimizer);
        let regions = engine.ops.allocator().regions();
        let range = engine.ops.range(&format!("step {}", step + 1));
        let loss = engine.accumulate(&batches, rows.len(), train.normalize)?;
        let norm = engine.gradient_norm()?;
        let skipped = !(loss.value.is_finite() && norm.is_finite());
        if !skipped {
            engine.update(optimizer, lr, norm)?;
        } else {
            let error = not_finite(step + 1, loss.value, norm, &rows);
            if !train.skip_nonfinite {
                return Err(error);
            }
            observer.skipped(&error)?;
        }
        drop(range);
        if step > 0 && engine.ops.allocator().regions() != regions {
            return Err(Error::internal(format!("step {} reserved memory: all of it is reserved before the first", step + 1)));
        }
        let seconds = began.elapsed().as_secs_f64();
        let record = StepRecord {
            step: step + 1,
            epoch: (step + 1) as f64 / steps.per_epoch as f64,
            loss: loss.value,
            grad_norm: norm,
            skipped,
            lr,
            tokens: loss.tokens,
            supervised_tokens: loss.supervised_tokens,
            tokens_per_s: loss.tokens as f64 / seconds,
            mfu: engine.ops.peak_flops().map(|peak| engine.step_flops(&batches) / seconds / peak),
            memory: job.memory,
            seconds,
        };
        metrics.write(&record)?;
        observer.step(&record, steps)?;
        // New shapes of micro-batches bring new products.
        let chosen = engine.ops.product_algorithms();
        if chosen.len() > algorithms {
            folder.write_algorithms(&chosen)?;
            algorithms = chosen.len();
        }
        outcome.seconds += seconds;
        outcome.tokens += loss.tokens;

        let last = step + 1 == steps.total;
        let due = match train.eval_every {
            Every::Epoch => index + 1 == steps.per_epoch,
            Every::Steps(every) => ((step + 1) as u64).is_multiple_of(every),
        };
        if due || last {
            if let Some((batches, rows)) = &evaluation {
                let loss = engine.evaluate(batches, *rows)?;
                if !loss.value.is_finite() {
                    return Err(Error::non_finite(format!("after step {}: evaluation loss {}", step + 1, loss.value)));
                }
                let record = EvalRecord {
                    step: step + 1,
                    epoch: record.epoch,
                    eval_loss: loss.value,
                    tokens: loss.tokens,
                    supervised_tokens: loss.supervised_tokens,
                };
                metrics.write(&record)?;
                observer.evaluation(&record)?;
            }
            observer.samples(engine, step + 1)?;
        }
        outcome.last = Some(record);
    }
    Ok(outcome)
}

fn pack_all(examples: &[Example], config: &Config) -> Result<(Vec<MicroBatch>, usize)> {
    let rows: Vec<&Example> = examples.iter().collect();
    Ok((pack(&rows, config.train.micro_tokens, config.train.packing)?, rows.len()))
}

fn not_finite(step: usize, loss: f64, norm: f64, rows: &[&Example]) -> Error {
    const SHOWN: usize = 16;
    let mut ids: Vec<&str> = rows.iter().take(SHOWN).map(|row| row.id.as_str()).collect();
    if rows.len() > SHOWN {
        ids.push("…");
    }
    Error::non_finite(format!("step {step}: loss {loss}, gradient norm {norm}; nothing was updated. Rows: {}", ids.join(", ")))
        .help("lower optimizer.lr or set a warm-up; check the weights with `inspect model`; train.skip_nonfinite = true leaves such steps out")
}
