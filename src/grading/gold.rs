//! Gold answers as benchmark files hold them: text, numbers, lists, objects.

use super::extract::{Extraction, extract};
use super::strict::Options;
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

/// An answer as a mode reads it, once for many comparisons.
#[derive(Debug, Clone)]
pub enum Answer {
    Limo(limo::Answer),
    Strict(strict::Answer, Options),
}

impl Answer {
    pub fn parse(text: &str, mode: Mode) -> Answer {
        match mode {
            Mode::Limo => Answer::Limo(limo::Answer::parse(text)),
            Mode::Strict(options) => Answer::Strict(strict::Answer::parse(text), options),
        }
    }

    /// Whether this is the same answer as `gold`, which is read in the same mode.
    pub fn equals(&self, gold: &Answer) -> bool {
        match (self, gold) {
            (Answer::Limo(own), Answer::Limo(gold)) => own.equals(gold),
            (Answer::Strict(own, options), Answer::Strict(gold, _)) => own.equals(gold, *options),
            _ => false,
        }
    }
}

/// Parts of a list or object that are looked for one by one.
const MAX_PARTS: usize = 100;

/// A gold answer, read once for many gradings.
#[derive(Debug, Clone)]
pub struct Gold {
    mode: Mode,
    text: String,
    parts: Parts,
}

#[derive(Debug, Clone)]
enum Parts {
    One(Box<Answer>),
    /// A list of several, in any order, and its text as one answer: commas in an element can hide where it ends.
    Any(Vec<Gold>, Box<Answer>),
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

/// The text inside the pair of brackets that is around all of it.
fn unwrapped(text: &str) -> Option<&str> {
    const PAIRS: &[(&str, &str)] = &[
        ("\\left\\{", "\\right\\}"),
        ("\\left[", "\\right]"),
        ("\\left(", "\\right)"),
        ("\\{", "\\}"),
        ("{", "}"),
        ("[", "]"),
        ("(", ")"),
    ];
    let inner = PAIRS.iter().find_map(|(open, close)| text.strip_prefix(open)?.strip_suffix(close))?;
    let mut depth = 0i32;
    let balanced = inner.chars().all(|c| {
        depth += i32::from("([{".contains(c)) - i32::from(")]}".contains(c));
        depth >= 0
    });
    (balanced && depth == 0).then_some(inner)
}

/// The elements of an answer that is a list, with or without brackets around it.
fn elements(answer: &str) -> Vec<String> {
    const WORDS: &[&str] = &[" or ", " and ", "\\text{ or }", "\\text{ and }", "\\text{or}", "\\text{and}", "和", "或"];
    let answer = strict::trim(answer);
    let inner = unwrapped(answer).unwrap_or(answer);
    let inner = WORDS.iter().fold(inner.to_string(), |text, word| text.replace(word, ","));
    split_outside(&inner, &[',', '，', '、', ';', '；', '\n'])
}

/// A part of an answer without the name that it may start with: "key: 5", "key = 5", "(key) 5".
fn without_name<'a>(part: &'a str, name: &str) -> &'a str {
    let part = part.trim();
    let rest = part.strip_prefix(name).and_then(|rest| rest.trim_start().strip_prefix([':', '=', '：', '.', ')']));
    let bracketed = || part.strip_prefix(['(', '（'])?.strip_prefix(name)?.strip_prefix([')', '）']);
    rest.or_else(bracketed).unwrap_or(part).trim()
}

