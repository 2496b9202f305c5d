//! The command line as a contract: help texts, exit codes, and what mistakes are told.

use crate::command::{limo_engine, limo_engine_with, succeed};
use std::path::Path;

const COMMANDS: &[&[&str]] = &[
    &[],
    &["train"],
    &["plan"],
    &["sample"],
    &["score"],
    &["inspect"],
    &["inspect", "data"],
    &["inspect", "model"],
    &["inspect", "checkpoint"],
    &["bench"],
    &["selftest"],
    &["doctor"],
    &["completions"],
];

#[test]
fn the_command_line_is_frozen() {
    for command in COMMANDS {
        let text = succeed(limo_engine(&[command, &["--help"][..]].concat()));
        let name = if command.is_empty() { "limo-engine".to_string() } else { command.join("-") };
        insta::assert_snapshot!(format!("help_{name}"), text);
    }
}

#[test]
fn every_command_is_in_the_readme() {
    let readme = std::fs::read_to_string("README.md").unwrap();
    for command in COMMANDS.iter().filter(|command| !command.is_empty() && **command != ["inspect"]) {
        let named = format!("limo-engine {}", command.join(" "));
        assert!(readme.contains(&named), "README.md does not mention `{named}`");
    }
}

#[test]
fn completions_are_scripts_that_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = succeed(limo_engine(&["completions", shell]));
        for word in ["train", "inspect", "checkpoint", "doctor", "--resume", "--dry-run"] {
            let word = if shell == "fish" { word.trim_start_matches('-') } else { word };
            assert!(script.contains(word), "{shell}: {word}");
        }
        if shell == "bash" {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), script).unwrap();
            let checked = std::process::Command::new("bash").arg("-n").arg(file.path()).status();
            assert!(checked.is_err() || checked.is_ok_and(|status| status.success()));
        }
    }
}

/// A tiny configuration whose run would end at once.
fn config(folder: &Path, more: &str) -> String {
    let path = folder.join("config.toml");
    let text = format!(
        "[model]\nconfig = \"configs/tiny/config.json\"\ntokenizer = \"configs/tiny\"\n\
         [data]\ntrain = [\"{0}/rows.jsonl\"]\n[train]\nbatch = 2\nmax_steps = 1\n[output]\ndir = \"{0}/run\"\n{more}",
        folder.display()
    );
    std::fs::write(&path, text).unwrap();
    let rows = "{\"question\":\"1+1?\",\"solution\":\"2\"}\n{\"question\":\"2+2?\",\"solution\":\"4\"}\n";
    std::fs::write(folder.join("rows.jsonl"), rows).unwrap();
    path.to_str().unwrap().to_string()
}

/// Runs `train`, on the CPU if nothing else is said, and returns exit code and standard error.
fn train(config: &str, more: &[&str]) -> (i32, String) {
    let device: &[&str] = if more.contains(&"--device") { &[] } else { &["--device", "cpu"] };
    let (code, _, error) = limo_engine(&[&["train", config], device, more].concat());
    (code, error)
}

#[test]
fn mistakes_in_usage_exit_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let cases: &[(&[&str], &[&str])] = &[
        (&["-s", "train.bach=3"], &["-s train.bach=3", "train.batch"]),
        (&["-s", "train.batch=zero"], &["train.batch"]),
        (&["-s", "memory.offload=[\"remainder\"]"], &["memory.offload", "--dtype bf16"]),
        (
            &["-s", "memory.gradient_release=true", "-s", "optimizer.clip=0", "-s", "train.packing=false"],
            &["memory.gradient_release", "step 1", "micro-batches"],
        ),
        (&["--patience", "0"], &["--patience"]),
        (&["--ranks", "0"], &["--ranks"]),
        (&["--resume", "somewhere"], &["--resume somewhere", "no such folder"]),
        (&["--device", "tpu"], &["tpu", "cuda", "emulator"]),
        (&["--device", "cuda"], &["help: "]),
        (&["--device", "emulator", "--dtype", "f32"], &["--dtype f32", "bf16"]),
        (&["--device", "emulator"], &["help: "]),
        (&["-s", "output.dir=/dev/null"], &["/dev/null", "not a folder"]),
        (&["-s", "output.dir=/proc/run"], &["/proc/run", "output.dir"]),
    ];
    for (arguments, expected) in cases {
        let (code, error) = train(&config, arguments);
        assert_eq!(code, 2, "{arguments:?}: {error}");
        for word in *expected {
            assert!(error.contains(word), "{arguments:?} should mention {word}: {error}");
        }
    }
    let (code, error) = train("nowhere.toml", &[]);
    assert!(code == 2 && error.contains("nowhere.toml"), "{code}: {error}");
}

