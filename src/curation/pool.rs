//! Rows of published problem files, brought to one form.
//!
//! Of a row are kept: id, problem, answer, solution, source, subject, level. Its other fields (messages, url, year …) are dropped.
//! Field names are found whatever their case. A field that is null or a blank string counts as absent.

use crate::data::kind;
use crate::grading::boxed_answer;
use serde::Serialize;
use serde_json::{Map, Number, Value};
use std::str::FromStr;

/// A problem, as the pool keeps it. What a row does not have is left out of the output.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Problem {
    /// A string or a number: the row's own `id`, `unique_id` or `idx`, else SOURCE-HASH, 48 bits of a hash of the problem.
    pub id: Value,
    pub problem: String,
    /// A string, number, list or object, as the row has it; from the solution where the row has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solution: Option<String>,
    pub source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// A number where the row's level is one ("Level 5", "5", 5), else its text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<Value>,
}

/// The shapes that rows come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// problem, solution, source, messages; the answer is the last \boxed of the solution, and proofs have none.
    NuminaMath,
    /// problem, answer, solution.
    DeepScaleR,
    /// problem, solution with \boxed, level "Level 5", type or subject.
    Math,
    /// question or problem, answer, a year or an address that names AIME.
    Aime,
    /// question, and an answer that is a solution ending in `#### 72`.
    Gsm8k,
    /// question or problem, answer of any kind.
    Benchmark,
}

impl Format {
    pub const ALL: [(&str, Format); 6] = [
        ("numinamath", Format::NuminaMath),
        ("deepscaler", Format::DeepScaleR),
        ("math", Format::Math),
        ("aime", Format::Aime),
        ("gsm8k", Format::Gsm8k),
        ("benchmark", Format::Benchmark),
    ];

    pub fn name(self) -> &'static str {
        Format::ALL.iter().find(|(_, format)| *format == self).map_or("", |(name, _)| name)
    }

    /// The format that a row's fields show.
    pub fn of(row: &Map<String, Value>) -> Format {
        let has = |name| field(row, &[name]).is_some();
        let answer = field(row, &["answer"]).and_then(Value::as_str);
        let url = field(row, &["url"]).and_then(Value::as_str);
        if has("question") && answer.is_some_and(|answer| answer.contains(FINAL)) {
            Format::Gsm8k
        } else if has("answer") && (has("year") || url.is_some_and(|url| url.contains("AIME"))) {
            Format::Aime
        } else if has("messages") || has("source") && has("problem") && has("solution") && answer.is_none() {
            Format::NuminaMath
        } else if has("solution") && has("level") && (has("type") || has("subject")) {
            Format::Math
        } else if has("problem") && has("answer") && has("solution") {
            Format::DeepScaleR
        } else {
            Format::Benchmark
        }
    }

    /// The source of rows that name none. Rows of the other formats look alike, whatever they come from.
    fn source(self) -> Option<&'static str> {
        matches!(self, Format::NuminaMath | Format::Math | Format::Aime | Format::Gsm8k).then(|| self.name())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Format, String> {
        let found = Format::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, format)| *format).ok_or_else(|| {
            let known: Vec<_> = Format::ALL.iter().map(|(name, _)| *name).collect();
            format!("\"{name}\" is no format of rows; there are {}", known.join(", "))
        })
    }
}

/// How the rows of one file are read.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// Of every row; None: each row's own fields tell.
    pub format: Option<Format>,
    /// Of every row; None: the row's own, else the format's name, else `file`.
    pub source: Option<String>,
    /// The file's name without its ending.
    pub file: String,
}

const FINAL: &str = "####";
const PROBLEMS: &[&str] = &["problem", "question"];

