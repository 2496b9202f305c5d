//! How hard problems are for solvers, from graded samples, and which of them go on to the next stage.
//!
//! Graded rows are `{id, sample, correct}`, as `limo-grade` writes them, one tally a solver. Ids are compared as text, so 60 and "60" are one.

use super::fields::id;
use crate::data::kind;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

/// Samples of one problem by one solver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    pub correct: u32,
    pub samples: u32,
}

impl Count {
    /// The share that is correct; 0 without samples.
    pub fn rate(self) -> f64 {
        f64::from(self.correct) / f64::from(self.samples.max(1))
    }
}

/// The graded samples of one solver.
#[derive(Debug, Default)]
pub struct Tally {
    pub solver: String,
    counts: HashMap<String, Graded>,
}

#[derive(Debug, Default)]
struct Graded {
    count: Count,
    /// The numbers of the samples, sorted.
    numbers: Vec<u64>,
}

impl Tally {
    pub fn new(solver: impl Into<String>) -> Tally {
        Tally { solver: solver.into(), counts: HashMap::new() }
    }

    /// Adds a graded row. A sample without a number is taken for a new one.
    ///
    /// Errors: what is wrong with the row; a sample that was there before.
    pub fn add(&mut self, row: &Value) -> Result<(), String> {
        let row = row.as_object().ok_or_else(|| format!("a row is an object, this is {}", kind(row)))?;
        let id = id(row)?;
        let correct = match row.get("correct") {
            Some(Value::Bool(correct)) => *correct,
            Some(other) => return Err(format!("\"correct\" must be true or false, but is {}", kind(other))),
            None => return Err("no \"correct\": grade the samples first".into()),
        };
        let number = match row.get("sample") {
            None | Some(Value::Null) => None,
            Some(number) => Some(number.as_u64().ok_or("\"sample\" must be a whole number from 0")?),
        };
        let graded = self.counts.entry(id).or_default();
        if let Some(number) = number {
            match graded.numbers.binary_search(&number) {
                Ok(_) => {
                    return Err(format!(
                        "sample {number} of this problem was there before; samples of another model belong in a file of their own"
                    ));
                }
                Err(at) => graded.numbers.insert(at, number),
            }
        }
        graded.count.samples += 1;
        graded.count.correct += u32::from(correct);
        Ok(())
    }

    /// The samples of a problem; none of one that was never sampled.
    pub fn count(&self, id: &str) -> Count {
        self.counts.get(id).map_or(Count::default(), |graded| graded.count)
    }
}

/// How many correct samples a problem may have: `0..=0`, `1..=3 of 32`, `qwen=0..=0 of 4`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// None: every solver.
    pub solver: Option<String>,
    pub least: u32,
    pub most: u32,
    /// How many samples there must be.
    pub of: Option<u32>,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Rule, String> {
        let wrong = || format!("\"{text}\" is no rule; rules are like \"0..=0\", \"1..=3 of 32\" or \"qwen=0..=0 of 4\"");
        let number = |text: &str| text.trim().parse::<u32>().map_err(|_| wrong());
        let (range, of) = match text.rsplit_once(" of ") {
            Some((range, of)) => (range, Some(number(of)?)),
            None => (text, None),
        };
        let (least, most) = range.rsplit_once("..=").ok_or_else(wrong)?;
        // A solver's name may have an equals sign, a number has none.
        let (solver, least) =
            least.rsplit_once('=').map_or((None, least), |(solver, least)| (Some(solver.trim().to_string()), least));
        let rule = Rule { solver, least: number(least)?, most: number(most)?, of };
        if rule.solver.as_deref() == Some("") {
            return Err(wrong());
        }
        if rule.least > rule.most {
            return Err(format!("\"{text}\": no number is from {} to {}", rule.least, rule.most));
        }
        if rule.of.is_some_and(|of| of < rule.most || of == 0) {
            return Err(format!("\"{text}\": {} samples cannot have {} correct ones", rule.of.unwrap_or(0), rule.most));
        }
        Ok(rule)
    }
}

/// Why a problem does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The solver has no sample of it, or not as many as the rule says.
    Samples { solver: String, count: Count, of: Option<u32> },
    /// Too many or too few are correct.
    Range { solver: String, count: Count, least: u32, most: u32 },
}

impl Reason {
    /// Whether the samples, not the problem, are at fault.
    pub fn is_incomplete(&self) -> bool {
        matches!(self, Reason::Samples { .. })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Samples { solver, count: Count { samples: 0, .. }, .. } => write!(f, "no samples of {solver}"),
            Reason::Samples { solver, count, of } => {
                write!(f, "{} samples of {solver}, the rule needs {}", count.samples, of.unwrap_or(1))
            }
            Reason::Range { solver, count, least, most } => {
                write!(f, "{} of {} correct by {solver}, outside of {least}..={most}", count.correct, count.samples)
            }
        }
    }
}

