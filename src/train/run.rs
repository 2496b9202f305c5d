//! A run: epochs of steps, with evaluations, samples, records and checkpoints between them, and the exported model at the end.

use super::checkpoint::{Checkpoint, Checkpoints, SavedRun, digest};
use super::engine::{Apply, Engine};
use super::metrics::{EvalRecord, Metrics, StepRecord};
use super::run_folder::RunFolder;
use super::schedule::Steps;
use crate::comm::agree;
use crate::config::{Config, Every};
use crate::data::{Dataset, Example, MicroBatch, order, pack};
use crate::error::{Error, Kind, Result};
use crate::io::{Companions, DEFAULT_SHARD_BYTES, Export, export, read_along};
use crate::tensor::DType;
use std::path::Path;
use std::time::Instant;

/// Told of everything that happens; all of it is also in metrics.jsonl.
pub trait Observer {
    fn step(&mut self, record: &StepRecord, steps: Steps) -> Result<()>;
    fn evaluation(&mut self, record: &EvalRecord) -> Result<()>;
    /// Called before the first step, at every evaluation and after the last step, to generate samples. `step` updates are done.
    fn samples(&mut self, engine: &mut Engine, step: usize) -> Result<()>;
    /// A step whose loss or gradient norm is not finite was left out.
    fn skipped(&mut self, error: &Error) -> Result<()>;
    /// A checkpoint is on disk.
    fn saved(&mut self, path: &Path) -> Result<()>;
}

/// What is trained, on what, and into what.
pub struct Job<'a> {
    pub config: &'a Config,
    pub train: &'a Dataset,
    pub eval: Option<&'a Dataset>,
    pub companions: &'a Companions,
    /// Of the exported weights.
    pub dtype: DType,
    /// Bytes that each rank reserved.
    pub memory: usize,
    /// Asked between micro-batches: an error of kind `Stopped` once the run is to stop.
    pub stop: &'a dyn Fn() -> Result<()>,
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub steps: Steps,
    pub last: Option<StepRecord>,
    /// Wall-clock time in steps, without evaluation, samples and checkpoints, since this process began.
    pub seconds: f64,
    /// Tokens trained on in that time.
    pub tokens: usize,
}

/// All ranks call it together; rank 0 writes the records, the checkpoints and the model, and the others add their parts.
///
/// Trains to the last step and exports the model, from step 1 or from where `checkpoint` left off, whose state `engine` has.
///
/// Errors: a run that `job.stop` stops has its last whole step saved.
pub fn train(
    engine: &mut Engine,
    job: &Job,
    folder: &RunFolder,
    checkpoint: Option<&Checkpoint>,
    observer: &mut dyn Observer,
) -> Result<Outcome> {
    let done = checkpoint.map_or(0, |checkpoint| checkpoint.manifest.step);
    let metrics = (engine.comm.rank() == 0).then(|| Metrics::create(&folder.metrics(), done)).transpose()?;
    let mut run = Run::new(engine, job, folder, checkpoint, metrics, observer)?;
    match run.finish(engine) {
        Err(stopped) if stopped.kind == Kind::Stopped => {
            run.save(engine)?;
            let path = run.checkpoints.path(run.done);
            Err(Error::stopped(format!(
                "{} after step {} of {}: saved {}",
                stopped.message,
                run.done,
                run.steps.total,
                path.display()
            ))
            .help("the same command goes on from there"))
        }
        result => result.map(|()| run.outcome),
    }
}

/// Times `count` steps: of training, but that nothing is evaluated, generated, written or exported.
pub fn measure(
    engine: &mut Engine,
    job: &Job,
    folder: &RunFolder,
    count: usize,
    observer: &mut dyn Observer,
) -> Result<Vec<StepRecord>> {
    let mut run = Run::new(engine, job, folder, None, None, observer)?;
    run.refuse_rounds(engine)?;
    let mut records = Vec::new();
    for _ in 0..count.min(run.steps.total) {
        (job.stop)()?;
        run.step(engine)?;
        records.extend(run.outcome.last.clone());
    }
    Ok(records)
}

struct Run<'a> {
    job: &'a Job<'a>,
    folder: &'a RunFolder,
    observer: &'a mut dyn Observer,
    steps: Steps,
    /// Steps done.
    done: usize,
    /// The step of the newest checkpoint.
    saved: Option<usize>,
    saved_run: SavedRun<'a>,
    checkpoints: Checkpoints,
    /// Of rank 0.
    metrics: Option<Metrics>,
    /// Micro-batches and rows.
    evaluation: Option<(Vec<MicroBatch>, usize)>,
    /// An epoch and the order of its rows.
    order: (Option<usize>, Vec<usize>),
    /// Products whose algorithm is on record.
    algorithms: usize,
    outcome: Outcome,
}

