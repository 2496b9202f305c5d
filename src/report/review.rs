//! The page on which a person accepts, edits or rejects chains, and saves what was decided as rows.

use super::page::escaped;
use serde_json::{Map, Value, json};

/// A chain to look at.
#[derive(Debug, Clone)]
pub struct Review<'a> {
    /// Leads from a decision back to its chain.
    pub key: &'a str,
    pub problem: &'a str,
    pub chain: &'a str,
    /// What else is known: names and values.
    pub facts: Vec<(String, String)>,
    /// What was decided before: `decision` and, if edited, `solution`.
    pub decision: Option<&'a Map<String, Value>>,
}

/// The page. It keeps decisions in the browser until they are saved: rows of key, decision (accept, edit, reject) and, if edited, solution. `others` are earlier rows
/// of chains that are not on the page; they are saved too.
pub fn review(title: &str, items: &[Review], others: &[&Map<String, Value>]) -> String {
    let rows: Vec<_> = items
        .iter()
        .map(|item| json!({"key": item.key, "problem": item.problem, "chain": item.chain, "facts": item.facts, "decision": item.decision}))
        .collect();
    // Within a script nothing but its end is special, and JSON has another way to write it.
    let rows = json!({"rows": rows, "others": others}).to_string().replace('<', "\\u003c");
    include_str!("review.html")
        .replace("{{title}}", &escaped(title))
        .replace("{{style}}", include_str!("report.css"))
        .replace("{{rows}}", &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_cannot_leave_its_place() {
        let hostile = "</script><script>alert(1)</script><!-- {{rows}} & \"'";
        let item = Review {
            key: hostile,
            problem: hostile,
            chain: hostile,
            facts: vec![(hostile.into(), hostile.into())],
            decision: None,
        };
        let html = review(hostile, &[item], &[]);
        assert!(!html.contains("<script>alert") && !html.contains("<!-- {{"));
        assert_eq!(html.matches("</script>").count(), 2, "the rows and the program");
        let start = html.find("id=\"rows\">").unwrap() + "id=\"rows\">".len();
        let rows: serde_json::Value =
            serde_json::from_str(&html[start..start + html[start..].find("</script>").unwrap()]).unwrap();
        assert_eq!(rows["rows"][0]["chain"], hostile);
    }
}