#[test]
fn foreign_files_are_never_touched() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let run = folder.path().join("run");
    std::fs::create_dir(&run).unwrap();
    std::fs::write(run.join("thesis.tex"), "years of work").unwrap();
    for more in [&[][..], &["--overwrite"], &["--resume", "never", "--overwrite"]] {
        let (code, error) = train(&config, more);
        assert!(code == 2 && error.contains("thesis.tex"), "{code}: {error}");
    }
    assert_eq!(std::fs::read_to_string(run.join("thesis.tex")).unwrap(), "years of work");
}

#[test]
fn a_run_folder_is_started_finished_and_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let run = folder.path().join("run");
    let output = succeed(limo_engine(&["train", &config, "--device", "cpu", "--dry-run"]));
    assert!(output.contains("dry run") && !run.exists(), "{output}");
    assert_eq!(train(&config, &[]).0, 0);
    let weights = || std::fs::read(run.join("model/model.safetensors")).unwrap();
    let first = weights();
    // Its own resolved configuration repeats it, to the bit.
    let again = folder.path().join("again");
    let resolved = run.join("config.toml");
    let (code, error) = train(resolved.to_str().unwrap(), &["-s", &format!("output.dir={}", again.display())]);
    assert_eq!(code, 0, "{error}");
    assert!(std::fs::read(again.join("model/model.safetensors")).unwrap() == first);

    std::fs::remove_dir_all(run.join("model")).unwrap();
    assert_eq!(train(&config, &[]).0, 0, "a run without a model is not finished");
    assert!(weights() == first);
    assert_eq!(train(&config, &["--overwrite", "-s", "train.seed=1"]).0, 0);
    assert!(weights() != first);
}

#[test]
fn a_finished_run_of_another_configuration_is_not_this_run() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    assert_eq!(train(&config, &[]).0, 0);
    assert_eq!(train(&config, &["-s", "train.eval_every=3"]).0, 0, "a key that is safe to change");
    let (code, error) = train(&config, &["-s", "train.batch=1"]);
    assert!(code == 2 && error.contains("train.batch was 2, is 1") && error.contains("--overwrite"), "{code}: {error}");
    let (code, error) = train(&config, &["--dtype", "bf16"]);
    assert!(code == 2 && error.contains("--dtype was f32, is bf16"), "{code}: {error}");
    std::fs::remove_file(folder.path().join("rows.jsonl")).unwrap();
    assert_eq!(train(&config, &[]).0, 0, "a finished run needs no data");
}

#[test]
fn a_run_never_replaces_what_it_reads() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    assert_eq!(train(&config, &[]).0, 0);
    let model = folder.path().join("run/model");
    let weights = std::fs::read(model.join("model.safetensors")).unwrap();
    for key in ["model.path", "model.tokenizer"] {
        let (code, error) = train(&config, &["--overwrite", "-s", &format!("{key}={}", model.display())]);
        assert!(code == 2 && error.contains(key) && error.contains("output.dir"), "{code}: {error}");
    }
    // A run that fails before its first step has deleted nothing.
    let (code, _) = train(&config, &["--overwrite", "-s", "data.train=[\"nowhere.jsonl\"]"]);
    assert_eq!(code, 3);
    assert!(std::fs::read(model.join("model.safetensors")).unwrap() == weights);

    // A configuration somebody wrote by hand is not a run's.
    let own = folder.path().join("own");
    std::fs::create_dir(&own).unwrap();
    let by_hand = own.join("config.toml");
    std::fs::copy(&config, &by_hand).unwrap();
    let output_dir = format!("output.dir={}", own.display());
    let (code, error) = train(by_hand.to_str().unwrap(), &["-s", &output_dir, "--overwrite"]);
    assert!(code == 2 && error.contains("config.toml"), "{code}: {error}");
    assert_eq!(std::fs::read(&by_hand).unwrap(), std::fs::read(&config).unwrap());
}

#[test]
fn scores_never_replace_input_or_model() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    assert_eq!(train(&config, &[]).0, 0);
    let [model, input, link, weights] = ["run/model", "rows.jsonl", "link.jsonl", "run/model/model.safetensors"]
        .map(|name| folder.path().join(name).to_str().unwrap().to_string());
    std::os::unix::fs::symlink(&input, &link).unwrap();
    let before = [&input, &weights].map(|path| std::fs::read(path).unwrap());
    let new = format!("{model}/new.jsonl");
    for (output, named) in [(&input, "--input"), (&link, "--input"), (&weights, "--model"), (&new, "--model")] {
        let (code, _, error) = limo_engine(&["score", "--model", &model, "--input", &input, "--output", output]);
        assert!(code == 2 && error.contains(named), "{output}: {code}: {error}");
    }
    assert!([&input, &weights].map(|path| std::fs::read(path).unwrap()) == before);
}

