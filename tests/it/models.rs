//! Models as users have them: the published shapes, the hub's cache, and folders that are damaged or of another kind.

use crate::command::{limo_engine, limo_engine_with, succeed};
use limo_engine::config::ModelConfig;
use limo_engine::model::Layout;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

const GOLDEN: &str = "tests/fixtures/golden/models";

/// Parameters as transformers counts them, and bytes of keys and values a token in bf16.
#[test]
fn the_published_shapes_have_the_published_sizes() {
    let published = [
        ("0.5b", 494_032_768, 12_288),
        ("1.5b", 1_543_714_304, 28_672),
        ("3b", 3_085_938_688, 36_864),
        ("7b", 7_615_616_512, 57_344),
        ("14b", 14_770_033_664, 196_608),
        ("32b", 32_763_876_352, 262_144),
        ("72b", 72_706_203_648, 327_680),
    ];
    assert_eq!(fs::read_dir("configs/models").unwrap().count(), published.len());
    for (name, parameters, kv_bytes) in published {
        let config = ModelConfig::from_file(Path::new(&format!("configs/models/qwen2.5-{name}.json"))).unwrap();
        let ModelConfig { num_hidden_layers, num_key_value_heads, head_dim, .. } = config;
        assert_eq!(Layout::new(&config).parameter_count(), parameters, "{name}");
        assert_eq!(2 * num_hidden_layers * num_key_value_heads * head_dim * 2, kv_bytes, "{name}");
    }
}

/// A folder with a golden model's weights under a configuration and tokenizer that fit, and a run that trains it for two steps.
struct Model {
    folder: tempfile::TempDir,
}

impl Model {
    fn new() -> Model {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("model")).unwrap();
        // Trained for one step from random weights: with the vocabulary of the tokenizer.
        let rows = "{\"question\": \"1 + 1?\", \"solution\": \"2\"}\n{\"question\": \"2 + 2?\", \"solution\": \"4\"}\n";
        fs::write(at("rows.jsonl"), rows).unwrap();
        fs::write(at("shape.json"), SHAPE).unwrap();
        let model = Model { folder };
        let random = ["model.path=\"\"".to_string(), format!("model.config={}", model.at("shape.json").display())];
        succeed(model.train_with("first", &random));
        fs::remove_dir(model.at("model")).unwrap();
        fs::rename(model.at("first/model"), model.at("model")).unwrap();
        model
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn train_with(&self, out: &str, settings: &[String]) -> (i32, String, String) {
        let mut settings = settings.to_vec();
        settings.push(format!("data.train=[{:?}]", self.at("rows.jsonl")));
        settings.push(format!("output.dir={}", self.at(out).display()));
        settings.push("train.max_steps=1".into());
        settings.push("model.tokenizer=configs/tiny".into());
        fs::write(self.at("run.toml"), format!("model.path = {:?}\n", self.at("model"))).unwrap();
        let config = self.at("run.toml");
        let mut arguments = vec!["train", config.to_str().unwrap(), "--device", "cpu"];
        arguments.extend(settings.iter().flat_map(|setting| ["-s", setting.as_str()]));
        limo_engine(&arguments)
    }

    /// Trains the model and expects an error.
    fn refused(&self, expected: &[&str]) {
        let (code, _, error) = self.train_with("run", &[]);
        assert_eq!(code, 3, "{error}");
        for expected in expected {
            assert!(error.contains(expected), "should mention {expected}: {error}");
        }
        assert!(error.starts_with("error: ") && !error.contains("panicked"), "{error}");
        assert!(!self.at("run").exists(), "nothing was written");
    }

    fn weights(&self) -> PathBuf {
        self.at("model/model.safetensors")
    }

