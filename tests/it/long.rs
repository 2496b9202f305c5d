//! Long sequences on the CPU: a row of 16,384 tokens trains, and memory grows with its length, not with the square of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Heads of 8 elements: of a quadratic part in memory, T·T scores of one head alone would be 1 GiB at 16k.
const MODEL: &str = r#"{"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 600, "tie_word_embeddings": true}"#;

/// One training step on one row of `tokens` tokens: the peak of the process's resident set, and what its plan said, in MiB.
fn peak(folder: &Path, tokens: usize) -> (f64, f64) {
    let at = |name: &str| folder.join(format!("{tokens}-{name}"));
    fs::write(at("model.json"), MODEL).unwrap();
    // More digits, a token each, than there is room for.
    let row = format!("{{\"question\": \"Digits?\", \"solution\": \"{}\"}}\n", "3".repeat(tokens));
    fs::write(at("rows.jsonl"), row).unwrap();
    let text = format!(
        "model = {{ config = {:?}, tokenizer = \"configs/tiny\" }}\ndata = {{ train = [{:?}], max_tokens = {tokens}, overlong = \"truncate\" }}\n\
         train.micro_tokens = {tokens}\nmemory.recompute = \"none\"\noutput.dir = {:?}\n",
        at("model.json"),
        at("rows.jsonl"),
        at("run")
    );
    fs::write(at("run.toml"), text).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_limo-engine"))
        .args(["train", at("run.toml").to_str().unwrap(), "--device", "cpu"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0.0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
        most = kib.map_or(most, |kib| kib / 1024.0).max(most);
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let output = String::from_utf8(output.stdout).unwrap();
    let metrics: serde_json::Value =
        serde_json::from_str(fs::read_to_string(at("run/metrics.jsonl")).unwrap().lines().next().unwrap()).unwrap();
    assert_eq!(metrics["tokens"], tokens, "{output}");
    (most, metrics["memory"].as_f64().unwrap() / (1024.0 * 1024.0))
}

#[test]
fn memory_grows_with_the_length_of_a_row_and_not_its_square() {
    if !Path::new("/proc/self/status").exists() {
        println!("skipped: 1 test needs /proc");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [(half, half_planned), (whole, planned)] = [8192, 16384].map(|tokens| peak(folder.path(), tokens));
    println!("peak {half:.0} MiB at 8,192 tokens (planned {half_planned:.0}), {whole:.0} MiB at 16,384 (planned {planned:.0})");
    assert!(half > 0.0 && whole <= 2.2 * half, "{whole} MiB after {half} MiB");
    // The process itself, tokenizer and data included, takes some tens of MiB beside the plan.
    for (measured, planned) in [(half, half_planned), (whole, planned)] {
        assert!(measured >= 0.8 * planned && measured <= planned + 80.0, "{measured} MiB measured, {planned} planned");
    }
}
