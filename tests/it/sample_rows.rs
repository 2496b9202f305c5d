//! The parts of a sampling job that need no model: prompts read one by one, stop texts, keys, what an output holds already.

use limo_engine::data::{Chat, Entry, PromptReader, read_prompts};
use limo_engine::error::Kind;
use limo_engine::sample::{Shard, StopTexts, sample_key};
use serde_json::{Value, json};
use std::path::Path;

fn chat() -> Chat {
    Chat::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tiny"), None, 512).unwrap()
}

/// (number, line, id or what is wrong) of every row.
fn read(text: impl AsRef<[u8]>) -> Vec<(usize, usize, Result<Value, String>)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows");
    std::fs::write(&path, text).unwrap();
    let mut reader = PromptReader::open(&path, None).unwrap();
    let mut rows = Vec::new();
    while let Some(Entry { number, line, prompt }) = reader.next_row().unwrap() {
        rows.push((number, line, prompt.map(|prompt| prompt.id)));
    }
    assert_eq!(PromptReader::count(&path).unwrap(), Some(rows.len()), "the count");
    rows
}

#[test]
fn rows_after_a_broken_one_are_read() {
    let good = r#"{"id": "a,]}", "prompt": "x \" ] , \\"}"#;
    let expect = |text: String, expected: &[(usize, &str)]| {
        let rows = read(&text);
        assert_eq!(rows.len(), expected.len(), "{text}: {rows:?}");
        for ((number, line, row), (at, (expected_line, what))) in rows.iter().zip(expected.iter().enumerate()) {
            let said = row.as_ref().map_or_else(|fault| fault.clone(), Value::to_string);
            assert!((*number, *line) == (at, *expected_line) && said.contains(what), "{text}: row {at}: {line}: {said}");
        }
    };
    let id = "a,]}";
    let line = "{\"prompt\": 1}";
    let kind = "must be a string or a list";
    let broken = "broken JSON";
    expect(format!("{line}\n\n{good}\nx\n {good}"), &[(1, kind), (3, id), (4, broken), (5, id)]);
    expect(
        format!("[{line},\n{good}, 7,\n\n{{\"prompt\":\n}},{good}]"),
        &[(1, kind), (2, id), (2, "a row must be"), (5, broken), (5, id)],
    );
    // A list that is damaged is told once, and what came before is kept.
    expect(format!("[{good},\n{good}"), &[(1, id), (2, "breaks off")]);
    expect(format!("[{good},\n"), &[(1, id), (2, "no end")]);
    expect(format!("[{good},]"), &[(1, id)]);
    expect(format!("[{good}, ,{good}]"), &[(1, id), (1, broken), (1, id)]);
    expect(format!("[{good}]\n {good}"), &[(1, id), (2, "follows the end")]);
    expect(format!("[{good} {good},{good}]"), &[(1, broken), (1, id)]);
    expect("[]".into(), &[(1, "no rows")]);
    expect("[[[[\"]\"]]],{\"a\":[]}".into(), &[(1, "a row must be"), (1, "breaks off")]);
    let column = |text: &str| read(text).pop().unwrap().2.unwrap_err();
    assert_eq!(column("[{},\n  {\"prompt\": x}]"), column("{\"prompt\": \"\"}\n  {\"prompt\": x}"));
    // The same rows, whole file or one by one.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows");
    std::fs::write(&path, format!("{good}\n{{\"question\": \"q\"}}\n")).unwrap();
    let ids: Vec<Value> = read_prompts(&path, &Default::default(), None).unwrap().into_iter().map(|prompt| prompt.id).collect();
    assert_eq!(ids, [json!(id), json!(1)]);
}

#[test]
fn what_is_no_file_of_prompts_is_a_data_error() {
    for path in ["no/such.jsonl", "tests", "/dev/null"] {
        assert_eq!(PromptReader::open(Path::new(path), None).err().map(|error| error.kind), Some(Kind::Data), "{path}");
    }
}