/// What decides which problems go on: every rule must hold for every solver that it is for.
#[derive(Debug)]
pub struct Filter {
    tallies: Vec<Tally>,
    rules: Vec<Rule>,
}

impl Filter {
    /// Errors: a rule for a solver without samples, two solvers of one name.
    pub fn new(tallies: Vec<Tally>, rules: Vec<Rule>) -> Result<Filter, String> {
        let names: Vec<&str> = tallies.iter().map(|tally| tally.solver.as_str()).collect();
        if let Some(name) = names.iter().enumerate().find_map(|(at, name)| names[..at].contains(name).then_some(name)) {
            return Err(format!("two solvers are called \"{name}\""));
        }
        if let Some(name) = rules.iter().filter_map(|rule| rule.solver.as_deref()).find(|name| !names.contains(name)) {
            return Err(format!("a rule is for \"{name}\", but the solvers are {}", names.join(", ")));
        }
        Ok(Filter { tallies, rules })
    }

    pub fn tallies(&self) -> &[Tally] {
        &self.tallies
    }

    /// The row of a problem, ready to be sampled by the next solver, or why it does not go on.
    ///
    /// The row keeps its fields, but for prompts that `limo-engine sample` would read before `problem`. `solved` gets a solver's
    /// counts and rate; those of earlier stages stay.
    ///
    /// Errors: what is wrong with the row.
    pub fn request(&self, row: &Value) -> Result<Result<Value, Reason>, String> {
        let row = row.as_object().ok_or_else(|| format!("a row is an object, this is {}", kind(row)))?;
        let id = id(row)?;
        if row.get("problem").and_then(Value::as_str).is_none_or(|problem| problem.trim().is_empty()) {
            return Err("no \"problem\", or no text in it".into());
        }
        if let Some(reason) = self.rules.iter().find_map(|rule| self.broken(rule, &id)) {
            return Ok(Err(reason));
        }
        let mut row = row.clone();
        row.retain(|field, _| !["messages", "conversations", "instruction", "prompt", "question"].contains(&field.as_str()));
        let solved = row.entry("solved").or_insert_with(|| json!({}));
        let solved = solved.as_object_mut().ok_or("\"solved\" must be an object")?;
        for tally in &self.tallies {
            let count = tally.count(&id);
            if count.samples > 0 {
                let value = json!({"correct": count.correct, "samples": count.samples, "rate": count.rate()});
                solved.insert(tally.solver.clone(), value);
            }
        }
        Ok(Ok(Value::from(row)))
    }