impl Gold {
    /// Reads the gold answer of a row. None for null, an empty list or object, and text without anything in it.
    ///
    /// What has more parts than answers are searched for is read as one text.
    pub fn new(value: &Value, mode: Mode) -> Option<Gold> {
        let one = |text: String| Gold { mode, parts: Parts::One(Box::new(Answer::parse(&text, mode))), text };
        let joined =
            |items: &mut dyn Iterator<Item = &Value>| items.map(|item| python_text(item, false)).collect::<Vec<_>>().join(", ");
        match (value, mode) {
            (Value::Null, _) => None,
            (Value::String(text), _) if strict::trim(text).trim_matches(['$', ' ']).is_empty() => None,
            (_, Mode::Limo) => Some(one(python_text(value, false))),
            (Value::Array(items), _) if items.len() > MAX_PARTS => Some(one(joined(&mut items.iter()))),
            (Value::Object(fields), _) if fields.len() > MAX_PARTS => Some(one(joined(&mut fields.values()))),
            (Value::Array(items), _) => {
                let mut parts: Vec<Gold> = items.iter().map(|item| Gold::new(item, mode)).collect::<Option<_>>()?;
                if parts.len() < 2 {
                    return parts.pop();
                }
                let text = parts.iter().map(|part| part.text.as_str()).collect::<Vec<_>>().join(", ");
                let whole = Box::new(Answer::parse(&text, mode));
                Some(Gold { mode, text, parts: Parts::Any(parts, whole) })
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
        match &self.parts {
            Parts::One(gold) => Answer::parse(answer, self.mode).equals(gold),
            Parts::Any(golds, whole) => {
                let mut parts = elements(answer);
                let same_elements = parts.len() == golds.len()
                    && parts.len() <= MAX_PARTS
                    && golds.iter().all(|gold| {
                        let found = parts.iter().position(|part| gold.accepts(part));
                        found.map(|at| parts.swap_remove(at)).is_some()
                    });
                same_elements || Answer::parse(answer, self.mode).equals(whole)
            }
            Parts::Named(golds) => {
                let answer = strict::trim(answer);
                [&[';', '；', '\n'][..], &[',', '，', '、']].iter().any(|separators| {
                    let parts = split_outside(answer, separators);
                    parts.len() == golds.len()
                        && parts.len() <= MAX_PARTS
                        && golds.iter().zip(&parts).all(|((name, gold), part)| {
                            // "1.5" may be the part itself, or 5 under the name 1.
                            gold.accepts(part) || gold.accepts(without_name(part, name))
                        })
                })
            }
        }
    }
}

/// Whether two answers are the same: for classes of answers, as in a majority vote.
pub fn same_answer(a: &str, b: &str, mode: Mode) -> bool {
    Answer::parse(a, mode).equals(&Answer::parse(b, mode))
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
    fn elements_of_lists_keep_their_brackets() {
        for gold in [
            json!(["\\frac{1}{2}", "\\frac{1}{3}"]),
            json!(["\\sqrt{2}", "\\sqrt{3}"]),
            json!(["f(2)", "f(3)"]),
            json!(["(1,2)", "(3,4)"]),
            json!(["[0,1)", "(2,3]"]),
            json!(["1,234", "5"]),
            json!(["\\sqrt{2}"]),
            json!(["(1,2)"]),
            json!(["[0,1)"]),
            json!(["1,2"]),
            json!({"1": "1.5", "2": "2"}),
        ] {
            let text = Gold::new(&gold, Mode::Strict(Options::default())).unwrap().text;
            assert!(strict(gold.clone(), &text), "{gold}");
            assert!(strict(gold.clone(), &format!("${text}$.")), "{gold}");
            assert!(!strict(gold.clone(), &format!("{text}, 9")), "{gold}");
            if gold.as_array().is_some_and(|items| items.len() > 1) {
                assert!(strict(gold.clone(), &format!("\\left\\{{ {text} \\right\\}}")), "{gold}");
            }
        }
        assert!(strict(json!(["(1,2)", "(3,4)"]), "(3,4) \\text{ and } (1,2)"));
        assert!(!strict(json!(["(1,2)", "(3,4)"]), "(2,1), (3,4)"));
        assert!(!strict(json!(["(1,2)"]), "1,2"));
        assert!(!strict(json!(["[0,1)"]), "(0,1)"));
        assert!(!strict(json!(["f(2)", "f(3)"]), "f(2), f(4)"));
    }

    #[test]
    fn nothing_is_no_gold_answer() {
        for text in ["", "  ", "$", "$ $", "\\boxed{}", "."] {
            for mode in [Mode::Limo, Mode::Strict(Options::default())] {
                assert!(Gold::new(&json!(text), mode).is_none(), "{text:?}, {mode:?}");
            }
        }
    }

    #[test]
    fn long_answers_equal_their_own_text() {
        let digits = "7".repeat(1000);
        for text in [format!("0.{digits}"), digits.repeat(2), "a".repeat(10_000), "x+".repeat(20_000) + "1"] {
            for mode in [Mode::Limo, Mode::Strict(Options::default())] {
                assert!(same_answer(&text, &text, mode), "{mode:?}: {} bytes", text.len());
            }
            assert!(!same_answer(&text, &format!("{text}1"), Mode::Strict(Options::default())), "{} bytes", text.len());
        }
        let list = json!((0..1_000_000).collect::<Vec<i32>>());
        let start = std::time::Instant::now();
        let gold = Gold::new(&list, Mode::Strict(Options::default())).unwrap();
        assert!(gold.accepts(gold.text()) && !gold.accepts("5"));
        assert!(start.elapsed().as_secs() < 30, "{:?}", start.elapsed());
        assert!(strict(
            json!((0..150).collect::<Vec<i32>>()),
            &(0..150).rev().map(|i| i.to_string()).collect::<Vec<_>>().join(", ")
        ));
    }

    #[test]
    fn limo_sees_what_python_prints() {
        assert_eq!(python_text(&json!([1, "a\\b", 2.0]), false), "[1, 'a\\\\b', 2.0]");
        assert_eq!(python_text(&json!({"k": "it's"}), false), "{'k': \"it's\"}");
        assert!(Gold::new(&json!(27.0), Mode::Limo).unwrap().accepts("27"));
    }
}