/// Only the last few tokens are looked at, and a stop text is found with the token that completes it, as in the text of all tokens.
#[test]
fn a_stop_text_is_found_with_the_token_that_completes_it() {
    let chat = chat();
    let mut state = 7u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let accents = chat.encode_prompt(&[limo_engine::data::Message::new(limo_engine::data::Role::User, "é→日本 é")]).unwrap();
    let mut completed = 0;
    for _ in 0..300 {
        // Runs of special tokens have no text: a window of a fixed number of tokens would miss what is before them.
        let token = |random: &mut dyn FnMut(u64) -> u64| match random(12) {
            0..8 => random(448) as i32,
            8..10 => accents[random(accents.len() as u64) as usize],
            _ => 448,
        };
        let mut tokens: Vec<i32> = (0..120).map(|_| token(&mut random)).collect();
        let hole = random(100) as usize;
        tokens[hole..hole + 20].fill(449);
        let text = chat.decode(&tokens);
        let chars: Vec<char> = text.chars().collect();
        let stops: Vec<String> = (0..1 + random(2))
            .map(|_| {
                let start = random(chars.len() as u64) as usize;
                let length = 1 + random(60) as usize;
                chars[start..chars.len().min(start + length)].iter().collect()
            })
            .collect();
        let texts = StopTexts::new(&chat, &stops).unwrap();
        let whole = |n: usize| {
            let text = chat.decode(&tokens[..n]);
            stops.iter().any(|stop| text.contains(stop))
        };
        let expected = (1..=tokens.len()).find(|&n| whole(n));
        assert_eq!((1..=tokens.len()).find(|&n| texts.found(&tokens[..n])), expected, "{stops:?} in {text:?}");
        completed += usize::from(expected.is_some());
        let cut = texts.cut(&text);
        assert!(text.starts_with(cut) && stops.iter().all(|stop| !cut.contains(stop)), "{stops:?}: {cut:?}");
        assert!(stops.iter().any(|stop| text[cut.len()..].starts_with(stop)) || cut == text);
    }
    assert!(completed > 250, "{completed} of 300");
    let empty = [String::new()];
    assert_eq!(StopTexts::new(&chat, &empty).err().map(|error| error.kind), Some(Kind::Usage));
}

/// Outputs that exist are continued with these keys: they must never change.
#[test]
fn keys_are_what_the_docs_say() {
    let by_hand = |text: &str| u64::from_be_bytes(blake3::hash(text.as_bytes()).as_bytes()[..8].try_into().unwrap());
    assert_eq!(sample_key(42, &json!("aime-1 \"é\""), 3), by_hand("[42,\"aime-1 \\\"é\\\"\",3]"));
    assert_eq!(sample_key(0, &json!(7), 0), by_hand("[0,7,0]"));
    assert_ne!(sample_key(0, &json!("7"), 0), sample_key(0, &json!(7), 0));
}

#[test]
fn shards_are_parts_that_make_the_whole() {
    for of in 1..7 {
        for rows in 0..20 {
            let shares: usize = (0..of).map(|index| Shard { index, of }.share(rows)).sum();
            assert_eq!(shares, rows, "{of} shards");
        }
    }
    assert_eq!("2/3".parse(), Ok(Shard { index: 2, of: 3 }));
    for text in ["3/3", "1", "-1/2", "a/b", "0/0", "1/2/3", ""] {
        assert!(text.parse::<Shard>().is_err(), "{text}");
    }
}

/// A number as JSON writes it may be another number once it was read.
#[test]
fn ids_are_texts_or_whole_numbers_of_64_bits() {
    let row = |id: &str| read(format!("{{\"prompt\": \"x\", \"id\": {id}}}")).pop().unwrap().2;
    assert_eq!(row("18446744073709551615"), Ok(json!(u64::MAX)));
    assert_eq!(row("-1"), Ok(json!(-1)));
    assert_eq!(row("\"1.5\""), Ok(json!("1.5")));
    for id in ["18446744073709551616", "1e0", "1.5", "-0"] {
        assert!(row(id).is_err_and(|what| what.contains("64 bits")), "{id}");
    }
}
