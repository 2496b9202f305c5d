//! The files in configs/: what they say, and that they train.

use crate::command::{limo_engine, succeed};
use limo_engine::config::{Config, Normalize, Overlong, Schedule};
use limo_engine::train::Steps;
use std::path::Path;

const LIMO: [&str; 7] = ["limo-v1", "limo-v3", "limo-0.5b", "limo-1.5b", "limo-3b", "limo-7b", "limo-14b"];
const SYSTEM: &str = "Please reason step by step, and put your final answer within \\boxed{}.";

fn load(name: &str) -> Config {
    Config::load(Path::new(&format!("configs/{name}.toml")), &[]).unwrap()
}

#[test]
fn every_configuration_is_valid_and_a_recipe_we_know() {
    let mut found = 0;
    for entry in std::fs::read_dir("configs").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            Config::load(&path, &[]).unwrap();
            found += 1;
        }
    }
    assert_eq!(found, 2 + LIMO.len());
}

#[test]
fn limos_recipe_is_the_published_one() {
    for name in LIMO.into_iter().chain(["limo-32b-one-h200"]) {
        let Config { data, train, optimizer, .. } = load(name);
        assert_eq!(data.system.as_deref(), Some(SYSTEM), "{name}");
        assert_eq!((data.max_tokens, data.overlong, data.shuffle), (16384, Overlong::Error, true));
        assert_eq!((train.epochs, train.seed, train.normalize), (15, 42, Normalize::Sequences));
        assert_eq!((optimizer.lr, optimizer.schedule, optimizer.warmup_ratio), (5e-6, Schedule::Cosine, 0.0));
        assert_eq!((optimizer.betas, optimizer.eps), ([0.9, 0.999], 1e-8));
        assert_eq!((optimizer.weight_decay, optimizer.clip), (0.0, 1.0));
        let (rows, batch, steps) = if name == "limo-v1" { (817, 32, 390) } else { (800, 64, 195) };
        assert_eq!((train.batch, Steps::new(rows, &train, &optimizer).total), (batch, steps), "{name}");
    }
}

#[test]
fn every_line_that_sets_a_key_says_why() {
    for name in LIMO {
        let text = std::fs::read_to_string(format!("configs/{name}.toml")).unwrap();
        for line in text.lines().filter(|line| line.contains(" = ") && !line.starts_with('#')) {
            assert!(line.split_once("  # ").is_some_and(|(_, why)| !why.trim().is_empty()), "{name}: {line}");
        }
    }
}

/// Every recipe with its model and data replaced by small ones.
#[test]
fn every_recipe_trains() {
    let folder = tempfile::tempdir().unwrap();
    let row = |i: usize| {
        format!(
            "{{\"question\": \"What is {i} + 1?\", \"solution\": \"Okay, \\\\boxed{{{}}}\", \"answer\": \"{}\"}}\n",
            i + 1,
            i + 1
        )
    };
    let rows = folder.path().join("rows.jsonl");
    std::fs::write(&rows, (0..70).map(row).collect::<String>()).unwrap();
    let model = r#"{"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 600}"#;
    std::fs::write(folder.path().join("config.json"), model).unwrap();
    for name in LIMO {
        let run = folder.path().join(name);
        let settings = [
            "model.path=".to_string(),
            format!("model.config={}/config.json", folder.path().display()),
            "model.tokenizer=configs/tiny".to_string(),
            format!("data.train=[{rows:?}]"),
            format!("output.dir={}", run.display()),
            "train.max_steps=2".to_string(),
        ];
        let path = format!("configs/{name}.toml");
        let mut arguments = vec!["train", &path, "--device", "cpu"];
        arguments.extend(settings.iter().flat_map(|setting| ["-s", setting.as_str()]));
        succeed(limo_engine(&arguments));
        let limo: serde_json::Value = serde_json::from_slice(&std::fs::read(run.join("model/limo.json")).unwrap()).unwrap();
        assert_eq!(limo["system"], SYSTEM);
    }
}
