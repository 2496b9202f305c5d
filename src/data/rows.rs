//! Rows of training data and prompts, in the formats people have them in.
//!
//! A file is JSON lines, one JSON array of rows, or parquet (with that feature). A row holds its prompt as `messages` (role, content), `conversations` (from, value),
//! `instruction` with an optional `input`, `prompt`, `question` or `problem`; its response, unless the messages end with one, as
//! `response`, `completion`, `solution` or `output`. The first of each list that the row has counts.

use crate::config::FieldNames;
use crate::error::{Error, Result, io_error};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    User,
    Assistant,
}

/// One turn of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

impl Message {
    pub fn new(role: Role, content: impl Into<String>) -> Message {
        Message { role, content: content.into() }
    }
}

/// A row to be answered by a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// The row's own id, a string or a number, else its number from 0.
    pub id: Value,
    /// Ends with a user turn.
    pub messages: Vec<Message>,
    /// The reference answer.
    pub answer: Option<Value>,
}

/// A row of a file, understood.
pub(super) struct Row {
    /// `file:line`
    pub source: String,
    pub id: Option<Value>,
    pub messages: Vec<Message>,
    pub answer: Option<Value>,
}

const PROMPTS: [&str; 6] = ["messages", "conversations", "instruction", "prompt", "question", "problem"];
const RESPONSES: [&str; 4] = ["response", "completion", "solution", "output"];

/// Reads the prompts of `path`; a response in the row is left aside. `system` is for rows without a system message of their own.
///
/// Errors: data errors that name file, line and field.
pub fn read_prompts(path: &Path, fields: &FieldNames, system: Option<&str>) -> Result<Vec<Prompt>> {
    let rows = read_rows(path, fields, system, false)?;
    let prompt = |(number, row): (usize, Row)| match row.messages.last() {
        Some(last) if last.role == Role::User => {
            Ok(Prompt { id: row.id.unwrap_or_else(|| number.into()), messages: row.messages, answer: row.answer })
        }
        _ => Err(Error::data(format!("{}: a prompt must end with a user turn", row.source))),
    };
    rows.into_iter().enumerate().map(prompt).collect()
}

/// Reads every row of `path`, with its response if `responses`. Errors: data errors that name file, line and field.
pub(super) fn read_rows(path: &Path, fields: &FieldNames, system: Option<&str>, responses: bool) -> Result<Vec<Row>> {
    let bytes = read_file(path)?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let name = path.display();
    let objects = match bytes.iter().find(|byte| !byte.is_ascii_whitespace()) {
        None => return Err(Error::data(format!("{name}: the file is empty")).help(FILES)),
        Some(b'[') => objects_of_array(bytes),
        Some(_) if bytes.starts_with(b"PAR1") => objects_of_parquet(path)?,
        Some(_) => objects_of_lines(bytes)
            .map_err(|fault| if bytes.contains(&b'\n') { one_object(bytes).unwrap_or(fault) } else { fault }),
    };
    let row = |(line, object): Object| {
        let read = || {
            let answer = present(&object, fields.answer.as_deref().unwrap_or("answer")).cloned();
            let messages = conversation(&object, fields, system, responses)?;
            Ok(Row { source: format!("{name}:{line}"), id: id(&object, fields)?, messages, answer })
        };
        read().map_err(|message| (line, message))
    };
    let rows: Result<Vec<Row>, Fault> = objects.and_then(|objects| objects.into_iter().map(row).collect());
    rows.map_err(|(line, message)| Error::data(format!("{name}:{line}: {message}")).help(ROWS))
}

const FILES: &str = "rows are JSON lines or one JSON list, uncompressed; docs/config.md has the formats";
const ROWS: &str = "docs/config.md, \"Rows\", has the formats; data.fields names the columns of others";