#[test]
fn two_runs_do_not_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let run = folder.path().join("run");
    std::fs::create_dir(&run).unwrap();
    let lock = std::fs::File::create(run.join(".lock")).unwrap();
    lock.lock().unwrap();
    let (code, error) = train(&config, &[]);
    assert!(code == 2 && error.contains("another run"), "{code}: {error}");
    drop(lock);
    assert_eq!(train(&config, &[]).0, 0);
}

#[test]
fn one_of_several_processes_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let torchrun = |world| {
        let master = [("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")];
        [[("RANK", "0"), ("WORLD_SIZE", world)], [("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", world)], master].concat()
    };
    let arguments = ["train", &config, "--device", "cpu"];
    let (code, _, error) = limo_engine_with(&torchrun("4"), &arguments);
    assert!(code == 2 && error.contains("torchrun") && error.contains("MPI"), "{code}: {error}");
    let (code, _, error) = limo_engine_with(&torchrun("1"), &[&arguments[..], &["--ranks", "1"]].concat());
    assert!(code == 2 && error.contains("--ranks"), "{code}: {error}");
    assert_eq!(limo_engine_with(&torchrun("1"), &arguments).0, 0);
}

#[test]
fn bad_data_exits_with_3_and_names_the_line() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let rows = folder.path().join("rows.jsonl");
    for (text, expected) in [
        ("{\"question\":\"1\",\"solution\":\"2\"}\n{\"question\":\n", "rows.jsonl:2"),
        ("{\"question\":\"1\",\"solution\":2}\n", "solution"),
        ("{\"question\":\"1\"}\n", "rows.jsonl:1"),
        ("", "rows.jsonl"),
    ] {
        std::fs::write(&rows, text).unwrap();
        let (code, error) = train(&config, &[]);
        assert!(code == 3 && error.contains(expected), "{text:?}: {code}: {error}");
    }
    std::fs::write(&rows, "{\"question\":\"1\",\"solution\":\"2\"}\n").unwrap();
    let (code, error) = train(&config, &["--dry-run", "-s", "train.micro_tokens=8"]);
    assert!(code == 3 && error.contains("train.micro_tokens") && error.contains("data.max_tokens"), "{code}: {error}");
    std::fs::remove_file(&rows).unwrap();
    let (code, error) = train(&config, &[]);
    assert!(code == 3 && error.contains("rows.jsonl"), "{code}: {error}");
}

#[test]
fn a_diverging_run_exits_with_5_before_it_spoils_the_weights() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "[optimizer]\nlr = 1.0\nweight_decay = 1e30\nclip = 0.0\n");
    let (code, error) = train(&config, &["-s", "train.max_steps=8"]);
    assert!(code == 5 && error.contains("step ") && error.contains("Rows: "), "{code}: {error}");
    assert!(!folder.path().join("run/model").exists());

    let more = ["-s", "train.max_steps=8", "-s", "train.skip_nonfinite=true"];
    let (code, _) = train(&config, &more);
    assert_eq!(code, 0, "the user asked to go on");
    let metrics = std::fs::read_to_string(folder.path().join("run/metrics.jsonl")).unwrap();
    let rows: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 8);
    assert!(rows[0].get("skipped").is_none() && rows[0]["loss"].is_number());
    let last = &rows[7];
    assert!(last["skipped"] == true && (last.get("loss").is_none() || last.get("grad_norm").is_none()), "{last}");
}

#[test]
fn too_little_memory_exits_with_4_before_any_work() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path(), "");
    let mut model: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string("configs/tiny/config.json").unwrap()).unwrap();
    for (key, value) in [("hidden_size", 65_472), ("intermediate_size", 262_144), ("num_hidden_layers", 400)] {
        model[key] = value.into();
    }
    let path = folder.path().join("huge.json");
    std::fs::write(&path, model.to_string()).unwrap();
    let (code, error) = train(&config, &["-s", &format!("model.config={}", path.display())]);
    assert!(code == 4 && error.contains("needs") && error.contains("available"), "{code}: {error}");
    assert!(!folder.path().join("run").exists());
}
