//! The model against transformers in float32 (tools/golden/model.py): everything within ‖a − b‖ ≤ 1e-4 · ‖b‖.

use limo_engine::config::{Config, ModelConfig, Normalize, OptimizerConfig, Schedule, TrainConfig};
use limo_engine::data::{Example, MicroBatch, pack};
use limo_engine::error::Result;
use limo_engine::io::TensorFiles;
use limo_engine::model::{Activations, Extent, Keep, Packed, Qwen2, ResidentWeights};
use limo_engine::ops::cpu::Cpu;
use limo_engine::ops::{Narrowing, Ops};
use limo_engine::sample::{self, Capacity, FinishReason, Settings, StopRules};
use limo_engine::tensor::{Arenas, DType};
use limo_engine::train::{Apply, Engine, Sizes, Steps};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

const TOLERANCE: f64 = 1e-4;
/// Query heads share key/value heads by 3, 2, 1, 6, 7, 7, 2 and 3; heads have 4 to 128 elements; config.json is spelt as transformers writes it and as the
/// released folders have it; weights lie in one file or several.
const MODELS: [&str; 8] = ["tied", "untied", "gqa1", "gqa6_old", "gqa7", "gqa7_old_sharded", "dim128", "dim128_sharded"];

/// One model: its folder, and what transformers made of it.
struct Golden {
    name: &'static str,
    config: ModelConfig,
    checkpoint: TensorFiles,
    expected: TensorFiles,
    facts: Value,
    examples: Vec<Example>,
}

impl Golden {
    fn load(name: &'static str) -> Self {
        let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden/models").join(name);
        let facts: Value = serde_json::from_slice(&std::fs::read(dir.join("expected/expected.json")).unwrap()).unwrap();
        let example = |(i, row): (usize, &Value)| Example {
            id: i.to_string(),
            tokens: ids(&row["tokens"]),
            supervised: ids(&row["supervised"]).iter().map(|&s| s == 1).collect(),
        };
        Golden {
            name,
            config: ModelConfig::from_file(&dir.join("config.json")).unwrap(),
            checkpoint: TensorFiles::open(&dir).unwrap(),
            expected: TensorFiles::open(&dir.join("expected")).unwrap(),
            examples: facts["sequences"].as_array().unwrap().iter().enumerate().map(example).collect(),
            facts,
        }
    }

    fn tensor(&self, name: &str) -> Vec<f32> {
        whole(&self.expected, name)
    }

    fn reader(&self) -> impl FnMut(&str, &[usize], Range<usize>, &mut [f32]) -> Result<()> {
        |name, _, range, out| self.checkpoint.read_elements_f32(name, range, out)
    }

    fn engine(&self, keep: Keep) -> Engine {
        let mut engine = Engine::solo(Box::new(Cpu), &self.config, &Sizes::new(64, 64, keep)).unwrap();
        engine.state.weights.load(&Cpu, &mut self.reader()).unwrap();
        engine
    }

    fn batches(&self, micro_tokens: usize, packing: bool) -> Vec<MicroBatch> {
        pack(&self.examples.iter().collect::<Vec<_>>(), micro_tokens, packing).unwrap()
    }

    /// Gradients of the whole batch by tensor, its loss and the gradients' norm.
    fn gradients(&self, keep: Keep, batches: &[MicroBatch], normalize: Normalize) -> (BTreeMap<String, Vec<f32>>, f64, f64) {
        let mut engine = self.engine(keep);
        let loss = engine.accumulate(batches, self.examples.len(), normalize, 0, &|| Ok(())).unwrap();
        let norm = engine.gradient_norm().unwrap();
        let mut gradients = BTreeMap::new();
        let collect = |name: &str, values: &[f32]| {
            gradients.insert(name.to_string(), values.to_vec());
            Ok(())
        };
        engine.state.gradients.visit(&Cpu, collect).unwrap();
        (gradients, loss.value, norm)
    }
}

fn ids(value: &Value) -> Vec<i32> {
    value.as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect()
}

fn whole(checkpoint: &TensorFiles, name: &str) -> Vec<f32> {
    let (_, shape) = checkpoint.info(name).unwrap();
    let mut values = vec![f32::NAN; shape.iter().product()];
    checkpoint.read_f32(name, 0..shape[0], &mut values).unwrap();
    values
}

fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(expected).map(|(&a, &b)| a as f64 - b as f64));
    let error = difference / norm(&mut expected.iter().map(|&b| b as f64));
    assert!(error <= tolerance, "{what}: relative error {error:.2e}");
}

fn assert_near(what: &str, got: f64, expected: &Value) {
    let expected = expected.as_f64().unwrap();
    assert!((got - expected).abs() <= TOLERANCE * expected.abs(), "{what}: {got}, expected {expected}");
}

fn key(normalize: Normalize) -> &'static str {
    if normalize == Normalize::Tokens { "tokens" } else { "sequences" }
}

/// Sequences share one micro-batch here and were run alone there.
#[test]
fn logits_of_a_packed_batch() {
    for golden in MODELS.map(Golden::load) {
        let batches = golden.batches(64, true);
        assert_eq!(batches.len(), 1, "the whole batch is packed together");
        let ((mut model, mut weights, mut activations), _) = Arenas::build(Cpu.allocator(), Cpu.host_allocator(), |arenas| {
            let model = Qwen2::new(&mut arenas.device, &golden.config, 32)?;
            let weights = ResidentWeights::new(&mut arenas.device, model.layout.clone(), DType::F32)?;
            Ok((model, weights, Activations::new(arenas, &golden.config, DType::F32, Extent::new(64, Keep::Nothing))?))
        })
        .unwrap();
        model.upload_tables(&Cpu).unwrap();
        weights.load(&Cpu, &mut golden.reader()).unwrap();

        let MicroBatch { tokens, positions, cu_seqlens, rows, .. } = &batches[0];
        let batch = Packed { tokens, positions, cu_seqlens };
        model.forward(&Cpu, &weights, &mut activations, batch).unwrap();
        let all: Vec<i32> = (0..tokens.len() as i32).collect();
        let mut logits = Vec::new();
        model.logits(&Cpu, &weights, &mut activations, &all, |_, row| logits.extend_from_slice(row)).unwrap();
        for (sequence, row) in rows.iter().enumerate() {
            let [begin, end] = [0, 1].map(|i| cu_seqlens[sequence + i] as usize * golden.config.vocab_size);
            let what = format!("{} logits.{row}", golden.name);
            assert_close(&what, &logits[begin..end], &golden.tensor(&format!("logits.{row}")), TOLERANCE);
        }
    }
}

#[test]
fn loss_gradients_and_norm_in_both_normalisations() {
    for golden in MODELS.map(Golden::load) {
        for normalize in [Normalize::Tokens, Normalize::Sequences] {
            for keep in [Keep::All, Keep::Attention, Keep::Stream] {
                let (gradients, loss, norm) = golden.gradients(keep, &golden.batches(64, true), normalize);
                let what = format!("{} {} {keep:?}", golden.name, key(normalize));
                assert_near(&format!("{what} loss"), loss, &golden.facts["loss"][key(normalize)]);
                assert_near(&format!("{what} norm"), norm, &golden.facts["grad_norm"][key(normalize)]);
                let prefix = format!("grad.{}.", key(normalize));
                let names: Vec<_> = golden.expected.names().filter_map(|name| name.strip_prefix(&prefix)).collect();
                assert_eq!(gradients.keys().collect::<Vec<_>>(), names);
                for (name, values) in &gradients {
                    assert_close(&format!("{what} {name}"), values, &golden.tensor(&format!("{prefix}{name}")), TOLERANCE);
                }
            }
        }
    }
}

/// How a batch is cut into micro-batches is no part of its gradient.
#[test]
fn packed_unpacked_and_split_batches_agree() {
    for golden in MODELS.map(Golden::load) {
        for normalize in [Normalize::Tokens, Normalize::Sequences] {
            let (packed, ..) = golden.gradients(Keep::All, &golden.batches(64, true), normalize);
            for (micro_tokens, packing, count) in
                [(23, true, 3), (24, true, 3), (30, true, 2), (36, true, 2), (52, true, 1), (23, false, 4), (64, false, 4)]
            {
                let batches = golden.batches(micro_tokens, packing);
                assert_eq!(batches.len(), count, "at most {micro_tokens} tokens");
                let (other, ..) = golden.gradients(Keep::All, &batches, normalize);
                for (name, values) in &packed {
                    let what = format!("{} {} in {count} micro-batches: {name}", golden.name, key(normalize));
                    assert_close(&what, &other[name], values, 1e-5);
                }
            }
        }
    }
}