/// The bytes of a file or a pipe.
fn read_file(path: &Path) -> Result<Vec<u8>> {
    let name = path.display();
    let kind = std::fs::metadata(path)
        .map_err(|error| io_error(path, error).help("data is read from local files, nothing is downloaded"))?
        .file_type();
    if kind.is_dir() {
        return Err(Error::data(format!("{name} is a folder"))
            .help("name its files, as in data.train = [\"DIR/a.jsonl\", \"DIR/b.jsonl\"]"));
    }
    if kind.is_char_device() || kind.is_block_device() {
        return Err(Error::data(format!("{name} is a device")).help(FILES));
    }
    let bytes = std::fs::read(path).map_err(|error| io_error(path, error))?;
    for (magic, packer) in [
        (&b"\x1f\x8b"[..], "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"PK\x03\x04", "zip"),
        (b"BZh", "bzip2"),
        (b"\xfd7zXZ", "xz"),
    ] {
        if bytes.starts_with(magic) {
            return Err(Error::data(format!("{name} is packed ({packer})")).help(FILES));
        }
    }
    Ok(bytes)
}

/// What is wrong with a file that is a single JSON object over several lines.
fn one_object(bytes: &[u8]) -> Option<Fault> {
    let object: Map<String, Value> = serde_json::from_slice(bytes).ok()?;
    let list = object.iter().find(|(_, value)| value.is_array()).map(|(key, _)| key);
    let rows = list.map_or("a row a line".into(), |key| format!("the list in its field `{key}`, or a row a line"));
    Some((1, format!("the file is one JSON object, not rows: make it {rows}")))
}

#[cfg(feature = "parquet")]
fn objects_of_parquet(path: &Path) -> Result<Result<Vec<Object>, Fault>> {
    Ok(super::parquet::objects(path))
}

#[cfg(not(feature = "parquet"))]
fn objects_of_parquet(path: &Path) -> Result<Result<Vec<Object>, Fault>> {
    Err(Error::data(format!("{} is a parquet file, which this build does not read", path.display()))
        .help("build with `cargo build --release --features parquet`, or convert it to JSON lines"))
}

/// A row and the line it starts on; in parquet files its number from 1.
pub(super) type Object = (usize, Map<String, Value>);
/// A line number and what is wrong there.
pub(super) type Fault = (usize, String);

fn objects_of_lines(bytes: &[u8]) -> Result<Vec<Object>, Fault> {
    let lines = bytes.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.trim_ascii().is_empty());
    lines.map(|(index, line)| utf8(line, index + 1).and_then(|text| object(text, index + 1))).collect()
}

fn objects_of_array(bytes: &[u8]) -> Result<Vec<Object>, Fault> {
    let text = utf8(bytes, 1)?;
    let elements: Vec<&RawValue> = serde_json::from_str(text).map_err(|error| broken(&error, 1))?;
    if elements.is_empty() {
        return Err((1, "the file has no rows".to_string()));
    }
    // Elements are slices of the text, so that each knows its line.
    let (mut line, mut counted) = (1, 0);
    let located = elements.into_iter().map(|element| {
        let start = element.get().as_ptr() as usize - text.as_ptr() as usize;
        line += text[counted..start].matches('\n').count();
        counted = start;
        Ok((line, object(element.get(), line)?.1))
    });
    located.collect()
}

fn utf8(bytes: &[u8], first_line: usize) -> Result<&str, Fault> {
    std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = first_line + before.iter().filter(|&&byte| byte == b'\n').count();
        let column = before.len() - before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        (line, format!("not UTF-8 at byte {} of the line", column + 1))
    })
}

fn object(text: &str, line: usize) -> Result<Object, Fault> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok((line, object)),
        Ok(other) => Err((line, format!("a row must be a JSON object, not {}", kind(&other)))),
        Err(error) => Err(broken(&error, line)),
    }
}

fn broken(error: &serde_json::Error, first_line: usize) -> Fault {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    (first_line + error.line().saturating_sub(1), format!("broken JSON at column {}: {message}", error.column()))
}

/// All turns of a row: its own system message or `system`, the prompt, and with `responses` the response.
fn conversation(
    row: &Map<String, Value>,
    fields: &FieldNames,
    system: Option<&str>,
    responses: bool,
) -> Result<Vec<Message>, String> {
    let mut messages = prompt(row, fields)?;
    if responses && messages.last().is_none_or(|last| last.role != Role::Assistant) {
        messages.extend(response(row, fields)?);
    }
    if responses && messages.last().is_none_or(|last| last.role != Role::Assistant || last.content.is_empty()) {
        return Err("the response is empty".to_string());
    }
    if messages.first().is_none_or(|first| first.role != Role::System) {
        let own = text(row, fields.system.as_deref().unwrap_or("system"))?.filter(|own| !own.is_empty());
        let system = own.or(system.map(str::to_string));
        messages.splice(0..0, system.map(|system| Message::new(Role::System, system)));
    }
    match messages.iter().find(|message| message.role != Role::System) {
        Some(first) if first.role == Role::User => Ok(messages),
        _ => Err("the conversation must begin with a user turn".to_string()),
    }
}

/// The turns before the response.
fn prompt(row: &Map<String, Value>, fields: &FieldNames) -> Result<Vec<Message>, String> {
    let (name, value) = first_present(row, fields.prompt.as_deref(), &PROMPTS).ok_or_else(|| match &fields.prompt {
        Some(name) => format!("field `{name}` (data.fields.prompt) is missing"),
        None if present(row, "text").is_some() => {
            "field `text` is raw text: without a prompt there is no telling what to train on".to_string()
        }
        None => format!("no prompt: none of the fields {} is there", listed(&PROMPTS)),
    })?;
    let mut turns = turns(name, value, Role::User)?;
    if name == "instruction" {
        if let Some(input) = text(row, "input")?.filter(|input| !input.is_empty())
            && let Some(turn) = turns.last_mut()
        {
            turn.content = format!("{}\n{input}", turn.content);
        }
        turns.splice(0..0, history(row)?);
    }
    Ok(turns)
}

