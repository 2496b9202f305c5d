//! Configurations and model files: what is read, and what each mistake is told.

use crate::command::limo_engine;
use limo_engine::config::{Config, Every, ModelConfig, Normalize, Overlong, Recompute, Schedule};
use limo_engine::error::{Error, Kind};
use limo_engine::model::Layout;
use proptest::prelude::*;
use std::path::Path;

const MINIMAL: &str = "[model]\npath = \"m\"\n[data]\ntrain = [\"d.jsonl\"]\n[output]\ndir = \"runs/x\"\n";

fn parse(text: &str, overrides: &[&str]) -> Result<Config, Error> {
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    Config::parse("run.toml", text, &overrides)
}

/// The whole error of a text that must be refused as a usage error.
fn refused(text: &str, overrides: &[&str]) -> String {
    let error = parse(text, overrides).expect_err(text);
    assert_eq!(error.kind, Kind::Usage);
    error.to_string()
}

#[test]
fn defaults_are_those_of_the_reference() {
    let config = parse(MINIMAL, &[]).unwrap();
    assert_eq!((config.data.max_tokens, config.data.overlong, config.data.shuffle), (16384, Overlong::Error, true));
    assert_eq!((config.train.epochs, config.train.batch, config.train.micro_tokens), (1, 16, 16384));
    assert_eq!((config.train.packing, config.train.normalize, config.train.seed), (true, Normalize::Tokens, 42));
    assert_eq!((config.train.eval_every, config.train.save_every, config.train.keep), (Every::Epoch, Every::Epoch, 2));
    let optimizer = &config.optimizer;
    assert_eq!((optimizer.lr, optimizer.schedule, optimizer.betas), (5e-6, Schedule::Cosine, [0.9, 0.999]));
    assert_eq!((optimizer.eps, optimizer.weight_decay, optimizer.clip), (1e-8, 0.0, 1.0));
    assert_eq!((config.memory.recompute, config.memory.mlp_tiles), (Recompute::Auto, 1));
    assert_eq!(config.data.system, None);
}

#[test]
fn a_resolved_configuration_reads_back_as_itself_and_has_every_key() {
    let overrides =
        ["train.eval_every=20", "optimizer.warmup_ratio=0.1", "data.fields.prompt=problem", "data.system=Be \"brief\"."];
    let config = parse(MINIMAL, &overrides).unwrap();
    let text = config.to_toml();
    assert_eq!(parse(&text, &[]).unwrap(), config, "{text}");
    let reference = include_str!("../../docs/config.md");
    let keys = reference.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(key, _)| key);
    let written: toml::Table = toml::from_str(&text).unwrap();
    let mut count = 0;
    for key in keys.filter(|key| key.contains('.') && !key.starts_with("data.fields.")) {
        let (section, name) = key.split_once('.').unwrap();
        assert!(written[section].get(name).is_some(), "{key} is documented and not written");
        count += 1;
    }
    let all: usize = written.values().map(|section| section.as_table().unwrap().len()).sum();
    assert_eq!(count, all, "documented keys and written keys differ in number");
}

