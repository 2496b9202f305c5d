//! From rows to tokens: formats, templates against transformers, masks, and hostile files.

use limo_engine::config::{Config, DataConfig, FieldNames, Overlong};
use limo_engine::data::{self, Chat, Dataset, Encoded, Message, Role};
use limo_engine::error::{Error, Kind};
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data/chat")
}

fn chat() -> Chat {
    Chat::load(&fixture(), None, 512).unwrap()
}

/// A chat with the fixture's tokenizer and another template.
fn chat_with(template: &str) -> Result<Chat, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("template.jinja");
    std::fs::write(&path, template).unwrap();
    Chat::load(&fixture(), Some(&path), 512)
}

fn options(settings: &[&str]) -> DataConfig {
    let mut overrides = vec!["model.path=m".to_string(), "data.train=d".to_string(), "output.dir=o".to_string()];
    overrides.extend(settings.iter().map(|setting| format!("data.{setting}")));
    Config::parse("run.toml", "", &overrides).unwrap().data
}

/// Loads one file with these contents.
fn load(contents: impl AsRef<[u8]>, settings: &[&str]) -> Result<Dataset, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, contents).unwrap();
    data::load(&[path], &options(settings), &chat())
}

/// The error of a file, without the folder in front of its name; it must be a data error.
fn refused(contents: impl AsRef<[u8]>, settings: &[&str]) -> String {
    let error = load(contents, settings).expect_err("it must be refused");
    assert_eq!(error.kind, Kind::Data);
    error.to_string().split_once("rows.jsonl").map(|(_, rest)| rest.to_string()).unwrap_or(error.to_string())
}

fn conversation(turns: &[(Role, &str)]) -> Vec<Message> {
    turns.iter().map(|(role, content)| Message::new(*role, *content)).collect()
}

/// The supervised runs of a sequence, as text.
fn supervised_text(chat: &Chat, tokens: &[i32], supervised: &[bool]) -> Vec<String> {
    let mut start = 0;
    let mut parts = Vec::new();
    for part in supervised.chunk_by(|a, b| a == b) {
        if part[0] {
            parts.push(chat.decode_raw(&tokens[start..start + part.len()]));
        }
        start += part.len();
    }
    parts
}

/// Compares with the ids that transformers made from the same chats, template and tokenizer; returns how many were compared.
fn compare_with_golden(chat: &Chat, key: &str) -> usize {
    let golden: serde_json::Value = serde_json::from_str(include_str!("../fixtures/golden/template.json")).unwrap();
    let cases = golden[key].as_array().unwrap();
    for case in cases {
        let role = |name: &str| match name {
            "system" => Role::System,
            "user" => Role::User,
            _ => Role::Assistant,
        };
        let messages: Vec<Message> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|turn| Message::new(role(turn["role"].as_str().unwrap()), turn["content"].as_str().unwrap()))
            .collect();
        let expected: Vec<i32> = serde_json::from_value(case["ids"].clone()).unwrap();
        if case["add_generation_prompt"] == true {
            assert_eq!(chat.encode_prompt(&messages).unwrap(), expected, "{}", case["name"]);
            continue;
        }
        let Encoded { tokens, supervised } = chat.encode_conversation(&messages).unwrap();
        assert_eq!(
            (tokens.len(), chat.decode_raw(&tokens)),
            (supervised.len(), chat.decode_raw(&expected)),
            "{}",
            case["name"]
        );
        // Where an answer begins with a newline, cutting the text at the border of the mask is what sets us apart.
        if case["name"] != "white_space" {
            assert_eq!(tokens, expected, "{}", case["name"]);
        }
    }
    cases.len()
}

#[test]
fn token_ids_equal_those_of_transformers() {
    assert_eq!(compare_with_golden(&chat(), "fixture"), 142);
}

#[test]
fn qwens_own_template_gives_the_ids_of_transformers() {
    let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/qwen2.5_chat_template.jinja");
    if !template.exists() {
        eprintln!("skipped 1 test: {} is not there", template.display());
        return;
    }
    let chat = Chat::load(&fixture(), Some(&template), 512).unwrap();
    assert_eq!(compare_with_golden(&chat, "qwen2.5"), 142);
}

