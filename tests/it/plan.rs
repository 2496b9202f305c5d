//! The plan: what is reserved is what was planned, what is measured is what was reserved, and what does not fit is refused with what would.

use crate::command::{limo_engine, succeed};
use std::path::Path;

/// The bytes that a line of output says: "LABEL … (N bytes".
fn bytes(output: &str, label: &str) -> f64 {
    let line = output.lines().find(|line| line.trim_start().starts_with(label));
    let line = line.unwrap_or_else(|| panic!("no {label:?} in {output}"));
    let number = line[line.find('(').unwrap() + 1..].split_whitespace().next().unwrap();
    number.parse().unwrap_or_else(|_| panic!("{number:?} in {line}"))
}

const GIB: f64 = 1073741824.0;

/// 107 million parameters, so that what a process needs beside the plan is little.
fn config(folder: &Path) -> String {
    let model = r#"{"model_type": "qwen2", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "num_attention_heads": 16,
        "num_key_value_heads": 4, "vocab_size": 8192, "tie_word_embeddings": false}"#;
    std::fs::write(folder.join("model.json"), model).unwrap();
    let row = |i: usize| format!("{{\"question\": \"{i}?\", \"solution\": \"{}\"}}\n", "So it is. ".repeat(10 + i));
    std::fs::write(folder.join("rows.jsonl"), (0..8).map(row).collect::<String>()).unwrap();
    let file = folder.join("config.toml");
    let text = format!(
        "model = {{ config = \"{0}/model.json\", tokenizer = \"configs/tiny\" }}\ndata = {{ train = [\"{0}/rows.jsonl\"] }}\n\
         train = {{ batch = 8, micro_tokens = 256, max_steps = 1 }}\noutput = {{ dir = \"{0}/run\" }}\n",
        folder.display()
    );
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_string()
}

/// Memory as the system counts it, not as the ledger does: the most that the process had, less what it had before anything was reserved.
#[test]
fn what_is_measured_is_what_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    let offload = "memory.offload=[\"residuals\", \"activations\", \"gradients\", \"optimizer\", \"weights\"]";
    let modes: [(usize, &[&str]); 10] = [
        (1, &[]),
        (2, &[]),
        (3, &[]),
        (4, &[]),
        (8, &[]),
        (1, &["optimizer.state=int8"]),
        (1, &["optimizer.gradients=bf16", "memory.recompute=block"]),
        (1, &["memory.mlp_tiles=4", "memory.recompute=mlp"]),
        (1, &[offload]),
        (2, &["memory.gradient_release=true", "optimizer.clip=0", "train.batch=1"]),
    ];
    let mut planned = Vec::new();
    for (index, (ranks, settings)) in modes.into_iter().enumerate() {
        let settings: Vec<&str> = settings.iter().flat_map(|setting| ["-s", setting]).collect();
        let count = ranks.to_string();
        let place = [&[config.as_str(), "--device", "cpu", "--ranks", &count][..], &settings].concat();
        // Two of them save a checkpoint and export too; writing them for all would take minutes.
        let run: &[&str] = if index == 0 || index == 3 { &["--overwrite", "--resume", "never"] } else { &["--measure", "1"] };
        let output = succeed(limo_engine(&[&["train"][..], &place, run].concat()));
        let plan = succeed(limo_engine(&[&["plan"][..], &place, &["--host-memory", "64GiB"]].concat()));
        let reserved = bytes(&output, "memory:");
        let total = bytes(&plan, "device  total") + bytes(&plan, "host    total");
        assert!((total / reserved - 1.0).abs() < 1e-3, "{place:?}: {total} bytes planned, {reserved} reserved");
        let measured = (bytes(&output, "peak:") - bytes(&output, "baseline:")) / ranks as f64;
        let ratio = measured / reserved;
        println!("{ranks} ranks {settings:?}: {reserved} bytes planned a rank, {measured} measured: {ratio:.4}");
        assert!((ratio - 1.0).abs() <= 0.03, "{place:?}: {measured} bytes measured, {reserved} planned");
        planned.push(reserved);
    }
    // What is shared out falls with the number of ranks.
    assert!(planned[..5].windows(2).all(|pair| pair[1] < pair[0]) && planned[4] < 0.6 * planned[0], "{planned:?}");
}

struct Row {
    /// In the first column of the table.
    what: &'static str,
    arguments: &'static [&'static str],
    fits: bool,
}

const V3: &str = "configs/limo-v3.toml";
const NODE: [&str; 2] = ["--host-memory", "1TiB"];
const ROWS: [Row; 6] = [
    Row {
        what: "7B, 1 × H200: bf16 moments and gradients",
        arguments: &[
            V3,
            "-s",
            "model.config=configs/models/qwen2.5-7b.json",
            "-s",
            "optimizer.state=bf16",
            "-s",
            "optimizer.gradients=bf16",
            "-s",
            "memory.recompute=none",
            "-s",
            "memory.mlp_tiles=4",
            "-s",
            "memory.offload=[\"residuals\", \"vocabulary\"]",
        ],
        fits: true,
    },
    Row {
        what: "14B, 1 × H200: bf16 moments and gradients, stochastic weights",
        arguments: &[
            V3,
            "-s",
            "model.config=configs/models/qwen2.5-14b.json",
            "-s",
            "optimizer.state=bf16",
            "-s",
            "optimizer.gradients=bf16",
            "-s",
            "optimizer.master=stochastic",
            "-s",
            "memory.recompute=mlp",
            "-s",
            "memory.offload=[\"residuals\", \"gradients\"]",
        ],
        fits: true,
    },
    Row { what: "32B, 1 × H200: configs/limo-32b-one-h200.toml", arguments: &["configs/limo-32b-one-h200.toml"], fits: true },
    Row {
        what: "32B, 8 × H200: f32 moments and gradients, exact masters",
        arguments: &[V3, "-s", "model.config=configs/models/qwen2.5-32b.json", "--ranks", "8", NODE[0], NODE[1]],
        fits: true,
    },
    Row {
        what: "72B, 8 × H200: f32 moments and gradients, exact masters",
        arguments: &[V3, "-s", "model.config=configs/models/qwen2.5-72b.json", "--ranks", "8", NODE[0], NODE[1]],
        fits: false,
    },
    Row {
        what: "72B, 4 × 8 × H200: f32 moments and gradients, exact masters",
        arguments: &[V3, "-s", "model.config=configs/models/qwen2.5-72b.json", "--ranks", "32", NODE[0], NODE[1]],
        fits: true,
    },
];

