//! `limo-engine inspect model`: what it prints of a whole folder, and what it finds in a broken one.

use crate::command::{limo_engine, succeed};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const GOLDEN: &str = "tests/fixtures/golden/models";

/// A copy of the tied model, with `from` become `to` in its config.json.
fn copy(from: &str, to: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join(GOLDEN).join("tied");
    let text = fs::read_to_string(golden.join("config.json")).unwrap();
    assert!(text.contains(from));
    fs::write(dir.path().join("config.json"), text.replace(from, to)).unwrap();
    let weights = dir.path().join("model.safetensors");
    fs::copy(golden.join("model.safetensors"), &weights).unwrap();
    (dir, weights)
}

fn inspect(dir: &Path) -> (i32, String, String) {
    limo_engine(&["inspect", "model", dir.to_str().unwrap(), "--values"])
}

#[test]
fn a_whole_model_is_described() {
    let output = succeed(limo_engine(&["inspect", "model", &format!("{GOLDEN}/untied"), "--values"]));
    for line in [
        "Qwen2: 3 layers, hidden 40, feed-forward 56",
        "4 query and 2 key/value heads of 10, RoPE base 1000000",
        "vocabulary     80, head a matrix of its own",
        "parameters     41480",
        "stored as      F32, 165.9 KiB on disk",
        "1 × lm_head.weight",
        "3 × model.layers.*.self_attn.k_proj.bias            F32  [20]",
        "all 39 tensors of config.json are there",
        "every value is finite",
    ] {
        assert!(output.contains(line), "{line:?} is not in\n{output}");
    }
}

#[test]
fn missing_misshapen_and_unexpected_tensors_are_named() {
    let with_layers = |n: usize| {
        let (dir, _) = copy("\"num_hidden_layers\": 2", &format!("\"num_hidden_layers\": {n}"));
        let text = fs::read_to_string(dir.path().join("config.json")).unwrap();
        // The file lists a type for each layer too.
        let types = vec!["\"full_attention\""; n].join(", ");
        let (before, after) = text.split_once("\"layer_types\": [").unwrap();
        let after = after.split_once(']').unwrap().1;
        fs::write(dir.path().join("config.json"), format!("{before}\"layer_types\": [{types}]{after}")).unwrap();
        inspect(dir.path())
    };
    let (code, output, error) = with_layers(3);
    assert_eq!(code, 3);
    assert!(output.contains("missing     model.layers.2.mlp.up_proj.weight [64, 48]"), "{output}");
    assert!(error.contains("12 of 38 tensors are missing or misshapen"), "{error}");

    let output = succeed(with_layers(1));
    assert!(output.contains("unexpected  model.layers.1.mlp.up_proj.weight: ignored"), "{output}");

    let (dir, _) = copy("\"intermediate_size\": 64", "\"intermediate_size\": 60");
    let (code, output, _) = inspect(dir.path());
    assert_eq!(code, 3);
    assert!(output.contains("misshapen   model.layers.0.mlp.up_proj.weight [64, 48], config.json: [60, 48]"), "{output}");
}

#[test]
fn a_nan_is_found() {
    let (dir, weights) = copy("\"qwen2\"", "\"qwen2\"");
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&weights, bytes).unwrap();
    let (code, _, error) = inspect(dir.path());
    assert!(code == 3 && error.contains("holds 1 values that are NaN or infinite"), "{error}");
}

#[test]
fn a_tensor_that_is_ignored_is_not_checked_and_cannot_steer_the_terminal() {
    let (dir, weights) = copy("\"qwen2\"", "\"qwen2\"");
    let bytes = fs::read(&weights).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header: serde_json::Value = serde_json::from_slice(header).unwrap();
    let offsets = [data.len(), data.len() + 4];
    header["extra\u{1b}[2J"] = serde_json::json!({ "dtype": "I8", "shape": [4], "data_offsets": offsets });
    let header = header.to_string();
    fs::write(&weights, [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data, &[1; 4]].concat()).unwrap();
    let output = succeed(inspect(dir.path()));
    assert!(output.contains("unexpected  extra\u{fffd}[2J: ignored") && output.contains("every value is finite"), "{output}");
    assert!(output.contains("1 × extra\u{fffd}[2J") && !output.contains('\u{1b}'), "{output:?}");
}