#[test]
fn every_assistant_turn_is_supervised_with_its_end_and_nothing_else() {
    let chat = chat();
    let turns = [
        (Role::System, "Be brief."),
        (Role::User, "Hi"),
        (Role::Assistant, "Hello!"),
        (Role::User, "<|im_start|>assistant\n2 + 2?"),
        (Role::Assistant, "\n 4 \n"),
    ];
    let messages = conversation(&turns);
    let Encoded { tokens, supervised } = chat.encode_conversation(&messages).unwrap();
    assert_eq!(supervised_text(&chat, &tokens, &supervised), ["Hello!<|im_end|>\n", "\n 4 \n<|im_end|>\n"]);
    // What is trained after a prompt is what the model sees after it.
    for turn in [2, 4] {
        let prompt = chat.encode_prompt(&messages[..turn]).unwrap();
        assert_eq!(tokens[..prompt.len()], prompt);
        assert!(!supervised[prompt.len() - 1] && supervised[prompt.len()]);
    }
}

#[test]
fn answers_stop_at_configured_ends_and_at_the_templates_own() {
    let chat = chat();
    let stop: Vec<String> = chat.stop_ids().iter().map(|&id| chat.decode_raw(&[id])).collect();
    assert_eq!(stop, ["<|endoftext|>", "<|im_end|>"]);
    assert_eq!(
        chat.decode(&chat.encode_prompt(&conversation(&[(Role::User, "Hi")])).unwrap()),
        "system\nAnswer with care.\nuser\nHi\nassistant\n"
    );
    let ended = "{% for m in messages %}{{ m.content }}<|im_start|>{% endfor %}";
    let stop: Vec<String> = chat_with(ended).unwrap().stop_ids().iter().map(|&id| chat.decode_raw(&[id])).collect();
    assert_eq!(stop, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
}

#[test]
fn a_question_is_found_even_where_the_template_has_its_words() {
    let chat = Chat::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/tiny")), None, 512).unwrap();
    for question in ["step", "user", "Reason step by step.", "\u{e000}"] {
        let Encoded { tokens, supervised } = chat.encode_question(&conversation(&[(Role::User, question)])).unwrap();
        assert_eq!(supervised_text(&chat, &tokens, &supervised), [question]);
        let before: Vec<i32> = tokens.iter().zip(&supervised).take_while(|(_, target)| !**target).map(|(id, _)| *id).collect();
        assert!(chat.decode_raw(&before).ends_with("<|im_start|>user\n"), "{question}");
    }
    let turn = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}";
    let opening = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let dropping = chat_with(&(turn.replace("CONTENT", "m.role if m.role == 'user' else m.content") + opening)).unwrap();
    let error = dropping.encode_question(&conversation(&[(Role::User, "user")])).unwrap_err();
    assert!(error.message.contains("message 0: the chat template alters or drops its text"), "{error}");
}

#[test]
fn a_template_that_does_not_keep_the_answer_is_refused() {
    let turn = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}";
    let opening = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let with = |content: &str| turn.replace("CONTENT", content) + opening;
    let messages = conversation(&[(Role::User, "q"), (Role::Assistant, " <think>x</think> y ")]);
    assert!(chat_with(&with("m.content")).unwrap().encode_conversation(&messages).is_ok());
    for (content, reason) in [
        ("m.content.strip()", "alters or drops the assistant's text"),
        ("m.content.split('</think>')[-1]", "alters or drops the assistant's text"),
        ("('' if m.role == 'assistant' else m.content)", "alters or drops the assistant's text"),
        ("(m.content if loop.length == 1 else '')", "as a continuation of its prompt"),
    ] {
        let refused = chat_with(&with(content)).and_then(|chat| chat.encode_conversation(&messages)).expect_err(content);
        assert!(refused.kind == Kind::Data && refused.message.contains(reason), "{refused}");
    }
    let changing = with("m.content ~ (loop.length if loop.length > 2 else '')");
    let longer = conversation(&[(Role::User, "q"), (Role::Assistant, "a"), (Role::User, "q"), (Role::Assistant, "b")]);
    let error = chat_with(&changing).unwrap().encode_conversation(&longer).unwrap_err();
    assert!(error.message.contains("changes this turn when others follow it"), "{error}");
    let unopened = chat_with(&turn.replace("CONTENT", "m.content")).map(|_| ()).unwrap_err();
    assert!(unopened.message.contains("ignores add_generation_prompt"), "{unopened}");
    let endless = chat_with("{% for m in messages %}{{ m.content }}{% endfor %}").map(|_| ()).unwrap_err();
    assert!(endless.message.contains("would never stop"), "{endless}");
}

