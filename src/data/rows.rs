//! Rows of training data and prompts, in the formats people have them in.
//!
//! A row holds its prompt as `messages` (role, content), `conversations` (from, value),
//! `instruction` with an optional `input`, `prompt`, `question` or `problem`; its response, unless the messages end with one, as
//! `response`, `completion`, `solution` or `output`. The first of each list that the row has counts.

use super::row_file::{Fault, Object, RowFile, kind};
use crate::config::FieldNames;
use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::{Map, Value};
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
}

const PROMPTS: [&str; 6] = ["messages", "conversations", "instruction", "prompt", "question", "problem"];
const RESPONSES: [&str; 4] = ["response", "completion", "solution", "output"];

/// Reads the prompts of `path`; a response in the row is left aside. `system` is for rows without a system message of their own.
///
/// Errors: data errors that name file, line and field.
pub fn read_prompts(path: &Path, fields: &FieldNames, system: Option<&str>) -> Result<Vec<Prompt>> {
    let mut file = RowFile::open(path)?;
    let mut prompts = Vec::new();
    while let Some(row) = file.next_row()? {
        let number = prompts.len();
        prompts.push(row.and_then(|row| prompt_of(row, number, fields, system)).map_err(|fault| at(path, fault))?);
    }
    Ok(prompts)
}

/// Reads every row of `path`, with its response if `responses`. Errors: data errors that name file, line and field.
pub(super) fn read_rows(path: &Path, fields: &FieldNames, system: Option<&str>, responses: bool) -> Result<Vec<Row>> {
    let mut file = RowFile::open(path)?;
    let mut rows = Vec::new();
    while let Some(object) = file.next_row()? {
        let row = object.and_then(|(line, object)| {
            let messages = conversation(&object, fields, system, responses).map_err(|what| (line, what))?;
            let id = id(&object, fields).map_err(|what| (line, what))?;
            Ok(Row { source: format!("{}:{line}", path.display()), id, messages })
        });
        rows.push(row.map_err(|fault| at(path, fault))?);
    }
    Ok(rows)
}

const ROWS: &str = "docs/config.md, \"Rows\", has the formats; data.fields names the columns of others";

fn at(path: &Path, (line, message): Fault) -> Error {
    Error::data(format!("{}:{line}: {message}", path.display())).help(ROWS)
}

/// The prompts of a file or a pipe, one after another: a broken row is told, and the next one can still be read.
pub struct PromptReader {
    file: RowFile,
    system: Option<String>,
    next: usize,
}

/// A row of a [`PromptReader`].
pub struct Entry {
    /// From 0, broken rows counted.
    pub number: usize,
    /// The line that the row starts on, or that something is wrong on.
    pub line: usize,
    /// Or what is wrong.
    pub prompt: Result<Prompt, String>,
}

impl PromptReader {
    /// Begins to read `path`; a response in a row is left aside. `system` is for rows without a system message of their own.
    ///
    /// Errors: data, if it is no file of rows, or empty.
    pub fn open(path: &Path, system: Option<String>) -> Result<PromptReader> {
        Ok(PromptReader { file: RowFile::open(path)?, system, next: 0 })
    }

    /// Rows of the file `path`, broken ones included; none if it is a pipe, which can be read only once.
    pub fn count(path: &Path) -> Result<Option<usize>> {
        let is_file = std::fs::metadata(path).is_ok_and(|found| found.is_file());
        is_file.then(|| RowFile::open(path)?.count()).transpose()
    }

    /// The next row. Errors: data, if the file cannot be read any further.
    pub fn next_row(&mut self) -> Result<Option<Entry>> {
        let Some(row) = self.file.next_row()? else { return Ok(None) };
        let number = self.next;
        self.next += 1;
        let named = |row: Object| {
            let line = row.0;
            prompt_of(row, number, &FieldNames::default(), self.system.as_deref()).map(|prompt| (line, prompt))
        };
        Ok(Some(match row.and_then(named) {
            Ok((line, prompt)) => Entry { number, line, prompt: Ok(prompt) },
            Err((line, what)) => Entry { number, line, prompt: Err(what) },
        }))
    }
}

/// A row as a prompt; `number` is its id where it has none.
fn prompt_of((line, row): Object, number: usize, fields: &FieldNames, system: Option<&str>) -> Result<Prompt, Fault> {
    let read = || {
        let answer = present(&row, fields.answer.as_deref().unwrap_or("answer")).cloned();
        let messages = conversation(&row, fields, system, false)?;
        let id = id(&row, fields)?.unwrap_or_else(|| number.into());
        match messages.last() {
            Some(last) if last.role == Role::User => Ok(Prompt { id, messages, answer }),
            _ => Err("a prompt must end with a user turn".to_string()),
        }
    };
    read().map_err(|what| (line, what))
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
        // As a binary fraction a number is another text, and large ones are other numbers.
        Some(Value::Number(id)) if id.is_f64() => {
            Err(format!("field `{name}`: {id} is no whole number of 64 bits: make it a string"))
        }
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

fn listed(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