impl Reading {
    /// The problem of a row.
    ///
    /// Errors: what is wrong with the row, naming the field.
    pub fn problem(&self, row: &Map<String, Value>) -> Result<Problem, String> {
        let format = self.format.unwrap_or_else(|| Format::of(row));
        let problem = problem_text(row)?;
        let mut solution = text(row, &["solution"])?.map(str::to_string);
        let mut answer = field(row, &["answer"]).cloned();
        if answer.as_ref().is_some_and(Value::is_boolean) {
            return Err("\"answer\" must be a string, a number, a list or an object, but is a boolean".into());
        }
        if format == Format::Gsm8k {
            let worked = answer.as_ref().and_then(Value::as_str).unwrap_or("");
            let (steps, _) = worked.rsplit_once(FINAL).unwrap_or_default();
            let last = after_final(worked).ok_or_else(|| format!("\"answer\" must end with \"{FINAL} 72\" or the like"))?;
            solution.get_or_insert_with(|| steps.trim_end().to_string());
            answer = Some(Value::from(last));
        }
        let answer = answer.or_else(|| solution.as_deref().and_then(answer_of).map(Value::from));
        if answer.is_none() && matches!(format, Format::Math | Format::Aime | Format::DeepScaleR) {
            return Err(format!("no \"answer\", and no \\boxed or \"{FINAL}\" in \"solution\""));
        }
        let own = text(row, &["source"])?.map(str::to_string);
        let source = self.source.clone().or(own).unwrap_or_else(|| format.source().unwrap_or(&self.file).to_string());
        let hash = || blake3::hash(problem.as_bytes()).to_hex();
        let id = own_id(row)?.unwrap_or_else(|| Value::from(format!("{source}-{}", &hash()[..12])));
        let subject = text(row, &["subject", "type", "problem_type"])?.map(str::to_string);
        Ok(Problem { id, problem, answer, solution, source, subject, level: level(row)? })
    }
}

/// The text of a row's problem, whatever else is in the row.
///
/// Errors: what is wrong with it, naming the field.
pub fn problem_text(row: &Map<String, Value>) -> Result<String, String> {
    match text(row, PROBLEMS)? {
        Some(problem) => Ok(problem.to_string()),
        None => first_user_message(row).ok_or_else(|| missing(row)),
    }
}

/// The final answer of a worked solution: its last \boxed, else what follows its last `####`. None if blank.
pub fn answer_of(solution: &str) -> Option<&str> {
    boxed_answer(solution).map(str::trim).filter(|answer| !answer.is_empty()).or_else(|| after_final(solution))
}

fn after_final(solution: &str) -> Option<&str> {
    let (_, last) = solution.rsplit_once(FINAL)?;
    last.lines().map(str::trim).find(|line| !line.is_empty())
}

/// The first of `names` that the row has, case aside, unless null or blank.
fn field<'a>(row: &'a Map<String, Value>, names: &[&str]) -> Option<&'a Value> {
    let blank = |value: &Value| value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty());
    names.iter().find_map(|name| {
        let exact = row.get(*name);
        let found = exact.or_else(|| row.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value));
        found.filter(|value| !blank(value))
    })
}

fn text<'a>(row: &'a Map<String, Value>, names: &[&str]) -> Result<Option<&'a str>, String> {
    let found = names.iter().find_map(|name| Some((name, field(row, &[name])?)));
    found
        .map(|(name, value)| value.as_str().ok_or_else(|| format!("\"{name}\" must be a string, but is {}", kind(value))))
        .transpose()
}

fn missing(row: &Map<String, Value>) -> String {
    match PROBLEMS.iter().find(|name| row.contains_key(**name)) {
        Some(name) => format!("\"{name}\" is empty"),
        None => {
            let names: Vec<_> = row.keys().take(8).map(|name| name.chars().take(40).collect::<String>()).collect();
            format!("no \"problem\" or \"question\"; its fields: {}", names.join(", "))
        }
    }
}

fn first_user_message(row: &Map<String, Value>) -> Option<String> {
    let messages = field(row, &["messages"])?.as_array()?;
    let user = messages.iter().find(|message| message.get("role").and_then(Value::as_str) == Some("user"))?;
    user.get("content")?.as_str().filter(|content| !content.trim().is_empty()).map(str::to_string)
}

/// The row's own `id`, `unique_id` or `idx`: a string or a number.
pub fn own_id(row: &Map<String, Value>) -> Result<Option<Value>, String> {
    match field(row, &["id", "unique_id", "idx"]) {
        None => Ok(None),
        Some(id @ (Value::String(_) | Value::Number(_))) => Ok(Some(id.clone())),
        Some(other) => Err(format!("\"id\" must be a string or a number, but is {}", kind(other))),
    }
}