#[test]
fn white_space_around_blocks_is_dropped_as_transformers_does() {
    let template = "{% for m in messages %}\n    {% if m.content %}\n<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n    {% endif %}\n\
                    {% endfor %}\n{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}";
    let chat = chat_with(template).unwrap();
    let prompt = chat.encode_prompt(&conversation(&[(Role::User, "q")])).unwrap();
    assert_eq!(chat.decode_raw(&prompt), "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n");
}

#[test]
fn generation_blocks_are_rendered_as_if_they_were_not_there() {
    let source = std::fs::read_to_string(fixture().join("chat_template.jinja")).unwrap();
    let marked = source.replace("{{- '<|im_start|>' ~ turn.role", "{%- generation -%}{{- '<|im_start|>' ~ turn.role").replacen(
        "{%- endfor %}",
        "{%- endgeneration +%}{%- endfor %}",
        1,
    );
    assert_ne!(marked, source);
    let messages = conversation(&[(Role::User, "q"), (Role::Assistant, "a")]);
    let encoded = chat_with(&marked).unwrap().encode_conversation(&messages).unwrap();
    assert_eq!(encoded, chat().encode_conversation(&messages).unwrap());
}

#[test]
fn hostile_templates_are_errors() {
    for (template, reason) in [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "ran for more than"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 'x' * 50000000 }}", "wrote more than"),
        ("{{ 'x' * 10000000000 }}", "chat template"),
        ("{{ raise_exception('no such role') }}", "no such role"),
        ("{{ strftime_now('%Y') }}", "strftime_now"),
        ("{% include '/etc/passwd' %}", "chat template"),
        ("{{ messages | nosuchfilter }}", "chat template"),
        ("{% if %}", "chat template line 1"),
        ("{{ messages[5].content.x.y }}", "chat template"),
        ("", "does not begin with the assistant's text"),
    ] {
        let error = chat_with(template).map(|_| ()).expect_err(template);
        assert!(error.kind == Kind::Data, "{error}");
        assert!(error.message.contains(reason), "{template}: {error}");
    }
    let deep = format!("{}{}", "{% if true %}".repeat(20_000), "{% endif %}".repeat(20_000));
    assert!(chat_with(&deep).is_err());
}

#[test]
fn templates_are_found_where_models_keep_them() {
    let source = std::fs::read_to_string(fixture().join("chat_template.jinja")).unwrap();
    let other = source.replace("Answer with care.", "Other.");
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::copy(fixture().join("tokenizer.json"), at("tokenizer.json")).unwrap();
    let first = |template: Option<&Path>| -> Result<String, Error> {
        let chat = Chat::load(folder.path(), template, 512)?;
        let prompt = chat.encode_prompt(&conversation(&[(Role::User, "Hi")])).unwrap();
        Ok(chat.decode(&prompt).lines().nth(1).unwrap().to_string())
    };
    assert!(first(None).unwrap_err().to_string().contains("model.chat_template"));
    let named =
        serde_json::json!({"chat_template": [{"name": "tool_use", "template": ""}, {"name": "default", "template": other}]});
    std::fs::write(at("tokenizer_config.json"), named.to_string()).unwrap();
    assert_eq!(first(None).unwrap(), "Other.");
    std::fs::write(at("tokenizer_config.json"), serde_json::json!({"chat_template": source}).to_string()).unwrap();
    assert_eq!(first(None).unwrap(), "Answer with care.");
    std::fs::write(at("chat_template.jinja"), &other).unwrap();
    assert_eq!(first(None).unwrap(), "Other.");
    assert_eq!(first(Some(&fixture().join("chat_template.jinja"))).unwrap(), "Answer with care.");
}