#[test]
fn parameters_after_eight_adamw_steps() {
    for golden in MODELS.map(Golden::load) {
        let training = &golden.facts["training"];
        let number = |key: &str| training[key].as_f64().unwrap();
        let settings = OptimizerConfig {
            lr: number("lr"),
            schedule: match training["schedule"].as_str().unwrap() {
                "cosine" => Schedule::Cosine,
                "linear" => Schedule::Linear,
                _ => Schedule::Constant,
            },
            warmup_steps: training["warmup_steps"].as_u64().unwrap() as usize,
            eps: number("eps"),
            weight_decay: number("weight_decay"),
            clip: number("clip"),
            ..defaults().optimizer
        };
        assert_eq!(training["betas"], serde_json::json!(settings.betas));
        let trace = training["trace"].as_array().unwrap();
        let train = TrainConfig { max_steps: trace.len(), ..defaults().train };
        let steps = Steps::new(golden.examples.len(), &train, &settings);
        let normalize = if training["normalize"] == "tokens" { Normalize::Tokens } else { Normalize::Sequences };
        let batches = golden.batches(64, true);
        let mut engine = golden.engine(Keep::All);
        for (step, expected) in trace.iter().enumerate() {
            let what = format!("{} step {step}", golden.name);
            let loss = engine.accumulate(&batches, golden.examples.len(), normalize, 0, &|| Ok(())).unwrap();
            let norm = engine.gradient_norm().unwrap();
            assert_near(&format!("{what} loss"), loss.value, &expected["loss"]);
            assert_near(&format!("{what} norm"), norm, &expected["grad_norm"]);
            let lr = steps.lr(step, &settings);
            assert!(
                (lr - expected["lr"].as_f64().unwrap()).abs() < 1e-18,
                "{what}: learning rate {lr}, not {}",
                expected["lr"]
            );
            engine.update(norm, Apply { settings: &settings, lr, seed: 0 }).unwrap();
        }
        for name in golden.checkpoint.names() {
            let (before, after) = (whole(&golden.checkpoint, name), golden.tensor(&format!("after.{name}")));
            let mut got = vec![f32::NAN; after.len()];
            let rows = golden.checkpoint.info(name).unwrap().1[0];
            engine.state.weights.read(&Cpu, name, 0..rows, &mut got).unwrap();
            assert_close(&format!("{} {name}", golden.name), &got, &after, TOLERANCE);
            // The steps are small against the weights, so what they changed is compared too.
            let change = |values: &[f32]| values.iter().zip(&before).map(|(a, b)| a - b).collect::<Vec<_>>();
            assert_close(&format!("{} change of {name}", golden.name), &change(&got), &change(&after), 1e-2);
        }
    }
}

/// Eight prompts, three at a time, in a cache that they have to wait for; padding rows of the vocabulary are never chosen.
#[test]
fn greedy_continuations() {
    for golden in MODELS.map(Golden::load) {
        let engine = golden.engine(Keep::Nothing);
        let rows = golden.facts["generations"].as_array().unwrap();
        let prompts: Vec<Vec<i32>> = rows.iter().map(|row| ids(&row["prompt"])).collect();
        let capacity = Capacity { batch: 3, chunk: 16, pages: 5, host_pages: 2, positions: 64 };
        let mut sampler = sample::Engine::new(&Cpu, &golden.config, capacity).unwrap();
        let used = golden.facts["used_vocabulary"].as_u64().unwrap() as usize;
        let state = &engine.state;
        let settings = Settings {
            narrowing: Narrowing { temperature: 0.0, ..Narrowing::NONE },
            stop: StopRules { ids: &Default::default(), text: None, repetition: false },
            log_probabilities: false,
            vocabulary: used,
        };
        let on = sample::LoadedModel { ops: &Cpu, model: &state.model, weights: &state.weights };
        let answers = sampler.answer(on, &settings, &prompts, 24, &|| Ok(())).unwrap();
        for (row, answer) in rows.iter().zip(&answers) {
            assert_eq!(answer.tokens, ids(&row["tokens"]), "{} after {}", golden.name, row["prompt"]);
            assert_eq!(answer.reason, FinishReason::Length);
        }
    }
}

fn defaults() -> Config {
    Config::parse("defaults", "model.path = \"m\"\ndata.train = [\"d\"]\noutput.dir = \"o\"\n", &[]).unwrap()
}
