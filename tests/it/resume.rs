//! Runs that are stopped and go on: the same bits as a run that never stopped.

use limo_engine::config::{Config, ModelConfig};
use limo_engine::data::{Chat, Dataset, load};
use limo_engine::error::{Error, Kind, Result};
use limo_engine::io::Companions;
use limo_engine::model::{Keep, random_reader};
use limo_engine::ops::Ops;
use limo_engine::ops::cpu::{Cpu, CpuBf16};
use limo_engine::tensor::DType;
use limo_engine::train::{Engine, EvalRecord, Job, Observer, Resume, RunFolder, Sizes, Start, StepRecord, Steps, train};
use limo_engine::zero::Policy;
use serde_json::Value;
use std::cell::Cell;
use std::fs;
use std::path::Path;

/// Twelve steps in three epochs: 11 rows in batches of 3, shuffled and packed, evaluated twice an epoch.
const STEPS: usize = 12;

pub fn config(folder: &Path, more: &str) -> String {
    let model = r#"{"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 600, "tie_word_embeddings": true}"#;
    fs::write(folder.join("config.json"), model).unwrap();
    let row = |i: usize| {
        format!("{{\"question\": \"How many? {}\", \"solution\": \"{}\"}}\n", i * 37, "So it is. ".repeat(1 + i * 5 % 7))
    };
    fs::write(folder.join("rows.jsonl"), (0..11).map(row).collect::<String>()).unwrap();
    fs::write(folder.join("eval.jsonl"), (20..24).map(row).collect::<String>()).unwrap();
    let at = folder.display();
    format!(
        r#"
        model = {{ config = "{at}/config.json", tokenizer = "configs/tiny" }}
        data = {{ train = ["{at}/rows.jsonl"], eval = ["{at}/eval.jsonl"], max_tokens = 96 }}
        train = {{ epochs = 3, batch = 3, micro_tokens = 96, eval_every = 2, save_every = "epoch", normalize = "sequences" }}
        output = {{ dir = "{at}/run" }}
        optimizer.lr = 1e-2
        optimizer.warmup_steps = 2
        optimizer.weight_decay = 0.1
        {more}"#
    )
}

/// A run through the library, stopped where a test wants it.
struct Setup {
    config: Config,
    model: ModelConfig,
    data: Dataset,
    eval: Dataset,
    companions: Companions,
    dtype: DType,
}

/// Where a run is asked to stop.
#[derive(Clone, Copy, PartialEq, Debug)]
enum StopAt {
    /// After this many steps, before anything else.
    Step(usize),
    /// In the evaluation after this many steps.
    Evaluation(usize),
    /// Between the micro-batches of this step.
    MicroBatch(usize),
    /// While the model is exported.
    Export,
    Never,
}

struct Stopper {
    at: StopAt,
    /// Steps done.
    done: Cell<usize>,
    /// How often `stop` was asked since the last step.
    asked: Cell<usize>,
}

impl Stopper {
    fn check(&self) -> Result<()> {
        self.asked.set(self.asked.get() + 1);
        let (done, asked) = (self.done.get(), self.asked.get());
        let stop = match self.at {
            StopAt::Step(step) => done == step,
            // The evaluation has one micro-batch; before it nothing asks.
            StopAt::Evaluation(step) => done == step && asked == 1,
            // Once before the step, then before each micro-batch.
            StopAt::MicroBatch(step) => done + 1 == step && asked >= 3,
            StopAt::Export => done == STEPS && asked > 3,
            StopAt::Never => false,
        };
        if stop { Err(Error::stopped("stopped by the test")) } else { Ok(()) }
    }
}

impl Observer for &Stopper {
    fn step(&mut self, record: &StepRecord, steps: Steps) -> Result<()> {
        assert_eq!(steps.total, STEPS);
        self.done.set(record.step);
        self.asked.set(0);
        Ok(())
    }
    fn evaluation(&mut self, _: &EvalRecord) -> Result<()> {
        self.asked.set(0);
        Ok(())
    }
    fn samples(&mut self, _: &mut Engine, _: usize) -> Result<()> {
        Ok(())
    }
    fn skipped(&mut self, error: &Error) -> Result<()> {
        panic!("{error}")
    }
    fn saved(&mut self, path: &Path) -> Result<()> {
        assert!(path.join("manifest.json").is_file());
        Ok(())
    }
}

impl Setup {
    fn new(folder: &Path, dtype: DType, more: &str) -> Setup {
        let config = Config::parse("test", &config(folder, more), &[]).unwrap();
        let model = ModelConfig::from_file(&folder.join("config.json")).unwrap();
        let tokenizer = Path::new("configs/tiny");
        let chat = Chat::load(tokenizer, None, model.vocab_size).unwrap();
        Setup {
            data: load(&config.data.train, &config.data, &chat).unwrap(),
            eval: load(&config.data.eval, &config.data, &chat).unwrap(),
            companions: Companions::read(&folder.join("config.json"), tokenizer, None, None).unwrap(),
            config,
            model,
            dtype,
        }
    }