#[test]
fn a_tokenizer_that_does_not_fit_is_refused() {
    let too_small = Chat::load(&fixture(), None, 402).map(|_| ()).unwrap_err();
    assert!(too_small.message.contains("token id 402 does not fit the model's vocabulary of 402"), "{too_small}");
    assert!(Chat::load(&fixture(), None, 403).is_ok());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    for text in ["", "{}", "[1]", r#"{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": [["a", "b"]]}}"#] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(Chat::load(folder.path(), None, 512).map(|_| ()).unwrap_err().kind, Kind::Data);
    }
    // A length limit inside tokenizer.json must not cut rows.
    let mut json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture().join("tokenizer.json")).unwrap()).unwrap();
    json["truncation"] = serde_json::json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
    std::fs::write(&path, json.to_string()).unwrap();
    let template = fixture().join("chat_template.jinja");
    let cut = Chat::load(folder.path(), Some(&template), 512).unwrap();
    let messages = conversation(&[(Role::User, "a longer question than three tokens")]);
    assert_eq!(cut.encode_prompt(&messages).unwrap(), chat().encode_prompt(&messages).unwrap());
}

/// Renders an example back to text.
fn shown(dataset: &Dataset, row: usize) -> String {
    chat().decode_raw(&dataset.examples[row].tokens)
}

const SHOWN: &str = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n";

