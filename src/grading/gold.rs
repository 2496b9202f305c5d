//! Gold answers as benchmark files hold them: text, numbers, lists, objects.

use super::extract::{Extraction, extract};
use super::strict::{Answer, Options};
use super::{limo, strict};
use serde_json::Value;

/// Which rules decide.
#[derive(Debug, Clone, Copy)]
pub enum Mode {
    /// The published rules of LIMO, for numbers that compare with its own.
    Limo,
    /// The same mathematics, and nothing else.
    Strict(Options),
}

/// A gold answer, read once for many gradings.
#[derive(Debug, Clone)]
pub struct Gold {
    mode: Mode,
    text: String,
    parts: Parts,
}

#[derive(Debug, Clone)]
enum Parts {
    /// One answer; `strict` mode has it parsed.
    One(Option<Box<Answer>>),
    /// A list, in any order.
    Any(Vec<Gold>),
    /// Named parts, in the order of their names in the object.
    Named(Vec<(String, Gold)>),
}

/// What Python's str() prints of a value: the form in which LIMO's rules see it.
fn python_text(value: &Value, nested: bool) -> String {
    let joined = |items: Vec<String>| items.join(", ");
    match value {
        Value::String(text) if nested => {
            let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
            let escaped = text.replace('\\', "\\\\").replace('\n', "\\n");
            format!("{quote}{}{quote}", if quote == '\'' { escaped.replace('\'', "\\'") } else { escaped })
        }
        Value::String(text) => text.clone(),
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(number) => number.to_string(),
        Value::Array(items) => format!("[{}]", joined(items.iter().map(|item| python_text(item, true)).collect())),
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| {
                format!("{}: {}", python_text(&Value::String(key.clone()), true), python_text(value, true))
            };
            format!("{{{}}}", joined(fields.iter().map(field).collect()))
        }
    }
}

/// Splits at the separators that stand outside all brackets.
fn split_outside(text: &str, separators: &[char]) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0i32;
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth <= 0 && separators.contains(&c) {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts.retain(|part| !part.trim().is_empty());
    parts
}

/// A part of an answer without the name that it may start with: "key: 5", "key = 5", "(key) 5".
fn without_name<'a>(part: &'a str, name: &str) -> &'a str {
    let part = part.trim();
    let rest = part.strip_prefix(name).and_then(|rest| rest.trim_start().strip_prefix([':', '=', '：', '.', ')']));
    let bracketed = || part.strip_prefix(['(', '（'])?.strip_prefix(name)?.strip_prefix([')', '）']);
    rest.or_else(bracketed).unwrap_or(part).trim()
}

impl Gold {
    /// Reads the gold answer of a row. None for null, and for an empty list or object.
    pub fn new(value: &Value, mode: Mode) -> Option<Gold> {
        let one = |text: String| {
            let answer = matches!(mode, Mode::Strict(_)).then(|| Box::new(Answer::parse(&text)));
            Gold { mode, text, parts: Parts::One(answer) }
        };
        match (value, mode) {
            (Value::Null, _) => None,
            (_, Mode::Limo) => Some(one(python_text(value, false))),
            (Value::Array(items), _) => {
                let parts: Vec<Gold> = items.iter().map(|item| Gold::new(item, mode)).collect::<Option<_>>()?;
                let text = parts.iter().map(|part| part.text.as_str()).collect::<Vec<_>>().join(", ");
                (!parts.is_empty()).then_some(Gold { mode, text, parts: Parts::Any(parts) })
            }
            (Value::Object(fields), _) => {
                let field = |(key, value): (&String, &Value)| Some((key.clone(), Gold::new(value, mode)?));
                let parts: Vec<(String, Gold)> = fields.iter().map(field).collect::<Option<_>>()?;
                let text = parts.iter().map(|(_, part)| part.text.as_str()).collect::<Vec<_>>().join("; ");
                (!parts.is_empty()).then_some(Gold { mode, text, parts: Parts::Named(parts) })
            }
            (Value::Bool(truth), _) => Some(one(truth.to_string())),
            (Value::Number(number), _) => Some(one(number.to_string())),
            (Value::String(text), _) => Some(one(text.clone())),
        }
    }