#[test]
fn an_unknown_key_is_shown_in_its_line_with_a_suggestion() {
    let text = format!("{MINIMAL}[train]\nepochs = 2\nbacth = 8 # comment\n");
    insta::assert_snapshot!(refused(&text, &[]), @r"
    run.toml:9:1: unknown key `train.bacth`
        9 | bacth = 8 # comment
          | ^^^^^
      help: did you mean `train.batch`?
    ");
}

#[test]
fn a_key_of_another_table_is_pointed_to() {
    assert!(refused(&format!("{MINIMAL}[train]\nlr = 1e-5\n"), &[]).contains("did you mean `optimizer.lr`?"));
    assert!(refused(&format!("{MINIMAL}[optimiser]\nlr = 1e-5\n"), &[]).contains("did you mean `optimizer`?"));
    assert!(refused(&format!("{MINIMAL}[samples]\nmax_token = 9\n"), &[]).contains("did you mean `samples.max_tokens`?"));
    assert!(!refused(&format!("{MINIMAL}[train]\nzzzzzzz = 1\n"), &[]).contains("did you mean"));
}

#[test]
fn every_mistake_is_reported_at_its_place_in_one_go() {
    let text = "[model]\npath = 3\n[data]\nmax_tokens = 0\noverlong = \"cut\"\n[train]\nseed = -1\n";
    insta::assert_snapshot!(refused(text, &[]), @r#"
    run.toml:2:8: `model.path` must be a string, not 3
        2 | path = 3
          |        ^
    run.toml:3:2: `data.train` is required: one or more .jsonl or .json files
        3 | [data]
          |  ^^^^
    run.toml:4:14: `data.max_tokens` must be an integer from 1 to 2147483647, not 0
        4 | max_tokens = 0
          |              ^
    run.toml:5:12: `data.overlong` must be "error" or "drop" or "truncate", not "cut"
        5 | overlong = "cut"
          |            ^^^^^
    run.toml:7:8: `train.seed` must be an integer of at least 0, not -1
        7 | seed = -1
          |        ^^
    run.toml: `output.dir` is required: the run's folder
    "#);
}

#[test]
fn values_out_of_range_and_contradictions_are_refused() {
    for (key, value) in [
        ("train.epochs", "0"),
        ("train.batch", "1.5"),
        ("train.micro_tokens", "3000000000"),
        ("train.packing", "1"),
        ("train.eval_every", "0"),
        ("train.save_every", "\"step\""),
        ("optimizer.lr", "nan"),
        ("optimizer.lr", "-1e-6"),
        ("optimizer.betas", "[0.9]"),
        ("optimizer.betas", "[0.9, 1.0]"),
        ("optimizer.eps", "0"),
        ("optimizer.clip", "inf"),
        ("data.train", "[\"\"]"),
        ("data.train", "[]"),
        ("data.fields", "3"),
        ("samples.n", "4"),
    ] {
        let setting = format!("{key}={value}");
        let error = refused(MINIMAL, &[&setting]);
        assert!(error.starts_with(&format!("-s {setting}: ")) && error.contains(key), "{error}");
    }
    let both = refused(MINIMAL, &["optimizer.warmup_steps=3", "optimizer.warmup_ratio=0.1"]);
    assert!(both.contains("optimizer.warmup_steps and optimizer.warmup_ratio are both set"), "{both}");
}

#[test]
fn memory_keys_that_contradict_one_another_are_refused() {
    let release = "memory.gradient_release=true";
    for (settings, parts) in [
        (&[release][..], &["memory.gradient_release", "optimizer.clip", "memory.offload"][..]),
        (&[release, "optimizer.clip=0", "train.skip_nonfinite=true"], &["memory.gradient_release", "train.skip_nonfinite"]),
        (&[release, "optimizer.clip=0", "memory.offload=[\"gradients\"]"], &["gradient_release", "memory.offload"]),
        (&["memory.recompute=block", "memory.offload=[\"activations\"]"], &["memory.recompute", "residuals"]),
        (&["optimizer.master=stochastic", "memory.offload=[\"remainder\"]"], &["optimizer.master", "memory.offload"]),
        (&["memory.offload=[\"everything\"]"], &["must be a list of", "vocabulary"]),
        (&["memory.mlp_tiles=0"], &["memory.mlp_tiles"]),
    ] {
        let error = refused(MINIMAL, settings);
        assert!(parts.iter().all(|part| error.contains(part)), "{settings:?}: {error}");
    }
    let all = "memory.offload=[\"residuals\", \"activations\", \"gradients\", \"optimizer\", \"remainder\", \"weights\"]";
    assert!(Config::parse("", MINIMAL, &[all.to_string(), "optimizer.gradients=bf16".to_string()]).is_ok());
}

#[test]
fn overrides_are_toml_or_else_strings_and_the_last_one_wins() {
    let settings =
        ["train.epochs=3", "train.epochs=4", "optimizer.lr=1e-3", "output.dir=runs/a b", "data.train=[\"a\", \"b\"]"];
    let config = parse(MINIMAL, &settings).unwrap();
    assert_eq!((config.train.epochs, config.optimizer.lr), (4, 1e-3));
    assert_eq!((config.output.dir.as_path(), config.data.train.len()), (Path::new("runs/a b"), 2));
    let config =
        parse("", &["model.config=c.json", "data.train=d.jsonl", "output.dir=o", "data.fields={prompt=\"p\", id=\"i\"}"])
            .unwrap();
    assert_eq!((config.data.fields.prompt.as_deref(), config.data.fields.id.as_deref()), (Some("p"), Some("i")));

    assert!(
        refused(MINIMAL, &["train.epoch=3"])
            .contains("-s train.epoch=3: unknown key `train.epoch`\n  help: did you mean `train.epochs`?")
    );
    assert!(refused(MINIMAL, &["train.epochs"]).contains("-s train.epochs: there is no `=`"));
    assert!(refused(MINIMAL, &["=3"]).contains("the key has an empty part"));
    assert!(refused(MINIMAL, &["output.dir.x=3"]).contains("`dir` is not a table"));
    assert!(refused(MINIMAL, &["train=3"]).contains("`train` must be a table, not 3"));
    assert!(refused(MINIMAL, &["output.dir=3"]).contains("`output.dir` must be a string, not 3"));
}

#[test]
fn broken_toml_is_shown_where_it_breaks() {
    let error = refused("[model]\npath = \"é\" oops\n", &[]);
    assert!(error.starts_with("run.toml:2:12: "), "{error}");
    for hostile in
        ["\u{0}", "[", "a = ", "[a]\n[a]", "a.a.a = 1\na = 2", "\u{feff}x", "a = \"\"\"", "é = 1", "x = 9999999999999999999"]
    {
        refused(hostile, &[]);
    }
    refused(&format!("a = {}", "[".repeat(100_000)), &[]);
    refused(&format!("[model]\n{} = 1", "k".repeat(1_000_000)), &[]);
}

#[test]
fn a_file_that_cannot_be_read_is_a_usage_error() {
    let error = Config::load(Path::new("no/such.toml"), &[]).unwrap_err();
    assert!(error.kind == Kind::Usage && error.message.contains("no/such.toml"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("latin1.toml");
    std::fs::write(&path, b"# caf\xe9\n").unwrap();
    let error = Config::load(&path, &[]).unwrap_err();
    assert!(error.kind == Kind::Usage && error.message.contains("not UTF-8"), "{error}");
}

proptest! {
    /// Any damage to a configuration or an override is a usage error or a configuration, never a panic.
    #[test]
    fn damaged_configurations_never_panic(at in 0..120usize, length in 0..12usize, text in "[\\[\\]{}=.\"'\n#a-z0-9é\u{0}-\u{7f}-]{0,12}") {
        let mut damaged: Vec<char> = format!("{MINIMAL}[optimizer]\nbetas = [0.9, 0.99] # é\n").chars().collect();
        let start = at.min(damaged.len());
        let end = (start + length).min(damaged.len());
        damaged.splice(start..end, text.chars());
        for result in [parse(&damaged.iter().collect::<String>(), &[]), parse(MINIMAL, &[&text]), parse(MINIMAL, &[&format!("train.{text}")])] {
            match result {
                Ok(config) => prop_assert_eq!(&parse(&config.to_toml(), &[]).unwrap(), &config),
                Err(error) => prop_assert_eq!(error.kind, Kind::Usage),
            }
        }
    }
}

/// Runs the program and returns its exit code and standard error.
fn run(arguments: &[&str]) -> (i32, String) {
    let (code, _, error) = limo_engine(arguments);
    (code, error)
}

#[test]
fn the_exit_code_tells_a_bad_configuration_from_bad_data() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/data/chat");
    std::fs::write(
        at("run.toml"),
        format!("model.path = {model:?}\ndata.train = {:?}\noutput.dir = \"o\"\n", at("rows.jsonl")),
    )
    .unwrap();
    std::fs::write(at("rows.jsonl"), "{\"question\": \"Q\", \"solution\": \"A\"}\n{\"question\": \"Q\"}\n").unwrap();
    let (code, error) = run(&["inspect", "data", &at("run.toml")]);
    assert!(code == 3 && error.contains("rows.jsonl:2: no response"), "{code}: {error}");
    let (code, error) = run(&["inspect", "data", &at("run.toml"), "-s", "data.overlog=drop"]);
    assert!(code == 2 && error.contains("did you mean `data.overlong`?"), "{code}: {error}");
    std::fs::write(at("rows.jsonl"), "{\"question\": \"Q\", \"solution\": \"A\"}\n").unwrap();
    assert_eq!(run(&["inspect", "data", &at("run.toml")]), (0, String::new()));
}

const QWEN: &str = r#"{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768, "hidden_act": "silu",
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "tie_word_embeddings": true, "use_sliding_window": false, "sliding_window": 32768,
    "max_window_layers": 21, "attention_dropout": 0.0, "torch_dtype": "bfloat16"}"#;

/// QWEN with some keys set to other JSON values.
fn model(changes: &[(&str, &str)]) -> Result<ModelConfig, Error> {
    let mut json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(QWEN).unwrap();
    for (key, value) in changes {
        json.insert(key.to_string(), serde_json::from_str(value).unwrap());
    }
    ModelConfig::from_json(&json, Path::new("m/config.json"))
}

#[test]
fn a_model_file_is_read_with_its_older_and_newer_spellings() {
    let old = model(&[]).unwrap();
    assert_eq!((old.hidden_size, old.head_dim, old.num_key_value_heads, old.vocab_size), (896, 64, 2, 151936));
    assert_eq!((old.rms_norm_eps, old.rope_theta, old.tie_word_embeddings), (1e-6, 1e6, true));
    // 0.494 B in the table of published models.
    assert_eq!(Layout::new(&old).parameter_count(), 494_032_768);
    let new = model(&[
        ("rope_theta", "null"),
        ("rope_parameters", r#"{"rope_theta": 1000000.0, "rope_type": "default"}"#),
        ("layer_types", r#"["full_attention", "full_attention"]"#),
        ("head_dim", "64"),
    ]);
    assert_eq!(new.unwrap(), old);
    assert!(!model(&[("tie_word_embeddings", "null")]).unwrap().tie_word_embeddings);
}

#[test]
fn a_model_that_would_be_computed_differently_is_refused_by_key() {
    for (key, value) in [
        ("model_type", "\"llama\""),
        ("hidden_act", "\"gelu\""),
        ("use_sliding_window", "true"),
        ("layer_types", r#"["sliding_attention"]"#),
        ("rope_scaling", r#"{"type": "yarn", "factor": 4.0}"#),
        ("rope_parameters", r#"{"rope_type": "linear"}"#),
        ("rope_theta", "0"),
        ("attention_dropout", "0.1"),
        ("quantization_config", "{}"),
        ("num_key_value_heads", "3"),
        ("num_attention_heads", "0"),
        ("hidden_size", "900"),
        ("hidden_size", "18446744073709551615"),
        ("vocab_size", "-1"),
        ("intermediate_size", "null"),
        ("num_hidden_layers", "1.5"),
        ("rms_norm_eps", "\"1e-6\""),
        ("tie_word_embeddings", "\"yes\""),
    ] {
        let error = model(&[(key, value)]).expect_err(key);
        assert_eq!(error.kind, Kind::Data);
        assert!(error.message.starts_with("m/config.json: ") && error.message.contains(&format!("`{key}`")), "{error}");
    }
    assert!(model(&[("head_dim", "63")]).unwrap_err().message.contains("must be even"));
}

#[test]
fn the_largest_model_that_is_accepted_can_be_counted() {
    let most = "1048576";
    let sizes = [
        ("hidden_size", most),
        ("intermediate_size", most),
        ("num_hidden_layers", "4096"),
        ("num_attention_heads", "8192"),
        ("num_key_value_heads", "8192"),
        ("vocab_size", most),
        ("tie_word_embeddings", "false"),
    ];
    let largest = model(&sizes).unwrap();
    // 7 matrices of d·d, 3 biases and 2 norms a layer; embedding, head and last norm.
    let d = 1 << 20;
    assert_eq!(Layout::new(&largest).parameter_count(), 4096 * (7 * d * d + 5 * d) + 2 * d * d + d);
    let error = model(&[&sizes[..], &[("head_dim", "1048576")]].concat()).unwrap_err();
    assert!(
        error.kind == Kind::Data && error.message.contains("m/config.json: `head_dim` (1048576) must be at most"),
        "{error}"
    );
}

#[test]
fn a_model_file_that_is_no_json_object_is_a_data_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    for text in ["", "[]", "{", "{\"model_type\": \"qwen2\"", &"[".repeat(100_000), "\u{feff}{}"] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(ModelConfig::from_file(&path).unwrap_err().kind, Kind::Data);
    }
}