#[test]
fn every_format_gives_the_same_conversation() {
    for row in [
        r#"{"question": "Q", "solution": "A", "answer": "7", "system": "S"}"#,
        r#"{"problem": "Q", "solution": "A", "system": "S"}"#,
        r#"{"prompt": "Q", "completion": "A", "question": "other", "output": "other", "system": "S"}"#,
        r#"{"prompt": "Q", "response": "A", "completion": "other", "messages": null, "system": "S"}"#,
        r#"{"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]}"#,
        r#"{"instruction": "Q", "input": "", "output": "A", "system": "S"}"#,
        r#"{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}], "system": "other"}"#,
        r#"{"messages": [{"role": "user", "content": "Q"}], "response": "A", "system": "S"}"#,
        r#"{"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S", "prompt": "other"}"#,
    ] {
        assert_eq!(shown(&load(row, &[]).unwrap(), 0), SHOWN, "{row}");
    }
    let joined = load(r#"{"instruction": "I", "input": "J", "output": "A"}"#, &[]).unwrap();
    assert!(shown(&joined, 0).contains("user\nI\nJ<|im_end|>"));
    let mapped = load(
        r#"{"q": "Q", "a": "A", "prompt": "other", "s": "S", "k": 12}"#,
        &["fields.prompt=q", "fields.response=a", "fields.system=s", "fields.id=k"],
    )
    .unwrap();
    assert_eq!((shown(&mapped, 0).as_str(), mapped.examples[0].id.as_str()), (SHOWN, "12"));
}

#[test]
fn a_rows_own_system_message_wins_then_the_configurations_then_the_templates() {
    let rows = "{\"question\": \"Q\", \"solution\": \"A\", \"system\": \"own\"}\n{\"question\": \"Q\", \"solution\": \"A\", \"id\": \"b\"}\n";
    let system =
        |dataset: &Dataset, row| shown(dataset, row).split("<|im_end|>").next().unwrap().replace("<|im_start|>system\n", "");
    let configured = load(rows, &["system=configured"]).unwrap();
    assert_eq!((system(&configured, 0).as_str(), system(&configured, 1).as_str()), ("own", "configured"));
    let unset = load(rows, &[]).unwrap();
    assert_eq!((system(&unset, 0).as_str(), system(&unset, 1).as_str()), ("own", "Answer with care."));
    assert_eq!((unset.examples[0].id.as_str(), unset.examples[1].id.as_str()), ("0", "b"));
}

#[test]
fn line_ends_marks_blank_lines_and_arrays_are_read() {
    let row = r#"{"question": "Q", "solution": "A"}"#;
    for text in [
        format!("{row}\n{row}"),
        format!("\u{feff}{row}\r\n\r\n  \n{row}\r\n"),
        format!("[{row},\n\n {row}]"),
        format!("\u{feff}\n[\n  {row}, {row}\n]\n"),
    ] {
        let dataset = load(&text, &[]).unwrap();
        assert_eq!((dataset.rows, dataset.examples.len()), (2, 2), "{text}");
    }
}

#[test]
fn what_is_wrong_with_a_row_is_told_with_its_line_and_field() {
    let good = r#"{"question": "Q", "solution": "A"}"#;
    for (row, expected) in [
        ("{\"question\": \"Q\",", ":3: broken JSON at column"),
        ("[1]", ":3: a row must be a JSON object, not a list"),
        (
            "{\"question\": 3, \"solution\": \"A\"}",
            ":3: field `question`: must be a string or a list of messages, not a number",
        ),
        ("{\"question\": \"Q\", \"solution\": {}}", ":3: field `solution`: must be"),
        ("{\"question\": \"Q\"}", ":3: no response"),
        ("{\"solution\": \"A\"}", ":3: no prompt"),
        ("{\"question\": \"Q\", \"solution\": \"\"}", ":3: the response is empty"),
        ("{\"question\": \"Q\", \"solution\": \"A\", \"system\": 1}", ":3: field `system`: must be a string"),
        ("{\"question\": \"Q\", \"solution\": \"A\", \"id\": []}", ":3: field `id`"),
        ("{\"messages\": []}", ":3: field `messages`: the list is empty"),
        ("{\"messages\": [{\"role\": \"user\"}]}", ":3: field `messages[0]`: field `content` is missing"),
        ("{\"messages\": [{\"role\": \"tool\", \"content\": \"x\"}]}", ":3: field `messages[0]`: role \"tool\""),
        ("{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\"}]}", ":3: the conversation must begin with a user turn"),
        ("{\"messages\": [{\"role\": \"assistant\", \"content\": \"x\", \"tool_calls\": [1]}]}", "`tool_calls`"),
        ("{\"question\": \"\\ud800\", \"solution\": \"A\"}", ":3: broken JSON"),
    ] {
        let error = refused(format!("{good}\n\n{row}\n{good}\n"), &[]);
        assert!(error.starts_with(expected) || error.contains(expected) && expected.starts_with('`'), "{row}: {error}");
    }
    assert!(refused(format!("[{good},\n\n{{\"question\": \n 7}}]"), &[]).starts_with(":3: field `question`"));
    assert!(refused(format!("[{good},\n{{]"), &[]).starts_with(":2: broken JSON"));
    assert!(refused(good, &["fields.prompt=problem"]).contains(":1: field `problem` (data.fields.prompt) is missing"));
    assert!(refused("", &[]).contains("the file is empty") && refused("\n \n", &[]).contains("the file is empty"));
    assert!(refused("[]", &[]).contains("no rows"));
    assert_eq!(data::load(&["no/such.jsonl".into()], &options(&[]), &chat()).unwrap_err().kind, Kind::Data);
}

/// What people have that is not a row to train on is told for what it is.
#[test]
fn rows_of_other_trainings_are_refused_by_name() {
    for (row, expected) in [
        (r#"{"text": "Once upon a time"}"#, "`text` is raw text"),
        (r#"{"prompt": "Q", "chosen": "A", "rejected": "B"}"#, "`chosen` and `rejected` are preferences"),
        (
            r#"{"conversations": [{"from": "human", "value": "Q"}, {"from": "function_call", "value": "{}"}]}"#,
            "conversations with tools",
        ),
        (
            r#"{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}"#,
            "of type image_url: only text",
        ),
        (
            r#"{"instruction": "Q", "output": "A", "history": [["only one"]]}"#,
            "field `history[0]`: must be a list of two strings",
        ),
        ("{\n \"data\": [\n{}]\n}", "one JSON object, not rows: make it the list in its field `data`"),
        ("\x1f\u{8b}", "broken JSON"),
    ] {
        let error = refused(row, &[]);
        assert!(error.contains(expected), "{row}: {error}");
    }
    let chosen = load(r#"{"prompt": "Q", "chosen": "A", "rejected": "B"}"#, &["fields.response=chosen"]).unwrap();
    assert_eq!(chosen.examples.len(), 1);
    for (magic, packer) in [(&b"\x1f\x8b\x08"[..], "gzip"), (b"\x28\xb5\x2f\xfd..", "zstd"), (b"PK\x03\x04..", "zip")] {
        assert!(refused(magic, &[]).contains(&format!("is packed ({packer})")));
    }
    for (path, expected) in [("/dev/zero", "is a device"), ("tests", "is a folder"), ("GAIR/LIMO", "nothing is downloaded")] {
        let error = data::load(&[path.into()], &options(&[]), &chat()).unwrap_err();
        assert!(error.kind == Kind::Data && error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn earlier_turns_and_contents_in_parts_are_read() {
    let plain = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c\nd"},
        {"role": "assistant", "content": "e"}]}"#.replace('\n', " ");
    let expected = load(&plain, &[]).unwrap().examples;
    for row in [
        r#"{"instruction": "c", "input": "d", "output": "e", "history": [["a", "b"]]}"#,
        r#"{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b"}, {"role": "user", "content": [{"type": "text", "text": "c"}, {"type": "text", "text": "\nd"}]}, {"role": "assistant", "content": "e"}]}"#,
        r#"{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c\nd"}], "completion": [{"role": "assistant", "content": "e"}]}"#,
        r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c\nd"}, {"from": "gpt", "value": "e"}], "tools": ""}"#,
    ] {
        assert_eq!(load(row, &[]).unwrap().examples, expected, "{row}");
    }
}

fn rows_fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/data").join(name)
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_rows_are_those_of_json_lines() {
    let chat = chat();
    let load = |name: &str| data::load(&[rows_fixture(name)], &options(&[]), &chat).unwrap();
    let expected = load("rows.jsonl");
    assert_eq!(expected.examples.len(), 4);
    for name in ["rows.snappy.parquet", "rows.zstd.parquet"] {
        assert_eq!(load(name), expected, "{name}");
    }
}

#[cfg(feature = "parquet")]
#[test]
fn damaged_parquet_files_are_errors() {
    let bytes = std::fs::read(rows_fixture("rows.snappy.parquet")).unwrap();
    for cut in [4, 12, bytes.len() / 2, bytes.len() - 1] {
        assert!(refused(&bytes[..cut], &[]).contains("broken parquet"), "cut to {cut}");
    }
    // Where it still reads, it reads as rows.
    for at in (4..bytes.len()).step_by(3) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        if let Err(error) = load(damaged, &[]) {
            assert_eq!(error.kind, Kind::Data, "{at}");
        }
    }
}

#[cfg(not(feature = "parquet"))]
#[test]
fn parquet_without_its_feature_says_how_to_get_it() {
    let error = data::load(&[rows_fixture("rows.snappy.parquet")], &options(&[]), &chat()).unwrap_err();
    assert!(error.kind == Kind::Data && error.to_string().contains("--features parquet"), "{error}");
}

#[test]
fn hostile_files_are_errors() {
    let good = r#"{"question": "Q", "solution": "A"}"#;
    let mut latin1 = format!("{good}\n").into_bytes();
    latin1.extend(b"{\"question\": \"caf\xe9\", \"solution\": \"A\"}");
    assert!(refused(&latin1, &[]).starts_with(":2: not UTF-8 at byte 18 of the line"));
    latin1.insert(0, b'[');
    assert!(refused(&latin1, &[]).starts_with(":2: not UTF-8 at byte 18 of the line"));
    refused("[".repeat(1 << 20), &[]);
    refused("{\"a\":".repeat(1 << 20), &[]);
    refused(vec![0u8; 1 << 16], &[]);
    refused(vec![0xffu8; 1 << 16], &[]);
    let long = format!("{{\"question\": \"Q\", \"solution\": \"{}\"}}", "a".repeat(10 << 20));
    let error = refused(&long, &[]);
    assert!(error.contains(":1 (id 0): ") && error.contains("data.max_tokens"), "{error}");
}

#[test]
fn overlong_rows_are_refused_dropped_or_cut_and_counted() {
    let rows = "{\"question\": \"Q\", \"solution\": \"A\"}\n{\"id\": \"long\", \"question\": \"Q\", \"solution\": \"0 1 2 3 4 5 6 7 8 9\"}\n\
                {\"question\": \"0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9\", \"solution\": \"A\"}\n";
    let lengths: Vec<usize> = load(rows, &[]).unwrap().examples.iter().map(|example| example.tokens.len()).collect();
    let limit = format!("max_tokens={}", lengths[0] + 4);
    let error = refused(rows, &[&limit]);
    assert!(error.contains(&format!("(id long): {} tokens", lengths[1])) && error.contains("(id 2)"), "{error}");
    assert!(error.contains(&format!("half have at most {} tokens", lengths[1].min(lengths[2]))), "{error}");

    let dropped = load(rows, &[&limit, "overlong=drop"]).unwrap();
    assert_eq!((dropped.rows, dropped.examples.len(), dropped.rejected.len()), (3, 1, 2));
    assert_eq!((dropped.rejected[0].id.as_str(), dropped.rejected[1].id.as_str()), ("long", "2"));
    assert!(dropped.rejected[0].source.ends_with("rows.jsonl:2") && dropped.rejected[0].reason.contains("data.max_tokens"));

    let cut = load(rows, &[&limit, "overlong=truncate"]).unwrap();
    assert_eq!((cut.rows, cut.examples.len(), cut.rejected.len(), cut.truncated.len()), (3, 2, 1, 1));
    assert_eq!((cut.truncated[0].id.as_str(), cut.truncated[0].tokens), ("long", lengths[1]));
    assert_eq!(cut.examples[1].tokens.len(), lengths[0] + 4);
    assert!(cut.rejected[0].reason.contains("its prompt alone"), "{}", cut.rejected[0].reason);

    let nothing = load(rows, &["max_tokens=5", "overlong=drop"]).unwrap_err();
    assert!(nothing.kind == Kind::Data && nothing.message.contains("3 of 3 rejected"), "{nothing}");
    assert_eq!(options(&[]).overlong, Overlong::Error);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any damage to a file is an error or a data set, never a panic.
    #[test]
    fn damaged_files_never_panic(at in 0..200usize, length in 0..20usize, bytes in prop::collection::vec(any::<u8>(), 0..12)) {
        let mut file = br#"{"question": "Q \u00e9", "solution": "A", "id": 1}
[{"messages": [{"role": "user", "content": "Q"}, {"from": "gpt", "value": "A"}], "system": null}]"#.to_vec();
        let start = at.min(file.len());
        let end = (start + length).min(file.len());
        file.splice(start..end, bytes);
        if let Err(error) = load(&file, &[]) {
            prop_assert_eq!(error.kind, Kind::Data);
        }
    }
}

#[test]
fn prompts_are_read_without_their_responses() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts.jsonl");
    std::fs::write(&path, "{\"question\": \"Q\", \"solution\": \"A\", \"answer\": 7}\n{\"id\": 5, \"messages\": [{\"role\": \"user\", \"content\": \"R\"}]}\n").unwrap();
    let prompts = data::read_prompts(&path, &FieldNames::default(), Some("S")).unwrap();
    assert_eq!(prompts[0].messages, conversation(&[(Role::System, "S"), (Role::User, "Q")]));
    assert_eq!((&prompts[0].id, &prompts[0].answer), (&0.into(), &Some(7.into())));
    assert_eq!((&prompts[1].id, &prompts[1].answer), (&5.into(), &None));
    std::fs::write(
        &path,
        "{\"messages\": [{\"role\": \"user\", \"content\": \"R\"}, {\"role\": \"assistant\", \"content\": \"T\"}]}",
    )
    .unwrap();
    let error = data::read_prompts(&path, &FieldNames::default(), None).unwrap_err();
    assert!(error.message.ends_with("prompts.jsonl:1: a prompt must end with a user turn"), "{error}");
}

#[test]
fn the_benchmark_with_solutions_loads_whole() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/benchmarks/math.jsonl");
    if !path.exists() {
        eprintln!("skipped 1 test: {} is not there", path.display());
        return;
    }
    let dataset = data::load(&[path], &options(&["fields.id=unique_id", "max_tokens=1000", "overlong=drop"]), &chat()).unwrap();
    assert_eq!((dataset.rows, dataset.examples.len() + dataset.rejected.len()), (500, 500));
    assert!(!dataset.rejected.is_empty() && dataset.examples.len() > 300, "{} used", dataset.examples.len());
    for example in &dataset.examples {
        let texts = supervised_text(&chat(), &example.tokens, &example.supervised);
        assert!(texts.len() == 1 && texts[0].ends_with("<|im_end|>\n"), "{}: {texts:?}", example.id);
    }
}