    /// The answer as one text: the parts of a list joined by commas, those of an object by semicolons.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The answer that a response gives, as this mode looks for it. LIMO's rules look for a box, whatever `extraction` is.
    pub fn answer_in(&self, response: &str, extraction: Extraction) -> Option<String> {
        match self.mode {
            Mode::Limo => limo::extract(response),
            Mode::Strict(_) => extract(response, extraction),
        }
    }

    /// Whether an answer is this one.
    pub fn accepts(&self, answer: &str) -> bool {
        const MAX_PARTS: usize = 100;
        match (&self.parts, self.mode) {
            (Parts::One(Some(gold)), Mode::Strict(options)) => Answer::parse(answer).equals(gold, options),
            (Parts::One(_), _) => limo::is_equal(answer, &self.text),
            (Parts::Any(golds), _) => {
                let inner = strict::trim(answer);
                let inner = ["[", "{", "\\{", "("].iter().find_map(|open| inner.strip_prefix(open)).unwrap_or(inner);
                let inner = inner.trim_end_matches([']', '}', ')', '\\', '.']);
                let inner = inner.replace(" or ", ",").replace(" and ", ",").replace(['和', '或'], ",");
                let mut parts = split_outside(&inner, &[',', '，', '、', ';', '；', '\n']);
                parts.len() == golds.len()
                    && parts.len() <= MAX_PARTS
                    && golds.iter().all(|gold| {
                        let found = parts.iter().position(|part| gold.accepts(part));
                        found.map(|at| parts.swap_remove(at)).is_some()
                    })
            }
            (Parts::Named(golds), _) => {
                let answer = strict::trim(answer);
                [&[';', '；', '\n'][..], &[',', '，', '、']].iter().any(|separators| {
                    let parts = split_outside(answer, separators);
                    parts.len() == golds.len()
                        && parts.len() <= MAX_PARTS
                        && golds.iter().zip(&parts).all(|((name, gold), part)| gold.accepts(without_name(part, name)))
                })
            }
        }
    }
}

/// Whether two answers are the same: for classes of answers, as in a majority vote.
pub fn same_answer(a: &str, b: &str, mode: Mode) -> bool {
    match mode {
        Mode::Limo => limo::is_equal(a, b),
        Mode::Strict(options) => strict::is_equal(a, b, options),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn strict(gold: Value, answer: &str) -> bool {
        Gold::new(&gold, Mode::Strict(Options::default())).unwrap().accepts(answer)
    }

    #[test]
    fn numbers_lists_and_objects() {
        assert!(strict(json!(25), "025"));
        assert!(strict(json!(27.0), "27"));
        assert!(!strict(json!(27.0), "28"));
        assert!(strict(json!([3568, 5880]), "5880, 3568"));
        assert!(strict(json!([3568, 5880]), "\\{5880, 3568\\}"));
        assert!(strict(json!([3568, 5880]), "[3568, 5880]"));
        assert!(!strict(json!([3568, 5880]), "3568"));
        assert!(!strict(json!([3568, 5880]), "3568, 3568"));
        assert!(strict(json!({"1": "\\frac{1}{4}", "2": "\\frac{1}{3}"}), "1/4, 1/3"));
        assert!(strict(json!({"1": "\\frac{1}{4}", "2": "\\frac{1}{3}"}), "(1) $\\frac14$; (2) $\\frac13$"));
        assert!(!strict(json!({"1": "\\frac{1}{4}", "2": "\\frac{1}{3}"}), "1/3, 1/4"));
        assert!(strict(json!({"integer": 42, "square_of": 84}), "integer: 42, square_of: 84"));
        assert!(Gold::new(&Value::Null, Mode::Limo).is_none());
        assert!(Gold::new(&json!([]), Mode::Strict(Options::default())).is_none());
    }

    #[test]
    fn limo_sees_what_python_prints() {
        assert_eq!(python_text(&json!([1, "a\\b", 2.0]), false), "[1, 'a\\\\b', 2.0]");
        assert_eq!(python_text(&json!({"k": "it's"}), false), "{'k': \"it's\"}");
        assert!(Gold::new(&json!(27.0), Mode::Limo).unwrap().accepts("27"));
    }
}