    fn change_config(&self, key: &str, value: Value) {
        let path = self.at("model/config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
    }

    /// Rewrites the header of the weights.
    fn change_header(&self, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
        let bytes = fs::read(self.weights()).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        change(header.as_object_mut().unwrap());
        let text = header.to_string();
        let new = [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &bytes[8 + length..]].concat();
        fs::write(self.weights(), new).unwrap();
    }

    /// Splits the weights' one file off as a shard behind an index with these entries changed.
    fn change_index(&self, tensor: &str, file: &str) {
        let bytes = fs::read(self.weights()).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let shard = "model-00001-of-00001.safetensors";
        let names = header.keys().filter(|name| *name != "__metadata__");
        let mut map: serde_json::Map<String, Value> = names.map(|name| (name.clone(), shard.into())).collect();
        map.insert(tensor.into(), file.into());
        fs::rename(self.weights(), self.at("model").join(shard)).unwrap();
        fs::write(self.at("model/model.safetensors.index.json"), serde_json::json!({ "weight_map": map }).to_string()).unwrap();
    }
}

const SHAPE: &str = r#"{"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 600, "tie_word_embeddings": false}"#;
const NORM: &str = "model.layers.1.input_layernorm.weight";

#[test]
fn a_model_without_weights_is_refused() {
    let model = Model::new();
    fs::remove_file(model.weights()).unwrap();
    model.refused(&["neither model.safetensors nor model.safetensors.index.json is there", "help: "]);
}

#[test]
fn truncated_weights_are_refused() {
    let model = Model::new();
    let file = fs::OpenOptions::new().write(true).open(model.weights()).unwrap();
    file.set_len(file.metadata().unwrap().len() - 100).unwrap();
    model.refused(&["model.safetensors", "the header describes", "help: "]);
    file.set_len(5).unwrap();
    model.refused(&["model.safetensors", "too short", "help: "]);
}

#[test]
fn a_lying_header_is_refused() {
    let model = Model::new();
    model.change_header(|header| header[NORM]["shape"] = serde_json::json!([31]));
    model.refused(&["model.safetensors", "the header is inconsistent", "help: "]);
    let mut bytes = fs::read(model.weights()).unwrap();
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    fs::write(model.weights(), bytes).unwrap();
    model.refused(&["model.safetensors", "claims a header of", "help: "]);
}

#[test]
fn an_index_that_points_outside_its_folder_is_refused() {
    let model = Model::new();
    fs::copy(model.weights(), model.at("outside.safetensors")).unwrap();
    model.change_index(NORM, "../outside.safetensors");
    model.refused(&["model.safetensors.index.json", NORM, "../outside.safetensors", "help: "]);
}

#[test]
fn an_index_that_names_a_missing_shard_is_refused() {
    let model = Model::new();
    model.change_index(NORM, "model-00002-of-00002.safetensors");
    model.refused(&["model-00002-of-00002.safetensors: No such file"]);
}

#[test]
fn weights_of_another_shape_than_the_configuration_are_refused() {
    let model = Model::new();
    model.change_config("intermediate_size", 50.into());
    model.refused(&["model.layers.0.mlp.gate_proj.weight has shape [48, 32]", "implies [50, 32]", "help: "]);
}

#[test]
fn a_missing_tensor_is_refused() {
    let model = Model::new();
    model.change_header(|header| {
        let tensor = header.remove(NORM).unwrap();
        header.insert("model.layers.1.another.weight".into(), tensor);
    });
    model.refused(&[&format!("tensor {NORM} is missing"), "help: "]);
}

#[test]
fn nan_in_the_weights_is_refused() {
    let model = Model::new();
    let mut bytes = fs::read(model.weights()).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(model.weights(), bytes).unwrap();
    model.refused(&["holds NaN at element", "tensor ", "help: "]);
}

#[test]
fn a_tokenizer_larger_than_the_vocabulary_is_refused() {
    let model = Model::new();
    model.change_config("vocab_size", 100.into());
    model.refused(&["configs/tiny/tokenizer.json", "vocabulary of 100", "help: "]);
}

#[test]
fn a_missing_or_broken_configuration_is_refused() {
    let model = Model::new();
    fs::write(model.at("model/config.json"), "{\"model_type\": \"qwen2\",").unwrap();
    model.refused(&["model/config.json", "EOF"]);
    fs::remove_file(model.at("model/config.json")).unwrap();
    model.refused(&["model/config.json", "No such file"]);
}

#[test]
fn a_head_that_config_json_says_is_tied_and_is_not_is_refused() {
    let model = Model::new();
    model.change_config("tie_word_embeddings", true.into());
    model.refused(&["tie_word_embeddings", "lm_head.weight", "help: "]);
}

/// Every option that this engine would compute differently.
#[test]
fn other_architectures_are_refused_by_name() {
    let model = Model::new();
    let original = fs::read(model.at("model/config.json")).unwrap();
    for (key, value) in [
        ("model_type", Value::from("llama")),
        ("model_type", "qwen3".into()),
        ("model_type", "qwen2_moe".into()),
        ("model_type", "qwen2_vl".into()),
        ("hidden_act", "gelu".into()),
        ("use_sliding_window", true.into()),
        ("layer_types", serde_json::json!(["full_attention", "sliding_attention"])),
        ("attention_dropout", 0.1.into()),
        ("rope_scaling", serde_json::json!({"type": "yarn", "factor": 4.0})),
        ("rope_parameters", serde_json::json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6})),
        ("quantization_config", serde_json::json!({"quant_method": "gptq", "bits": 4})),
        ("head_dim", 7.into()),
        ("num_key_value_heads", 3.into()),
    ] {
        model.change_config(key, value.clone());
        let name = if key == "head_dim" { "head dimension 7" } else { key };
        model.refused(&["model/config.json", name]);
        fs::write(model.at("model/config.json"), &original).unwrap();
    }
}

