//! A judge's view of a chain, by the three criteria of LIMO's authors: structure, scaffolding, verification, each from 1 to 5.

use super::fields::shortened;
use serde::{Deserialize, Serialize};

/// What a judge said of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verdict {
    pub structure: u8,
    pub scaffolding: u8,
    pub verification: u8,
}

impl Verdict {
    pub fn mean(&self) -> f64 {
        f64::from(self.structure + self.scaffolding + self.verification) / 3.0
    }
}

pub const SYSTEM: &str = "You judge how well a solution to a mathematical problem is reasoned and written. You do not solve the problem, and you do not judge whether the final answer is right.";

/// What the judge is asked of a chain.
pub fn question(problem: &str, chain: &str) -> String {
    format!(
        "Judge the solution below by three criteria, each with a whole number from 1 (poor) to 5 (excellent).\n\
         - structure: it is organised in steps, with more detail where a step is hard and less where it is easy.\n\
         - scaffolding: hard ideas are introduced gradually, each step rests on those before it.\n\
         - verification: intermediate results are checked, assumptions are confirmed, mistakes are noticed and mended.\n\n\
         Think first, in a few sentences. Then write as the last line one JSON object and nothing else, in this form:\n\
         {{\"structure\": 3, \"scaffolding\": 3, \"verification\": 3}}\n\n\
         <problem>\n{problem}\n</problem>\n\n<solution>\n{chain}\n</solution>"
    )
}

/// Reads a verdict strictly: the last line that is not empty must be the JSON object that was asked for, and nothing else.
pub fn read(answer: &str) -> Result<Verdict, String> {
    let last = answer.trim_end().lines().next_back().unwrap_or("").trim();
    let verdict: Verdict = serde_json::from_str(last).map_err(|_| format!("the last line is no verdict: {}", quoted(last)))?;
    match [verdict.structure, verdict.scaffolding, verdict.verification].iter().all(|grade| (1..=5).contains(grade)) {
        true => Ok(verdict),
        false => Err(format!("grades are from 1 to 5: {}", quoted(last))),
    }
}

fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text, 80))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read_strictly() {
        let verdict = Verdict { structure: 4, scaffolding: 1, verification: 5 };
        for answer in [
            r#"{"structure": 4, "scaffolding": 1, "verification": 5}"#,
            "It is fine. {\"structure\": 1}\n\n  {\"verification\":5,\"structure\":4,\"scaffolding\":1}  \n\n",
        ] {
            assert_eq!(read(answer), Ok(verdict));
        }
        for answer in [
            "",
            "4 1 5",
            r#"{"structure": 4, "scaffolding": 1}"#,
            r#"{"structure": 4, "scaffolding": 1, "verification": 6}"#,
            r#"{"structure": 0, "scaffolding": 1, "verification": 5}"#,
            r#"{"structure": 4.5, "scaffolding": 1, "verification": 5}"#,
            r#"{"structure": "4", "scaffolding": 1, "verification": 5}"#,
            r#"{"structure": 4, "scaffolding": 1, "verification": 5, "overall": 3}"#,
            r#"{"structure": 4, "structure": 3, "scaffolding": 1, "verification": 5}"#,
            r#"Verdict: {"structure": 4, "scaffolding": 1, "verification": 5}"#,
            "{\"structure\": 4, \"scaffolding\": 1, \"verification\": 5}\nThat is all.",
        ] {
            assert!(read(answer).is_err(), "{answer}");
        }
        assert!(read(&"é".repeat(1000)).unwrap_err().len() < 250);
    }
}