    /// Begins or goes on, as `--resume auto` does.
    fn run(&self, at: StopAt) -> Result<()> {
        let ops: Box<dyn Ops> = if self.dtype == DType::F32 { Box::new(Cpu) } else { Box::new(CpuBf16) };
        let (mut folder, start) = RunFolder::open(&self.config, self.dtype, &Resume::Auto, false)?;
        let policy = Policy::new(&self.config.optimizer, &self.config.memory);
        let sizes = Sizes { policy, ..Sizes::new(256, 256, Keep::All) };
        let mut engine = Engine::solo(ops, &self.model, &sizes)?;
        let checkpoint = match &start {
            Start::Fresh { invalid } => {
                assert!(invalid.is_empty(), "{invalid:?}");
                engine.state.weights.load(engine.ops.as_ref(), &mut *random_reader(7, 0.2))?;
                None
            }
            Start::Continue { checkpoint, invalid } => {
                assert!(invalid.is_empty(), "{invalid:?}");
                checkpoint.load(&mut engine)?;
                Some(checkpoint)
            }
            Start::Finished => return Ok(()),
        };
        folder.begin(&self.config, self.dtype, &start)?;
        let done = checkpoint.map_or(0, |checkpoint| checkpoint.manifest.step);
        let stopper = Stopper { at, done: Cell::new(done), asked: Cell::new(0) };
        let job = Job {
            config: &self.config,
            train: &self.data,
            eval: Some(&self.eval),
            companions: &self.companions,
            dtype: DType::F32,
            memory: 0,
            stop: &|| stopper.check(),
        };
        train(&mut engine, &job, &folder, checkpoint, &mut &stopper).map(|_| ())
    }

    fn folder(&self) -> &Path {
        &self.config.output.dir
    }
}

pub fn rows(run: &Path) -> Vec<Value> {
    fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A run's result: the exported weights, and its records without what depends on the clock.
pub fn result(run: &Path) -> (Vec<u8>, Vec<Value>) {
    let mut rows = rows(run);
    for row in &mut rows {
        row.as_object_mut().unwrap().retain(|key, _| !["seconds", "tokens_per_s", "mfu"].contains(&key.as_str()));
    }
    (fs::read(run.join("model/model.safetensors")).unwrap(), rows)
}

pub fn checkpoints(run: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The run without interruption.
fn reference(dtype: DType, more: &str) -> (Vec<u8>, Vec<Value>) {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::new(folder.path(), dtype, more);
    setup.run(StopAt::Never).unwrap();
    let expected = result(setup.folder());
    let steps: Vec<u64> = expected.1.iter().filter(|r| r.get("loss").is_some()).map(|r| r["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=STEPS as u64).collect::<Vec<_>>());
    let evaluated: Vec<u64> =
        expected.1.iter().filter(|r| r.get("eval_loss").is_some()).map(|r| r["step"].as_u64().unwrap()).collect();
    assert_eq!(evaluated, [2, 4, 6, 8, 10, 12]);
    let losses = |key| expected.1.iter().filter_map(|r| r.get(key)?.as_f64()).collect::<Vec<_>>();
    assert!(losses("loss")[STEPS - 1] < 0.9 * losses("loss")[0], "{:?}", losses("loss"));
    assert_eq!(checkpoints(setup.folder()), ["step-00000008", "step-00000012"]);
    expected
}

#[test]
fn a_run_stopped_anywhere_ends_with_the_same_bits() {
    let more = "";
    for dtype in [DType::F32, DType::Bf16] {
        let expected = reference(dtype, more);
        let mut stops: Vec<StopAt> = (0..=STEPS).map(StopAt::Step).collect();
        stops.extend([
            StopAt::Evaluation(4),
            StopAt::Evaluation(12),
            StopAt::MicroBatch(1),
            StopAt::MicroBatch(7),
            StopAt::Export,
        ]);
        for stop in stops {
            let folder = tempfile::tempdir().unwrap();
            let setup = Setup::new(folder.path(), dtype, more);
            let stopped = setup.run(stop).expect_err(&format!("{stop:?}"));
            assert_eq!(stopped.kind, Kind::Stopped, "{stop:?}: {stopped}");
            let done = match stop {
                StopAt::Step(step) | StopAt::Evaluation(step) => step,
                StopAt::MicroBatch(step) => step - 1,
                _ => STEPS,
            };
            let newest = checkpoints(setup.folder()).pop().unwrap();
            assert_eq!(newest, format!("step-{done:08}"), "{stop:?}");
            assert!(
                stopped.message.contains(&newest) && stopped.message.contains("stopped by the test after step"),
                "{stopped}"
            );
            assert!(!setup.folder().join("model").exists(), "{stop:?}");
            setup.run(StopAt::Never).unwrap();
            assert!(result(setup.folder()) == expected, "{dtype}, stopped at {stop:?}");
        }
    }
}

#[test]
fn narrow_moments_and_rounded_weights_come_back_too() {
    let more = "optimizer.state = \"int8\"\noptimizer.master = \"stochastic\"";
    let expected = reference(DType::Bf16, more);
    assert!(expected != reference(DType::Bf16, ""));
    for stop in [StopAt::Step(1), StopAt::Step(6), StopAt::MicroBatch(12)] {
        let folder = tempfile::tempdir().unwrap();
        let setup = Setup::new(folder.path(), DType::Bf16, more);
        setup.run(stop).unwrap_err();
        setup.run(StopAt::Never).unwrap();
        assert!(result(setup.folder()) == expected, "stopped at {stop:?}");
    }
}

#[test]
fn a_run_stopped_again_and_again_ends_with_the_same_bits() {
    let expected = reference(DType::F32, "");
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::new(folder.path(), DType::F32, "");
    for stop in
        [StopAt::MicroBatch(3), StopAt::Step(5), StopAt::Step(5), StopAt::Evaluation(6), StopAt::Step(11), StopAt::Export]
    {
        assert_eq!(setup.run(stop).expect_err(&format!("{stop:?}")).kind, Kind::Stopped);
    }
    setup.run(StopAt::Never).unwrap();
    assert!(result(setup.folder()) == expected);
}