/// The files of a snapshot are links into blobs/, as huggingface_hub lays them out.
#[test]
fn a_model_is_found_in_the_hubs_cache() {
    let model = Model::new();
    let cached = model.at("hub/models--Someone--Small-1");
    let snapshot = cached.join("snapshots/0123abcd");
    for folder in ["blobs", "refs", "snapshots/0123abcd"] {
        fs::create_dir_all(cached.join(folder)).unwrap();
    }
    fs::write(cached.join("refs/main"), "0123abcd").unwrap();
    for (number, entry) in fs::read_dir(model.at("model")).unwrap().enumerate() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), cached.join(format!("blobs/{number}"))).unwrap();
        symlink(format!("../../blobs/{number}"), snapshot.join(entry.file_name())).unwrap();
    }
    let home = model.folder.path().to_str().unwrap();
    let rows = model.at("rows.jsonl");
    let (rows, run, scores) = (rows.to_str().unwrap(), model.at("run"), model.at("scores.jsonl"));
    let (run, scores) = (run.to_str().unwrap(), scores.to_str().unwrap());
    fs::write(model.at("hub.toml"), "model.path = \"Someone/Small-1\"\n").unwrap();
    let config = model.at("hub.toml");
    let (train, out) = (format!("data.train=[{rows:?}]"), format!("output.dir={run}"));
    let train = ["train", config.to_str().unwrap(), "--device", "cpu", "-s", &train, "-s", &out];
    succeed(limo_engine_with(&[("HF_HOME", home)], &train));
    assert!(Path::new(run).join("model/model.safetensors").is_file());
    let score = ["score", "--model", "Someone/Small-1", "--input", rows, "--output", scores, "--device", "cpu"];
    succeed(limo_engine_with(&[("HF_HOME", home)], &score));
    assert_eq!(fs::read_to_string(scores).unwrap().lines().count(), 2);
    let inspect = ["inspect", "model", "Someone/Small-1", "--values"];
    assert!(succeed(limo_engine_with(&[("HF_HOME", home)], &inspect)).contains("every value is finite"));
    let (code, _, error) = limo_engine_with(&[("HF_HOME", home)], &["inspect", "model", "Someone/Other"]);
    assert!(code == 3 && error.contains("not in the Hugging Face cache"), "{code}: {error}");
}

/// Golden models with their weights in shards train as those in one file do.
#[test]
fn sharded_weights_and_older_spellings_are_inspected() {
    for name in ["gqa7_old_sharded", "dim128_sharded", "gqa6_old"] {
        let output = succeed(limo_engine(&["inspect", "model", &format!("{GOLDEN}/{name}"), "--values"]));
        assert!(output.contains("every value is finite") && output.contains("tensors of config.json are there"), "{output}");
    }
}