/// The table of docs/memory.md. `LIMO_UPDATE_DOCS=1` writes it there.
#[test]
fn the_tables_of_docs_memory_are_what_plan_says() {
    let mut table =
        String::from("| run | keys | device, a rank | host, a rank | checkpoint | tokens/s |\n|---|---|---|---|---|---|\n");
    for Row { what, arguments, fits } in ROWS {
        let (code, output, error) = limo_engine(&[&["plan"], arguments].concat());
        assert_eq!(code, if fits { 0 } else { 4 }, "{output}{error}");
        if !fits {
            let first = |text: &str| text.lines().next().unwrap().trim_start_matches("error: ").to_string();
            let help = error.lines().find_map(|line| line.trim().strip_prefix("help: ")).unwrap();
            table += &format!("| {what} | refused: {} | | | | |\n| | what would fit: {help} | | | | |\n", first(&error));
            continue;
        }
        let between = |from: &str, to: &str| {
            let begin = output.find(from).unwrap_or_else(|| panic!("{from:?} in {output}")) + from.len();
            output[begin..][..output[begin..].find(to).unwrap()].trim().to_string()
        };
        table += &format!(
            "| {what} | {} | {} | {} | {} | {} |\n",
            between("reserves, with ", ":\n").replace("memory.", ""),
            between("device  total", "("),
            between("host    total", "("),
            between("disk: ", " a checkpoint"),
            between("(not measured): ", " tokens/s"),
        );
    }
    const MARKS: [&str; 2] = ["<!-- tests/it/plan.rs writes this table -->\n", "<!-- end -->"];
    let path = Path::new("docs/memory.md");
    let page = std::fs::read_to_string(path).unwrap();
    let begin = page.find(MARKS[0]).expect("the table's mark") + MARKS[0].len();
    let end = begin + page[begin..].find(MARKS[1]).expect("the table's end");
    if std::env::var_os("LIMO_UPDATE_DOCS").is_some() {
        std::fs::write(path, format!("{}{table}{}", &page[..begin], &page[end..])).unwrap();
    } else {
        assert_eq!(&page[begin..end], table, "run this test with LIMO_UPDATE_DOCS=1");
    }
}

/// LIMO's batch and clipping on one GPU.
#[test]
fn thirty_two_billion_parameters_fit_one_h200() {
    let output = succeed(limo_engine(&["plan", "configs/limo-32b-one-h200.toml"]));
    let (device, host) = (bytes(&output, "device  total"), bytes(&output, "host    total"));
    assert!(device <= 136.0 * GIB && host <= 112.0 * GIB, "{device} and {host} bytes");
    let text = std::fs::read_to_string("configs/limo-32b-one-h200.toml").unwrap();
    assert!(
        text.lines().any(|line| line.starts_with("batch = 64 ")) && text.lines().any(|line| line.starts_with("clip = 1.0"))
    );
    for name in ["gradients.layers.*", "offloaded.stream.*", "optimizer.m.layers.*", "contributions.*", "classifier.logits"] {
        assert!(output.contains(name), "{name}");
    }
    // An exact master beside sums of gradients does not.
    let (code, _, error) = limo_engine(&["plan", "configs/limo-32b-one-h200.toml", "-s", "optimizer.master=exact"]);
    assert!(code == 4 && error.contains("of device memory") && error.contains("optimizer.master"), "{code}: {error}");
}

#[test]
fn mistakes_of_a_plan_are_told() {
    let plan = |more: &[&str]| limo_engine(&[&["plan", "configs/limo-32b-one-h200.toml"][..], more].concat());
    for (more, code, parts) in [
        (&["--device-memory", "139 XB"][..], 2, &["--device-memory", "XB"][..]),
        (&["--device-memory=-1GiB"], 2, &["--device-memory"]),
        (&["--ranks", "0"], 2, &["--ranks"]),
        (&["--ranks", "100000"], 2, &["--ranks"]),
        (&["--dtype", "f32"], 2, &["--dtype f32", "bf16"]),
        (&["--device-memory", "1KiB"], 4, &["device memory"]),
        (&["--host-memory", "1GiB"], 4, &["host memory"]),
        (&["-s", "model.config=nowhere.json"], 3, &["nowhere.json"]),
        (
            &[
                "-s",
                "model.config=configs/models/qwen2.5-32b.json",
                "-s",
                "train.micro_tokens=2147483647",
                "-s",
                "data.max_tokens=2147483647",
            ],
            4,
            &["memory"],
        ),
    ] {
        let (found, output, error) = plan(more);
        assert!(found == code && parts.iter().all(|part| error.contains(part)), "{more:?}: {found}: {output}{error}");
    }
}
