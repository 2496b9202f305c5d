//! Any number of ranks gives the same bits: losses, norms, weights, checkpoints that another number goes on from.

use crate::command::{limo_engine, succeed};
use crate::engine::{emulated, train};
use crate::resume::{config, result};
use serde_json::Value;
use std::path::Path;

/// The run of tests/it/resume.rs, with these flags more; what it exports and records.
fn run(folder: &Path, name: &str, ranks: usize, more: &[&str]) -> (Vec<u8>, Vec<Value>) {
    std::fs::create_dir_all(folder.join(name)).unwrap();
    let text = config(&folder.join(name), "");
    let file = folder.join(name).join("config.toml");
    std::fs::write(&file, text).unwrap();
    let ranks = ranks.to_string();
    let flags = ["train", file.to_str().unwrap(), "--device", "cpu", "--ranks", &ranks];
    succeed(limo_engine(&[&flags[..], more].concat()));
    let (weights, mut rows) = result(&folder.join(name).join("run"));
    // Each rank reserves less.
    rows.iter_mut().for_each(|row| {
        row.as_object_mut().unwrap().remove("memory");
    });
    (weights, rows)
}

#[test]
fn any_number_of_ranks_gives_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let modes: [&[&str]; 4] = [
        &[],
        &["--dtype", "bf16"],
        &[
            "--dtype",
            "bf16",
            "-s",
            "optimizer.gradients=bf16",
            "-s",
            "optimizer.state=int8",
            "-s",
            "optimizer.master=stochastic",
        ],
        // Some ranks have no micro-batch: three rows a step, a micro-batch each, on four and eight ranks.
        &["-s", "train.packing=false", "-s", "memory.recompute=block"],
    ];
    for (index, mode) in modes.iter().enumerate() {
        let alone = run(folder.path(), &format!("{index}-1"), 1, mode);
        assert!(
            alone.1.len() > 12 && alone.1.iter().filter_map(|row| row.get("loss")).all(|loss| loss.as_f64().unwrap() > 0.0)
        );
        for ranks in [2, 3, 4, 8] {
            let together = run(folder.path(), &format!("{index}-{ranks}"), ranks, mode);
            assert!(together.1 == alone.1, "{ranks} ranks, {mode:?}: other records");
            assert!(together.0 == alone.0, "{ranks} ranks, {mode:?}: other weights");
        }
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let mode = ["--dtype", "bf16", "-s", "optimizer.state=int8"];
    let whole = run(folder.path(), "whole", 1, &mode);
    // Three runs of one folder, which end where a first part of the epochs' steps is done.
    let (before, name) = (Path::new(folder.path()), "parts");
    std::fs::create_dir_all(before.join(name)).unwrap();
    let file = before.join(name).join("config.toml");
    std::fs::write(&file, config(&before.join(name), "")).unwrap();
    let parts = before.join(name).join("run");
    for (ranks, keep) in [("3", Some(4)), ("1", Some(8)), ("4", None)] {
        let flags = [
            "train",
            file.to_str().unwrap(),
            "--device",
            "cpu",
            "--ranks",
            ranks,
            "-s",
            "train.save_every=4",
            "-s",
            "train.keep=9",
        ];
        succeed(limo_engine(&[&flags[..], &mode].concat()));
        // As if it had been killed after that checkpoint.
        if let Some(step) = keep {
            std::fs::remove_dir_all(parts.join("model")).unwrap();
            for later in (step + 1)..=12 {
                let _ = std::fs::remove_dir_all(parts.join(format!("checkpoints/step-{later:08}")));
            }
        }
    }
    let (weights, _) = result(&parts);
    assert!(weights == whole.0);
    let newest = parts.join("checkpoints/step-00000012");
    assert!((1..=4).all(|rank| newest.join(format!("optimizer-{rank:05}-of-00004.safetensors")).is_file()));
    let valid = succeed(limo_engine(&["inspect", "checkpoint", newest.to_str().unwrap()]));
    assert!(valid.contains("valid"), "{valid}");
}

#[test]
fn ranks_of_kernels_give_the_same_bits() {
    if !emulated() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |ranks: &str| {
        let mode = ["--device", "emulator", "--ranks", ranks, "-s", "train.max_steps=3", "-s", "train.packing=false"];
        let offload = ["-s", "memory.offload=[\"weights\", \"gradients\", \"residuals\"]", "-s", "optimizer.gradients=bf16"];
        train(folder.path(), ranks, &[&mode[..], &offload].concat())
    };
    let alone = run("1");
    for ranks in ["2", "3"] {
        let together = run(ranks);
        assert!(together.losses == alone.losses && together.norms == alone.norms, "{ranks} ranks");
        assert!(together.weights == alone.weights, "{ranks} ranks: other weights");
    }
}
