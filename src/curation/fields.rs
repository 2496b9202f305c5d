//! Fields of rows that the tools read: ids, texts, values. A field that is null is as good as absent.

use crate::data::kind;
use serde_json::{Map, Value};

pub type Row = Map<String, Value>;

/// Fields that hold a problem, the first that is there.
pub const PROBLEMS: [&str; 3] = ["problem", "question", "prompt"];
/// Fields that hold a chain of reasoning: what a model said before an official solution beside it.
pub const CHAINS: [&str; 5] = ["response", "text", "completion", "output", "solution"];

/// A field's value.
pub fn present<'a>(row: &'a Row, name: &str) -> Option<&'a Value> {
    row.get(name).filter(|value| !value.is_null())
}

/// A row's id as text, so 60 and "60" are one.
pub fn id(row: &Row) -> Result<String, String> {
    match present(row, "id") {
        Some(Value::String(id)) => Ok(id.clone()),
        Some(Value::Number(id)) => Ok(id.to_string()),
        Some(other) => Err(format!("\"id\" must be a string or a number, but is {}", kind(other))),
        None => Err("no \"id\"".to_string()),
    }
}

/// The text of the first of these fields that is there.
pub fn text<'a>(row: &'a Row, names: &[&str]) -> Result<&'a str, String> {
    let found = names.iter().find_map(|name| Some((name, present(row, name)?)));
    let (name, value) = found.ok_or_else(|| {
        let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
        format!("no {}", names.join(", "))
    })?;
    value.as_str().ok_or_else(|| format!("\"{name}\" must be a string, but is {}", kind(value)))
}

/// Like [`text`], with something in it.
pub fn some_text<'a>(row: &'a Row, names: &[&str]) -> Result<&'a str, String> {
    let text = text(row, names)?;
    if text.trim().is_empty() {
        Err(format!("no text in \"{}\"", names.iter().find(|name| present(row, name).is_some()).unwrap_or(&"")))
    } else {
        Ok(text)
    }
}

/// What rows without a field are grouped as.
pub const NONE: &str = "none";

/// A field's value as text, for groups.
pub fn value(row: &Row, name: &str) -> String {
    match present(row, name) {
        None => NONE.to_string(),
        Some(Value::String(value)) => value.clone(),
        Some(other) => other.to_string(),
    }
}

/// The beginning of a text.
pub fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.to_string(),
    }
}
