//! Whole training steps through the CUDA kernels, in the emulator, against the CPU backend with the same storage; and what their bits
//! must not depend on.

use crate::command::{limo_engine, succeed};
use limo_engine::config::{Config, ModelConfig, Normalize};
use limo_engine::data::{Example, MicroBatch, pack};
use limo_engine::device::emulator::Emulator;
use limo_engine::model::Keep;
use limo_engine::ops::Ops;
use limo_engine::ops::cpu::{Cpu, CpuBf16};
use limo_engine::ops::cuda::Cuda;
use limo_engine::testing::compare::distance;
use limo_engine::testing::random::Random;
use limo_engine::train::{Apply, Engine, Loss, Sizes};
use safetensors::SafeTensors;
use serde_json::Value;
use std::ops::Range;
use std::path::Path;

/// Whether this binary has the emulator; prints a skip where no C++ compiler was there to build it.
pub fn emulated() -> bool {
    Emulator::plain(0).inspect_err(|error| println!("skipped 1: {error}")).is_ok()
}

/// Two layers of heads of 64, two query heads to a key/value head.
pub const MODEL: &str = r#"{
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "torch_dtype": "float32",
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "vocab_size": 512, "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "initializer_range": 0.1,
    "tie_word_embeddings": true, "eos_token_id": 450, "pad_token_id": 448}"#;

/// What a run left behind.
pub struct Run {
    pub losses: Vec<f32>,
    pub norms: Vec<f32>,
    /// Every weight, in the order of their names.
    pub weights: Vec<f32>,
    pub output: String,
}

fn first_rows(from: &str, count: usize, to: &Path) {
    let text = std::fs::read_to_string(from).unwrap();
    std::fs::write(to, text.lines().take(count).collect::<Vec<_>>().join("\n")).unwrap();
}