/// Alpaca's earlier turns: pairs of instruction and answer.
fn history(row: &Map<String, Value>) -> Result<Vec<Message>, String> {
    let pair = |(index, pair): (usize, &Value)| match pair.as_array().map(Vec::as_slice) {
        Some([Value::String(instruction), Value::String(answer)]) => {
            Ok([Message::new(Role::User, instruction), Message::new(Role::Assistant, answer)])
        }
        _ => Err(format!("field `history[{index}]`: must be a list of two strings, an instruction and its answer")),
    };
    match present(row, "history") {
        None => Ok(Vec::new()),
        Some(Value::Array(pairs)) => {
            Ok(pairs.iter().enumerate().map(pair).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
        }
        Some(other) => Err(format!("field `history`: must be a list of pairs, not {}", kind(other))),
    }
}

fn response(row: &Map<String, Value>, fields: &FieldNames) -> Result<Vec<Message>, String> {
    let (name, value) = first_present(row, fields.response.as_deref(), &RESPONSES).ok_or_else(|| match &fields.response {
        Some(name) => format!("field `{name}` (data.fields.response) is missing"),
        None if present(row, "chosen").is_some() => {
            "`chosen` and `rejected` are preferences, which are not trained on; data.fields.response = \"chosen\" takes those answers".to_string()
        }
        None => {
            format!("no response: the messages do not end with one, and none of the fields {} is there", listed(&RESPONSES))
        }
    })?;
    let turns = turns(name, value, Role::Assistant)?;
    match turns.last() {
        Some(last) if last.role == Role::Assistant => Ok(turns),
        _ => Err(format!("field `{name}`: must end with an assistant turn")),
    }
}

/// A text is one turn of `role`; a list is a turn an element.
fn turns(name: &str, value: &Value, role: Role) -> Result<Vec<Message>, String> {
    match value {
        Value::String(text) => Ok(vec![Message::new(role, text.as_str())]),
        Value::Array(list) if list.is_empty() => Err(format!("field `{name}`: the list is empty")),
        Value::Array(list) => list
            .iter()
            .enumerate()
            .map(|(index, turn)| message(turn).map_err(|message| format!("field `{name}[{index}]`: {message}")))
            .collect(),
        other => Err(format!("field `{name}`: must be a string or a list of messages, not {}", kind(other))),
    }
}

/// A turn as {role, content} or {from, value}.
fn message(turn: &Value) -> Result<Message, String> {
    let turn = turn.as_object().ok_or_else(|| format!("a message must be an object, not {}", kind(turn)))?;
    let (role_name, content_name) = if turn.contains_key("from") { ("from", "value") } else { ("role", "content") };
    let role = text(turn, role_name)?.ok_or_else(|| format!("field `{role_name}` is missing"))?;
    let role = match role.as_str() {
        "system" => Role::System,
        "user" | "human" => Role::User,
        "assistant" | "gpt" => Role::Assistant,
        other @ ("tool" | "function" | "function_call" | "observation" | "ipython") => {
            return Err(format!("role \"{other}\": conversations with tools are not supported"));
        }
        other => return Err(format!("role \"{other}\" is none of system, user and assistant")),
    };
    if present(turn, "tool_calls").is_some_and(|calls| calls.as_array().is_none_or(|calls| !calls.is_empty())) {
        return Err("field `tool_calls`: tool calls are not supported".to_string());
    }
    let content = match present(turn, content_name) {
        Some(Value::Array(parts)) => parts.iter().map(text_part).collect::<Result<String, _>>(),
        _ => text(turn, content_name)?.ok_or_else(|| format!("field `{content_name}` is missing")),
    };
    Ok(Message { role, content: content? })
}

/// Of a content in parts, as multimodal APIs have it, only text is known: {"type": "text", "text": …}.
fn text_part(part: &Value) -> Result<String, String> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("none");
    match part.get("text").and_then(Value::as_str) {
        Some(text) if kind == "text" => Ok(text.to_string()),
        _ => Err(format!("a part of the content is of type {kind}: only text is supported")),
    }
}

fn id(row: &Map<String, Value>, fields: &FieldNames) -> Result<Option<Value>, String> {
    let name = fields.id.as_deref().unwrap_or("id");
    match present(row, name) {
        None if fields.id.is_some() => Err(format!("field `{name}` (data.fields.id) is missing")),
        None => Ok(None),
        Some(id @ (Value::String(_) | Value::Number(_))) => Ok(Some(id.clone())),
        Some(other) => Err(format!("field `{name}`: must be a string or a number, not {}", kind(other))),
    }
}

/// A field's value; null is as good as absent.
fn present<'a>(row: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    row.get(name).filter(|value| !value.is_null())
}

/// The field the configuration names, and no other, if it names one; else the first of `names` that is there.
fn first_present<'a>(row: &'a Map<String, Value>, named: Option<&'a str>, names: &[&'a str]) -> Option<(&'a str, &'a Value)> {
    let find = |name: &'a str| present(row, name).map(|value| (name, value));
    match named {
        Some(name) => find(name),
        None => names.iter().find_map(|&name| find(name)),
    }
}

fn text(row: &Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match present(row, name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => Err(format!("field `{name}`: must be a string, not {}", kind(other))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