impl<'a> Run<'a> {
    fn new(
        engine: &Engine,
        job: &'a Job<'a>,
        folder: &'a RunFolder,
        checkpoint: Option<&Checkpoint>,
        metrics: Option<Metrics>,
        observer: &'a mut dyn Observer,
    ) -> Result<Run<'a>> {
        let done = checkpoint.map_or(0, |checkpoint| checkpoint.manifest.step);
        let steps = Steps::new(job.train.examples.len(), &job.config.train, &job.config.optimizer);
        let saved_run = SavedRun {
            companions: job.companions,
            config: RunFolder::config_text(job.config, engine.ops.dtype()),
            data: digest(job.train),
        };
        let checkpoints = folder.checkpoints();
        let own = checkpoint.filter(|c| c.path.canonicalize().ok() == checkpoints.path(done).canonicalize().ok());
        Ok(Run {
            job,
            folder,
            observer,
            steps,
            done,
            saved: own.map(|_| done),
            saved_run,
            checkpoints,
            metrics,
            evaluation: job.eval.map(|eval| pack_all(&eval.examples, job.config)).transpose()?,
            order: (None, Vec::new()),
            algorithms: 0,
            outcome: Outcome { steps, last: None, seconds: 0.0, tokens: 0 },
        })
    }

    fn finish(&mut self, engine: &mut Engine) -> Result<()> {
        self.refuse_rounds(engine)?;
        let train = &self.job.config.train;
        if self.done == 0 {
            self.observer.samples(engine, 0)?;
        } else if self.due(train.eval_every) && !self.evaluated(engine)? {
            // The run was stopped between a step and its evaluation.
            self.evaluate(engine)?;
        }
        while self.done < self.steps.total {
            (self.job.stop)()?;
            self.step(engine)?;
            if self.due(train.save_every) {
                self.save(engine)?;
            }
            if self.due(train.eval_every) {
                self.evaluate(engine)?;
            }
        }
        self.save(engine)?;
        self.export(engine)
    }

    /// Where gradients are released, refuses steps of more micro-batches than ranks, whose gradients would have to be summed before they are applied.
    fn refuse_rounds(&mut self, engine: &Engine) -> Result<()> {
        if !self.job.config.memory.gradient_release {
            return Ok(());
        }
        let world = engine.comm.world();
        let (done, train) = (self.done, &self.job.config.train);
        while self.done < self.steps.total {
            let count = pack(&self.rows(), train.micro_tokens, train.packing)?.len();
            if count > world {
                let ranks = if world == 1 { "one rank".to_string() } else { format!("{world} ranks") };
                return Err(Error::usage(format!(
                    "memory.gradient_release: step {} has {count} micro-batches, {ranks} can release the gradients of one each",
                    self.done + 1
                ))
                .help("lower train.batch, raise train.micro_tokens, or keep the gradients: memory.offload = [\"gradients\"]"));
            }
            self.done += 1;
        }
        self.done = done;
        Ok(())
    }

    /// Whether the evaluation after the last step is on record.
    fn evaluated(&self, engine: &Engine) -> Result<bool> {
        let known = self.metrics.as_ref().is_some_and(|metrics| metrics.evaluated(self.done));
        Ok(engine.comm.share(&[known.into()])?[0] == [1])
    }

    /// Whether something is done after the steps so far.
    fn due(&self, every: Every) -> bool {
        let period = match every {
            Every::Epoch => self.steps.per_epoch,
            Every::Steps(steps) => steps.try_into().unwrap_or(usize::MAX),
        };
        self.done.is_multiple_of(period) || self.done == self.steps.total
    }

    fn step(&mut self, engine: &mut Engine) -> Result<()> {
        let Config { train, optimizer, .. } = self.job.config;
        let began = Instant::now();
        let rows = self.rows();
        let batches = pack(&rows, train.micro_tokens, train.packing)?;
        let (step, lr) = (self.done + 1, self.steps.lr(self.done, optimizer));
        let regions = engine.ops.allocator().regions();
        engine.comm.begin_step(step);
        let range = engine.ops.range(&format!("step {step}"));
        let apply = Apply { settings: optimizer, lr, seed: train.seed };
        let release = self.job.config.memory.gradient_release;
        let (loss, norm) = if release {
            engine.apply_released(&batches, rows.len(), train.normalize, apply, self.job.stop)?
        } else {
            let loss = engine.accumulate(&batches, rows.len(), train.normalize, train.seed, self.job.stop)?;
            (loss, engine.gradient_norm()?)
        };
        let skipped = !(loss.value.is_finite() && norm.is_finite());
        if skipped {
            let error = not_finite(step, loss.value, norm, &rows, release);
            if !train.skip_nonfinite {
                return agree(engine.comm.as_ref(), Err(error));
            }
            self.observer.skipped(&error)?;
        } else if !release {
            engine.update(norm, apply)?;
        }
        drop(range);
        if self.outcome.last.is_some() && engine.ops.allocator().regions() != regions {
            return Err(Error::internal(format!("step {step} reserved memory: all of it is reserved before the first")));
        }
        let seconds = began.elapsed().as_secs_f64();
        let record = StepRecord {
            step,
            epoch: step as f64 / self.steps.per_epoch as f64,
            loss: loss.value,
            grad_norm: norm,
            skipped,
            lr,
            tokens: loss.tokens,
            supervised_tokens: loss.supervised_tokens,
            tokens_per_s: loss.tokens as f64 / seconds,
            mfu: engine
                .ops
                .peak_flops()
                .map(|peak| engine.step_flops(&batches) / seconds / (peak * engine.comm.world() as f64)),
            memory: self.job.memory,
            seconds,
        };
        self.done = step;
        if let Some(metrics) = &mut self.metrics {
            metrics.step(&record)?;
            // New shapes of micro-batches bring new products.
            let chosen = engine.ops.product_algorithms();
            if chosen.len() > self.algorithms {
                self.folder.write_algorithms(&chosen)?;
                self.algorithms = chosen.len();
            }
        }
        self.outcome.seconds += seconds;
        self.outcome.tokens += loss.tokens;
        self.observer.step(&record, self.steps)?;
        self.outcome.last = Some(record);
        Ok(())
    }

    /// The rows of the next step: a function of seed, epoch and index alone.
    fn rows(&mut self) -> Vec<&'a Example> {
        let Config { train, data, .. } = self.job.config;
        let examples = &self.job.train.examples;
        let (epoch, index) = (self.done / self.steps.per_epoch, self.done % self.steps.per_epoch);
        if self.order.0 != Some(epoch) {
            let all = examples.len();
            let rows = if data.shuffle { order(train.seed, epoch as u64, all) } else { (0..all).collect() };
            self.order = (Some(epoch), rows);
        }
        let first = index * train.batch;
        self.order.1[first..examples.len().min(first + train.batch)].iter().map(|&row| &examples[row]).collect()
    }

    fn evaluate(&mut self, engine: &mut Engine) -> Result<()> {
        if let Some((batches, rows)) = &self.evaluation {
            let loss = engine.evaluate(batches, *rows, self.job.stop)?;
            if !loss.value.is_finite() {
                let error = Error::non_finite(format!("after step {}: evaluation loss {}", self.done, loss.value));
                return agree(engine.comm.as_ref(), Err(error));
            }
            let record = EvalRecord {
                step: self.done,
                epoch: self.done as f64 / self.steps.per_epoch as f64,
                eval_loss: loss.value,
                tokens: loss.tokens,
                supervised_tokens: loss.supervised_tokens,
            };
            if let Some(metrics) = &mut self.metrics {
                metrics.evaluation(&record)?;
            }
            self.observer.evaluation(&record)?;
        }
        self.observer.samples(engine, self.done)
    }

    fn save(&mut self, engine: &Engine) -> Result<()> {
        if self.saved == Some(self.done) {
            return Ok(());
        }
        // Whoever finds the checkpoint finds the rows before it.
        agree(engine.comm.as_ref(), self.metrics.as_ref().map_or(Ok(()), Metrics::sync))?;
        let path = self.checkpoints.save(engine, &self.saved_run, self.done, self.job.config.train.keep)?;
        self.saved = Some(self.done);
        self.observer.saved(&path)
    }

    fn export(&self, engine: &Engine) -> Result<()> {
        let tensors = engine.model_tensors(self.job.dtype);
        let spec = Export { companions: self.job.companions, tensors: &tensors, shard_bytes: DEFAULT_SHARD_BYTES };
        let read = |name: &str, rows, values: &mut [f32]| {
            (self.job.stop)()?;
            engine.state.weights.read(engine.ops.as_ref(), name, rows, values)
        };
        engine.comm.note("exporting the model");
        match engine.comm.rank() {
            0 => export(&self.folder.model(), &spec, read, &|file| engine.comm.note(&format!("verifying {file}"))),
            _ => read_along(&spec, read),
        }?;
        // The others wait for the model to be complete.
        agree(engine.comm.as_ref(), Ok(()))
    }
}

fn pack_all(examples: &[Example], config: &Config) -> Result<(Vec<MicroBatch>, usize)> {
    let rows: Vec<&Example> = examples.iter().collect();
    Ok((pack(&rows, config.train.micro_tokens, config.train.packing)?, rows.len()))
}

fn not_finite(step: usize, loss: f64, norm: f64, rows: &[&Example], released: bool) -> Error {
    const SHOWN: usize = 16;
    let mut ids: Vec<&str> = rows.iter().take(SHOWN).map(|row| row.id.as_str()).collect();
    if rows.len() > SHOWN {
        ids.push("…");
    }
    let state = if released { "the weights are of no use now, the last checkpoint is" } else { "nothing was updated" };
    Error::non_finite(format!("step {step}: loss {loss}, gradient norm {norm}; {state}. Rows: {}", ids.join(", ")))
        .help("lower optimizer.lr or set a warm-up; check the weights with `inspect model`; train.skip_nonfinite = true leaves such steps out")
}