    fn broken(&self, rule: &Rule, id: &str) -> Option<Reason> {
        let Rule { least, most, of, .. } = *rule;
        let concerned = self.tallies.iter().filter(|tally| rule.solver.as_ref().is_none_or(|name| *name == tally.solver));
        concerned.into_iter().find_map(|tally| {
            let (solver, count) = (tally.solver.clone(), tally.count(id));
            if count.samples == 0 || of.is_some_and(|of| of != count.samples) {
                return Some(Reason::Samples { solver, count, of });
            }
            (!(least..=most).contains(&count.correct)).then_some(Reason::Range { solver, count, least, most })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tally(solver: &str, graded: &[(Value, &[bool])]) -> Tally {
        let mut tally = Tally::new(solver);
        for (id, samples) in graded {
            for (number, correct) in samples.iter().enumerate() {
                tally.add(&json!({"id": id, "sample": number, "correct": correct})).unwrap();
            }
        }
        tally
    }

    fn filter(tallies: Vec<Tally>, rules: &[&str]) -> Filter {
        Filter::new(tallies, rules.iter().map(|rule| rule.parse().unwrap()).collect()).unwrap()
    }

    fn decide(filter: &Filter, id: Value) -> String {
        match filter.request(&json!({"id": id, "problem": "P"})).unwrap() {
            Ok(_) => "goes on".into(),
            Err(reason) => reason.to_string(),
        }
    }

    #[test]
    fn rules_are_read() {
        let rule = |solver: Option<&str>, least, most, of| Ok(Rule { solver: solver.map(str::to_string), least, most, of });
        let cases = [
            ("0..=0", rule(None, 0, 0, None)),
            ("1..=3 of 32", rule(None, 1, 3, Some(32))),
            ("qwen=0..=0 of 4", rule(Some("qwen"), 0, 0, Some(4))),
            ("a=b=1 ..= 2", rule(Some("a=b"), 1, 2, None)),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse(), expected, "{text}");
        }
        for text in [
            "",
            "0",
            "0..1",
            "0..=",
            "..=1",
            "3..=1",
            "=0..=0",
            "0..=5 of 4",
            "0..=0 of 0",
            "-1..=0",
            "0..=0 of x",
            "0..=99999999999",
        ] {
            assert!(text.parse::<Rule>().is_err(), "{text}");
        }
    }

    #[test]
    fn two_stages_keep_what_is_hard_but_not_hopeless() {
        let qwen =
            tally("qwen", &[(json!(1), &[false; 4]), (json!("2"), &[true, false, false, false]), (json!("3"), &[false; 3])]);
        let first = filter(vec![qwen], &["qwen=0..=0 of 4"]);
        assert_eq!(decide(&first, json!("1")), "goes on");
        assert_eq!(decide(&first, json!(2)), "1 of 4 correct by qwen, outside of 0..=0");
        assert_eq!(decide(&first, json!(3)), "3 samples of qwen, the rule needs 4");
        assert_eq!(decide(&first, json!(4)), "no samples of qwen");
        let row = json!({"id": 1, "problem": "P", "answer": "7", "question": "Q"});
        let request = first.request(&row).unwrap().unwrap();
        let qwen = json!({"correct": 0, "samples": 4, "rate": 0.0});
        assert_eq!(request, json!({"id": 1, "problem": "P", "answer": "7", "solved": {"qwen": qwen}}));
        let second = filter(vec![tally("r1", &[(json!(1), &[true, false, true, false])])], &["1..=3"]);
        let r1 = json!({"correct": 2, "samples": 4, "rate": 0.5});
        assert_eq!(second.request(&request).unwrap().unwrap()["solved"], json!({"qwen": qwen, "r1": r1}));
    }

    #[test]
    fn a_rule_without_a_name_is_for_every_solver() {
        let both = || vec![tally("a", &[(json!(1), &[false])]), tally("b", &[(json!(1), &[true])])];
        assert_eq!(decide(&filter(both(), &["0..=0"]), json!(1)), "1 of 1 correct by b, outside of 0..=0");
        assert_eq!(decide(&filter(both(), &["a=0..=0", "b=1..=1"]), json!(1)), "goes on");
        assert!(Filter::new(both(), vec!["c=0..=0".parse().unwrap()]).unwrap_err().contains("a, b"));
        assert!(Filter::new(vec![Tally::new("a"), Tally::new("a")], vec![]).unwrap_err().contains("\"a\""));
    }

    #[test]
    fn broken_rows_are_named() {
        let mut tally = Tally::new("a");
        tally.add(&json!({"id": 1, "sample": 0, "correct": true})).unwrap();
        let cases = [
            (json!(5), "a row is an object, this is a number"),
            (json!({"correct": true}), "no \"id\""),
            (json!({"id": [], "correct": true}), "\"id\" must be a string or a number, but is a list"),
            (json!({"id": 1}), "no \"correct\": grade the samples first"),
            (json!({"id": 1, "correct": 1}), "\"correct\" must be true or false, but is a number"),
            (json!({"id": 1, "sample": -1, "correct": true}), "\"sample\" must be a whole number from 0"),
            (
                json!({"id": "1", "sample": 0, "correct": true}),
                "sample 0 of this problem was there before; samples of another model belong in a file of their own",
            ),
        ];
        for (row, expected) in cases {
            assert_eq!(tally.add(&row).unwrap_err(), expected, "{row}");
        }
        assert_eq!(tally.count("1"), Count { correct: 1, samples: 1 });
        let filter = filter(vec![tally], &[]);
        assert!(filter.request(&json!({"id": 1, "problem": " "})).is_err());
        assert!(filter.request(&json!({"id": 1, "problem": "P", "solved": 1})).is_err());
    }

    proptest! {
        #[test]
        fn what_goes_on_obeys_the_rule(samples in prop::collection::vec(any::<bool>(), 0..9), least in 0u32..9, width in 0u32..9, of in prop::option::of(1u32..9)) {
            let rule = Rule { solver: None, least, most: least + width, of };
            let filter = Filter::new(vec![tally("a", &[(json!(1), &samples)])], vec![rule]).unwrap();
            let correct = samples.iter().filter(|correct| **correct).count() as u32;
            let complete = !samples.is_empty() && of.is_none_or(|of| of == samples.len() as u32);
            let expected = complete && (least..=least + width).contains(&correct);
            prop_assert_eq!(decide(&filter, json!(1)) == "goes on", expected);
        }

        #[test]
        fn any_text_is_a_rule_or_refused(text in r"(\PC|[0-9]|\.\.=| of |=){0,8}") {
            _ = text.parse::<Rule>();
        }
    }
}