fn level(row: &Map<String, Value>) -> Result<Option<Value>, String> {
    match field(row, &["level"]) {
        None => Ok(None),
        Some(Value::String(level)) => {
            let bare = level.trim();
            let digits = bare.strip_prefix("Level").or(bare.strip_prefix("level")).unwrap_or(bare).trim();
            Ok(Some(digits.parse::<Number>().map_or_else(|_| Value::from(bare), Value::Number)))
        }
        Some(level @ Value::Number(_)) => Ok(Some(level.clone())),
        Some(other) => Err(format!("\"level\" must be a string or a number, but is {}", kind(other))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(row: Value) -> Result<Problem, String> {
        Reading { file: "train".into(), ..Reading::default() }.problem(row.as_object().unwrap())
    }

    fn written(row: Value) -> Value {
        let problem = read(row).unwrap();
        let hash = blake3::hash(problem.problem.as_bytes()).to_hex();
        let mut row = serde_json::to_value(problem).unwrap();
        if let Some(before) = row["id"].as_str().and_then(|id| id.strip_suffix(&hash[..12])) {
            row["id"] = format!("{before}HASH").into();
        }
        row
    }

    #[test]
    fn published_rows_come_to_one_form() {
        let messages = json!([{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "2"}]);
        let cases = [
            (
                Format::NuminaMath,
                json!({"source": "olympiads", "problem": "What is 1+1?", "solution": "It is \\boxed{2}.", "messages": messages}),
                json!({"id": "olympiads-HASH", "problem": "What is 1+1?", "answer": "2", "solution": "It is \\boxed{2}.", "source": "olympiads"}),
            ),
            (
                Format::NuminaMath,
                json!({"source": "amc_aime", "problem": "Prove it.", "solution": "Clear.", "messages": messages}),
                json!({"id": "amc_aime-HASH", "problem": "Prove it.", "solution": "Clear.", "source": "amc_aime"}),
            ),
            (
                Format::NuminaMath,
                json!({"messages": messages}),
                json!({"id": "numinamath-HASH", "problem": "What is 1+1?", "source": "numinamath"}),
            ),
            (
                Format::DeepScaleR,
                json!({"problem": "P", "answer": "-\\frac{2}{3}", "solution": "S"}),
                json!({"id": "train-HASH", "problem": "P", "answer": "-\\frac{2}{3}", "solution": "S", "source": "train"}),
            ),
            (
                Format::Math,
                json!({"problem": "P", "level": "Level 5", "type": "Algebra", "solution": "so \\boxed{\\frac{1}{2}}"}),
                json!({"id": "math-HASH", "problem": "P", "answer": "\\frac{1}{2}", "solution": "so \\boxed{\\frac{1}{2}}",
                    "source": "math", "subject": "Algebra", "level": 5}),
            ),
            (
                Format::Math,
                json!({"problem": "P", "level": "Level ?", "subject": "Geometry", "solution": "S", "answer": "3", "unique_id": "test/1"}),
                json!({"id": "test/1", "problem": "P", "answer": "3", "solution": "S", "source": "math", "subject": "Geometry",
                    "level": "Level ?"}),
            ),
            (
                Format::Aime,
                json!({"ID": "1983-1", "Year": 1983, "Problem Number": 1, "Question": "Q", "Answer": "60", "Part": null}),
                json!({"id": "1983-1", "problem": "Q", "answer": "60", "source": "aime"}),
            ),
            (
                Format::Gsm8k,
                json!({"question": "Q", "answer": "48/2 = 24 clips.\n#### 72"}),
                json!({"id": "gsm8k-HASH", "problem": "Q", "answer": "72", "solution": "48/2 = 24 clips.", "source": "gsm8k"}),
            ),
            (
                Format::Benchmark,
                json!({"idx": 3, "question": "Q", "answer": {"x": 1}, "choice_answer": "C"}),
                json!({"id": 3, "problem": "Q", "answer": {"x": 1}, "source": "train"}),
            ),
            (
                Format::Benchmark,
                json!({"id": 4, "problem": "P", "answer": 27.0, "solution": ""}),
                json!({"id": 4, "problem": "P", "answer": 27.0, "source": "train"}),
            ),
            (
                Format::Benchmark,
                json!({"problem": "P", "answer": [1, "2"], "level": 2}),
                json!({"id": "train-HASH", "problem": "P", "answer": [1, "2"], "source": "train", "level": 2}),
            ),
        ];
        for (format, row, expected) in cases {
            assert_eq!(Format::of(row.as_object().unwrap()), format, "{row}");
            assert_eq!(written(row), expected);
        }
    }

    #[test]
    fn format_and_source_can_be_set() {
        let row = json!({"question": "Q", "answer": "1 + 1\n#### 2", "source": "own"});
        let plain = Reading { format: Some(Format::Benchmark), source: None, file: "f".into() };
        assert_eq!(plain.problem(row.as_object().unwrap()).unwrap().answer, Some(json!("1 + 1\n#### 2")));
        let named = Reading { format: None, source: Some("given".into()), file: "f".into() };
        let problem = named.problem(row.as_object().unwrap()).unwrap();
        assert!(problem.source == "given" && problem.id.as_str().is_some_and(|id| id.starts_with("given-")), "{problem:?}");
        for (name, format) in Format::ALL {
            assert_eq!((name.parse(), format.name()), (Ok(format), name));
        }
        assert!("gsm".parse::<Format>().unwrap_err().contains("gsm8k"));
    }

    #[test]
    fn what_is_wrong_with_a_row_is_named() {
        let cases = [
            (json!({"text": "P", "answer": 1}), "no \"problem\" or \"question\"; its fields: text, answer"),
            (json!({"problem": " \n"}), "\"problem\" is empty"),
            (json!({"problem": null}), "\"problem\" is empty"),
            (json!({"question": 5}), "\"question\" must be a string, but is a number"),
            (json!({"problem": "P", "solution": ["S"]}), "\"solution\" must be a string, but is a list"),
            (
                json!({"problem": "P", "answer": true}),
                "\"answer\" must be a string, a number, a list or an object, but is a boolean",
            ),
            (json!({"problem": "P", "id": [1]}), "\"id\" must be a string or a number, but is a list"),
            (json!({"problem": "P", "level": {}}), "\"level\" must be a string or a number, but is an object"),
            (
                json!({"problem": "P", "level": "Level 1", "type": "Algebra", "solution": "S"}),
                "no \"answer\", and no \\boxed or \"####\" in \"solution\"",
            ),
        ];
        for (row, expected) in cases {
            assert_eq!(read(row.clone()).unwrap_err(), expected, "{row}");
        }
        let gsm = Reading { format: Some(Format::Gsm8k), ..Reading::default() };
        for answer in [json!("72"), json!(72), json!("#### \n")] {
            let error = gsm.problem(json!({"question": "Q", "answer": answer}).as_object().unwrap()).unwrap_err();
            assert_eq!(error, "\"answer\" must end with \"#### 72\" or the like");
        }
    }

    #[test]
    fn answers_come_from_the_end_of_solutions() {
        let cases = [
            ("so \\boxed{1}, no, \\boxed{ {2} }", Some("{2}")),
            ("steps\n#### 72", Some("72")),
            ("\\boxed{} #### 5\n", Some("5")),
            ("####", None),
            ("\\boxed{3", None),
            ("none", None),
        ];
        for (solution, expected) in cases {
            assert_eq!(answer_of(solution), expected, "{solution:?}");
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            r"(\PC|####|\\boxed\{|\}|Level ){0,12}".prop_map(Value::from)
        ];
        leaf.prop_recursive(2, 8, 4, |inner| prop::collection::vec(inner, 0..4).prop_map(Value::from))
    }

    proptest! {
        #[test]
        fn any_row_is_read_or_refused(
            fields in prop::collection::vec((prop::sample::select(vec![
                "problem", "Question", "solution", "answer", "messages", "level", "type", "source", "id", "year", "url",
            ]), any_value()), 0..8),
            format in prop::option::of(prop::sample::select(Format::ALL.to_vec())),
        ) {
            let row: Map<String, Value> = fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
            let reading = Reading { format: format.map(|(_, format)| format), source: None, file: "f".into() };
            if let Ok(problem) = reading.problem(&row) {
                prop_assert!(!problem.problem.trim().is_empty() && (problem.id.is_string() || problem.id.is_number()));
                // What is written can be read again, and says the same.
                let row = serde_json::to_value(&problem).unwrap();
                let benchmark = Reading { format: Some(Format::Benchmark), ..Reading::default() };
                let again = benchmark.problem(row.as_object().unwrap()).unwrap();
                prop_assert_eq!((again.id, again.problem, again.source), (problem.id, problem.problem, problem.source));
            }
        }
    }
}