/// Ten steps of two rows of at most 64 tokens each through the command line, with these flags more.
pub fn train(folder: &Path, name: &str, more: &[&str]) -> Run {
    let config = folder.join("config.toml");
    std::fs::write(folder.join("model.json"), MODEL).unwrap();
    first_rows("configs/tiny/train.jsonl", 20, &folder.join("train.jsonl"));
    let text = format!(
        "model = {{ config = \"{0}/model.json\", tokenizer = \"configs/tiny\" }}\n\
         data = {{ train = [\"{0}/train.jsonl\"], max_tokens = 64, overlong = \"truncate\" }}\n\
         train = {{ batch = 2, micro_tokens = 128, max_steps = 10 }}\n\
         optimizer = {{ lr = 3e-3, warmup_steps = 2, weight_decay = 1.0 }}\n\
         samples = {{ file = \"configs/tiny/heldout.jsonl\", n = 2, max_tokens = 4 }}\n\
         output = {{ dir = \"{0}/run\", dtype = \"float32\" }}\n",
        folder.display()
    );
    std::fs::write(&config, text).unwrap();
    let dir = folder.join(name);
    let output_dir = format!("output.dir={}", dir.display());
    let output = succeed(limo_engine(&[&["train", config.to_str().unwrap(), "-s", &output_dir], more].concat()));

    let metrics = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let steps: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let series = |key: &str| steps.iter().map(|step| step[key].as_f64().unwrap() as f32).collect();
    let bytes = std::fs::read(dir.join("model/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors = file.tensors();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    let floats = |data: &[u8]| data.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect::<Vec<f32>>();
    let weights = tensors.iter().flat_map(|(_, tensor)| floats(tensor.data())).collect();
    Run { losses: series("loss"), norms: series("grad_norm"), weights, output }
}

/// ‖values − reference‖ / ‖reference‖
pub fn error(values: &[f32], reference: &[f32]) -> f64 {
    distance(values, &reference.iter().map(|&v| v.into()).collect::<Vec<f64>>()).relative_l2
}

/// The budget: the kernels may differ from the CPU backend of the same storage, whose sums have another order, twice as much as that
/// differs from f32, and by half a bf16 rounding: ten losses are too few to know their own error.
pub fn require_budget(what: &str, kernels: &[f32], cpu: &[f32], exact: &[f32]) {
    let (ours, storage) = (error(kernels, cpu), error(cpu, exact));
    println!("{what}: emulator to bf16 {ours:.2e}, bf16 to f32 {storage:.2e}");
    let budget = 2.0 * storage + 1.0 / 1024.0;
    assert!(storage > 0.0 && ours <= budget, "{what}: {ours:.2e} is beyond {budget:.2e}");
}

#[test]
fn training_in_the_emulator_follows_the_cpu_in_bf16() {
    if !emulated() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let exact = train(folder.path(), "f32", &["--device", "cpu"]);
    let cpu = train(folder.path(), "bf16", &["--device", "cpu", "--dtype", "bf16"]);
    let kernels = train(folder.path(), "emulator", &["--device", "emulator"]);
    assert_eq!(kernels.losses.len(), 10);
    assert!(kernels.losses[9] < 0.9 * kernels.losses[0], "nothing is learnt: {:?}", kernels.losses);
    assert!(kernels.output.contains("emulator") && kernels.output.contains("sample at step 10"), "{}", kernels.output);
    let start = |run: &Run| run.losses[0];
    assert!((start(&kernels) / start(&exact) - 1.0).abs() < 1e-2, "{} {}", start(&kernels), start(&exact));

    type Pick = fn(&Run) -> &[f32];
    let pick: [(&str, Pick); 3] =
        [("losses", |run| &run.losses), ("gradient norms", |run| &run.norms), ("weights", |run| &run.weights)];
    for (what, values) in pick {
        require_budget(what, values(&kernels), values(&cpu), values(&exact));
    }

    // The model that the emulator trained, scored by both.
    let model = folder.path().join("emulator/model");
    let input = folder.path().join("rows.jsonl");
    first_rows("configs/tiny/heldout.jsonl", 3, &input);
    let score = |device: &[&str]| {
        let output = folder.path().join("scores.jsonl");
        let [model, input, output] = [&model, &input, &output].map(|path| path.to_str().unwrap());
        let files = ["score", "--logprobs", "--model", model, "--input", input, "--output", output];
        succeed(limo_engine(&[&files, device].concat()));
        let text = std::fs::read_to_string(output).unwrap();
        let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let values = |row: Value| row["logprobs"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        rows.flat_map(|row| -> Vec<f32> { values(row) }).collect::<Vec<f32>>()
    };
    let scores = [&["--device", "emulator"][..], &["--device", "cpu", "--dtype", "bf16"], &["--device", "cpu"]].map(score);
    assert!(scores[0].len() > 100);
    require_budget("log-probabilities", &scores[0], &scores[1], &scores[2]);
}

/// Three sequences in two micro-batches, one of them a single token.
const LENGTHS: [usize; 3] = [65, 1, 40];

fn batches() -> Vec<MicroBatch> {
    let example = |(row, length): (usize, &usize)| Example {
        id: row.to_string(),
        tokens: (0..*length).map(|t| ((t * t + 7 * row + 3 * t) % 512) as i32).collect(),
        supervised: (0..*length).map(|t| 3 * t >= *length).collect(),
    };
    let examples: Vec<Example> = LENGTHS.iter().enumerate().map(example).collect();
    pack(&examples.iter().collect::<Vec<_>>(), 80, true).unwrap()
}

/// With random weights; the first step's loss and gradients are formed.
fn engine(ops: impl Ops + 'static, keep: Keep) -> (Engine, Loss) {
    let Value::Object(json) = serde_json::from_str(MODEL).unwrap() else { panic!() };
    let config = ModelConfig::from_json(&json, Path::new("config.json")).unwrap();
    let mut engine = Engine::solo(Box::new(ops), &config, &Sizes::new(80, 65, keep)).unwrap();
    // Biases and norms that are all alike would hide what reads the wrong one, or none.
    let mut random = Random::new(7);
    let mut draw = |name: &str, shape: &[usize], _: Range<usize>, out: &mut [f32]| {
        let (mean, deviation) =
            if shape.len() > 1 { (0.0, 0.1) } else { (if name.ends_with("bias") { 0.0 } else { 1.0 }, 0.3) };
        out.copy_from_slice(&random.normals(out.len(), mean, deviation));
        Ok(())
    };
    engine.state.weights.load(engine.ops.as_ref(), &mut draw).unwrap();
    let loss = engine.accumulate(&batches(), LENGTHS.len(), Normalize::Tokens, 0, &|| Ok(())).unwrap();
    (engine, loss)
}

/// Sharper than ten steps: the gradient of each tensor, whatever its share of the norm, against f32.
#[test]
fn gradients_of_every_tensor_err_as_storage_in_bf16_does() {
    if !emulated() {
        return;
    }
    fn gradients(ops: impl Ops + 'static) -> Vec<(String, Vec<f32>)> {
        let (engine, _) = engine(ops, Keep::All);
        let mut all = Vec::new();
        let visited = engine.state.gradients.visit(engine.ops.as_ref(), |name, values| {
            all.push((name.to_string(), values.to_vec()));
            Ok(())
        });
        visited.unwrap();
        all
    }
    let (exact, cpu) = (gradients(Cpu), gradients(CpuBf16));
    let kernels = gradients(Cuda::emulated(Emulator::plain(3).unwrap()));
    let names = |gradients: &[(String, Vec<f32>)]| gradients.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert!(kernels.len() > 20 && names(&kernels) == names(&cpu) && names(&cpu) == names(&exact));
    for (((name, kernels), (_, cpu)), (_, exact)) in kernels.iter().zip(&cpu).zip(&exact) {
        let (ours, storage) = (error(kernels, exact), error(cpu, exact));
        println!("{name}: emulator {ours:.2e}, CPU in bf16 {storage:.2e}");
        assert!(ours <= 2.0 * storage + 1.0 / 2048.0, "{name}: {ours:.2e} is beyond twice {storage:.2e}");
    }
}

/// What one order of threads computes in two updates: losses, norms, and every weight.
fn two_steps(seed: u64, keep: Keep) -> (Vec<f64>, Vec<f32>) {
    let (mut engine, first) = engine(Cuda::emulated(Emulator::plain(seed).unwrap()), keep);
    let settings = Config::parse("", "model.path='m'\ndata.train=['d']\noutput.dir='o'", &[]).unwrap().optimizer;
    let update = |engine: &mut Engine| {
        let norm = engine.gradient_norm().unwrap();
        engine.update(norm, Apply { settings: &settings, lr: 1e-3, seed: 0 }).unwrap();
        norm
    };
    let first_norm = update(&mut engine);
    let regions = engine.ops.allocator().regions();
    let second = engine.accumulate(&batches(), LENGTHS.len(), Normalize::Tokens, 0, &|| Ok(())).unwrap();
    let second_norm = update(&mut engine);
    assert_eq!(engine.ops.allocator().regions(), regions, "memory was reserved after the first step");
    let mut weights = Vec::new();
    for (name, shape) in engine.state.model.layout.tensors() {
        let mut values = vec![0.0; shape.iter().product()];
        engine.state.weights.read(engine.ops.as_ref(), name, 0..shape[0], &mut values).unwrap();
        weights.extend(values);
    }
    (vec![first.value, first_norm, second.value, second_norm], weights)
}

#[test]
fn recomputation_and_the_order_of_threads_change_no_bits() {
    if !emulated() {
        return;
    }
    let first = two_steps(0, Keep::All);
    assert!(first.0.iter().all(|value| value.is_finite()) && first.1.iter().all(|weight| weight.is_finite()));
    assert!(first.0[2] < first.0[0], "an update raises the loss: {:?}", first.0);
    assert!(two_steps(0, Keep::All) == first, "a second run");
    assert!(two_steps(5, Keep::All) == first, "another order of threads");
    assert!(two_steps(1, Keep::Attention) == first, "recompute = mlp");
    assert!(two_steps(2, Keep::Stream) == first, "recompute = block");
}
