//! `limo` mode: the rule grader that LIMO's published numbers were made with, its leniencies included.
//!
//! It accepts 2 = 200, 50 = 0.5, [0,1) = (0,1], 1,2 = 2,1 and x+a = x+c. Where the published code asks a computer algebra
//! system, the parser and identity test of strict mode answer.

mod strip;
mod words;

use super::strict::Symbolic;
use std::borrow::Cow;
use std::cell::Cell;
use std::sync::OnceLock;
use strip::strip;

/// The longest answer that is looked at, in bytes.
const MAX_TEXT: usize = 8192;
/// Symbolic comparisons for one pair of answers, so that long lists end in time.
const MAX_SYMBOLIC: usize = 64;
const MAX_DEPTH: usize = 5;

/// What follows the last "boxed" of a response: the content of its braces, else the text up to the next dollar sign.
pub fn extract(response: &str) -> Option<String> {
    let rest = &response[response.rfind("boxed")? + "boxed".len()..];
    let content = match rest.strip_prefix('{') {
        Some(inner) => {
            let mut depth = 1usize;
            let end = inner.char_indices().find_map(|(at, c)| {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                (depth == 0).then_some(at)
            });
            &inner[..end.unwrap_or(inner.len())]
        }
        None => rest.split('$').next().unwrap_or_default().trim(),
    };
    let lines: Vec<&str> =
        content.split('\n').enumerate().map(|(i, line)| if i == 0 { line } else { line.trim_start() }).collect();
    let joined = lines.concat();
    let text = joined.strip_prefix(':').unwrap_or(&joined);
    let text = text.strip_suffix('.').unwrap_or(text);
    Some(text.strip_suffix('/').unwrap_or(text).to_string())
}

/// An answer in the form that is compared, read once for many comparisons.
#[derive(Debug, Clone)]
pub struct Answer {
    /// As it is if it is too long.
    stripped: String,
    too_long: bool,
    /// All of it as an expression, once one is asked for.
    symbolic: OnceLock<Option<Symbolic>>,
}

impl Answer {
    pub fn parse(text: &str) -> Answer {
        let too_long = text.len() > MAX_TEXT;
        let stripped = if too_long { text.to_string() } else { strip(text) };
        Answer { stripped, too_long, symbolic: OnceLock::new() }
    }

    /// Whether LIMO's rules take this answer for `gold`. Texts that are too long are equal to themselves alone.
    pub fn equals(&self, gold: &Answer) -> bool {
        if self.too_long || gold.too_long {
            return self.stripped == gold.stripped;
        }
        let grader = Grader { sides: [self, gold], symbolic_left: Cell::new(MAX_SYMBOLIC) };
        grader.equal(&self.stripped, &gold.stripped, 0)
    }
}

/// Whether LIMO's rules take `prediction` for `gold`.
pub fn is_equal(prediction: &str, gold: &str) -> bool {
    Answer::parse(prediction).equals(&Answer::parse(gold))
}

struct Grader<'a> {
    sides: [&'a Answer; 2],
    symbolic_left: Cell<usize>,
}

/// The last of the letters A–E that stands alone.
fn choice_letter(text: &str) -> Option<char> {
    let upper: Vec<char> = text.to_uppercase().chars().collect();
    let word = |i: Option<usize>| i.and_then(|i| upper.get(i)).is_some_and(|c| c.is_alphanumeric() || *c == '_');
    (0..upper.len())
        .rev()
        .find(|&at| matches!(upper[at], 'A'..='E') && !word(at.checked_sub(1)) && !word(Some(at + 1)))
        .map(|at| upper[at])
}

/// A prediction without the option label at its start: (A) A. A) **A** A:
fn without_label(text: &str) -> Option<&str> {
    let (prefix, suffixes): (&str, &[&str]) = match text.chars().next()? {
        '(' => ("(", &[")"]),
        '*' => ("**", &["**"]),
        _ => ("", &[".", ")", ":"]),
    };
    let rest = text.strip_prefix(prefix)?.strip_prefix(|c| matches!(c, 'A'..='E'))?;
    suffixes.iter().find_map(|suffix| rest.strip_prefix(suffix)).map(str::trim)
}

/// A number with thousands separators, underscores between digits, or a per cent sign.
fn number(text: &str) -> Option<f64> {
    // Python reads full-width digits too.
    let ascii = |c: char| if matches!(c, '０'..='９') { char::from_u32(c as u32 - 0xFEE0).unwrap_or(c) } else { c };
    let text: String = text.chars().filter(|c| *c != ',').map(ascii).collect();
    let float = |text: &str| {
        let text = text.trim();
        let bytes = text.as_bytes();
        let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
        let grouped = (0..bytes.len()).filter(|i| bytes[*i] == b'_').all(|i| i > 0 && digit(i - 1) && digit(i + 1));
        if grouped { text.replace('_', "").parse::<f64>().ok() } else { None }
    };
    float(&text).or_else(|| float(text.strip_suffix('%')?.trim_end_matches('\\')).map(|value| value / 100.0))
}

fn close(a: f64, b: f64) -> bool {
    a == b || (a - b).abs() <= 1e-4f64.max(1e-9 * a.abs().max(b.abs())) && a.is_finite() && b.is_finite()
}

fn matrix_rows(text: &str) -> Option<Vec<&str>> {
    let inner = text.strip_prefix("\\begin{pmatrix}")?.strip_suffix("\\end{pmatrix}")?;
    Some(inner.split("\\\\").map(str::trim).filter(|row| !row.is_empty()).collect())
}

/// {a,b} as the published code spells a matrix of it.
fn set_as_matrix(text: &str) -> String {
    match (text.find('{'), text.rfind('}')) {
        (Some(start), Some(end)) if start < end && text[start..end].contains(',') => {
            format!("\\begin{{pmatrix}}{}\\end{{pmatrix}}", text[start..=end].trim_matches(['{', '}']).replace(',', "\\"))
        }
        _ => String::new(),
    }
}

/// Whether the text is one pair of brackets, of any kind, around something.
fn is_bracketed(text: &str) -> bool {
    text.starts_with(['(', '[']) && text.rfind([')', ']']).is_some_and(|end| end >= 2)
}

/// The text without its first and last character.
fn inside(text: &str) -> &str {
    let mut chars = text.chars();
    chars.next();
    chars.next_back();
    chars.as_str()
}

impl Grader<'_> {
    fn equal(&self, prediction: &str, gold: &str, depth: usize) -> bool {
        if depth > MAX_DEPTH {
            return false;
        }
        let again = |a: &str, b: &str| self.equal(a, b, depth + 1);
        let pairs = |a: &[&str], b: &[&str]| a.len() == b.len() && a.iter().zip(b).all(|(a, b)| again(a, b));
        if prediction.trim().to_lowercase() == gold.trim().to_lowercase() {
            return true;
        }
        if let Some(letter) = matches!(gold, "A" | "B" | "C" | "D" | "E").then(|| choice_letter(prediction)).flatten()
            && gold.starts_with(letter)
        {
            return true;
        }
        if without_label(prediction).is_some_and(|rest| again(rest, gold)) {
            return true;
        }
        if prediction.contains(',') && gold.contains(',') {
            let sorted = |text: &'_ str| -> Vec<String> {
                let mut parts: Vec<String> = text.split(',').map(|part| part.trim().to_string()).collect();
                parts.sort();
                parts
            };
            let (a, b) = (sorted(prediction), sorted(gold));
            let (a, b): (Vec<&str>, Vec<&str>) =
                (a.iter().map(String::as_str).collect(), b.iter().map(String::as_str).collect());
            if pairs(&a, &b) {
                return true;
            }
        }
        if let (Some(a), Some(b)) = (number(prediction), number(gold)) {
            return [b / 100.0, b, b * 100.0].into_iter().any(|b| close(a, b));
        }
        if prediction.is_empty() {
            return false;
        }
        let (prediction, mut gold) = (prediction.trim(), gold.trim().to_string());
        if prediction.contains("pmatrix") && !gold.contains("pmatrix") {
            gold = set_as_matrix(&gold);
        }
        let gold = gold.as_str();
        if self.equal_without_brackets(prediction, gold) {
            return true;
        }
        if is_bracketed(prediction) && is_bracketed(gold) {
            let parts = |text| inside(text).split(',').collect::<Vec<_>>();
            if pairs(&parts(prediction), &parts(gold)) {
                return true;
            }
        }
        if let (Some(a), Some(b)) = (matrix_rows(prediction), matrix_rows(gold)) {
            let cells = |row: &'_ str| row.split('&').map(str::to_string).collect::<Vec<_>>();
            let same_row = |(a, b): (&&str, &&str)| {
                let (a, b) = (cells(a), cells(b));
                a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| again(a, b))
            };
            if a.len() == b.len() && a.iter().zip(&b).all(same_row) {
                return true;
            }
        }
        let sides = |text: &'_ str| match text.split('=').collect::<Vec<_>>().as_slice() {
            [left, right] => Some((left.trim().to_string(), right.trim().to_string())),
            _ => None,
        };
        let short = |left: &str| left.chars().count() <= 2;
        let by_sides = match (sides(prediction), sides(gold)) {
            (Some((a, b)), Some((c, d))) => {
                let (left, right) = (format!("{a} - ({b})"), format!("{c} - ({d})"));
                self.symbolic(&left, &right) || self.symbolic(&format!("-({left})"), &right)
            }
            (Some((left, right)), None) if short(&left) && !gold.contains('=') => again(&right, gold),
            (None, Some((left, right))) if short(&left) && !prediction.contains('=') => again(prediction, &right),
            _ => false,
        };
        by_sides || self.symbolic(prediction, gold) || self.equal_sets(prediction, gold, depth)
    }

    /// {1,2} is a set to Python, into which SymPy's second parser puts it.
    fn equal_sets(&self, prediction: &str, gold: &str, depth: usize) -> bool {
        let set = |text: &'_ str| -> Option<Vec<String>> {
            let inner = text.strip_prefix('{')?.strip_suffix('}')?;
            (!inner.contains(['\\', '{', '}'])).then(|| inner.split(',').map(str::to_string).collect())
        };
        let (Some(a), Some(b)) = (set(prediction), set(gold)) else { return false };
        let within = |a: &[String], b: &[String]| a.iter().all(|x| b.iter().any(|y| self.equal(x, y, depth + 1)));
        a.len().max(b.len()) <= MAX_SYMBOLIC && within(&a, &b) && within(&b, &a)
    }

    fn equal_without_brackets(&self, prediction: &str, gold: &str) -> bool {
        let (mut a, mut b) = (prediction, gold);
        let wrapped = |open, close| prediction.starts_with(open) && prediction.ends_with(close);
        if wrapped('[', ']') && !gold.starts_with('(') || wrapped('(', ')') && !gold.starts_with('[') {
            let brackets = ['[', ']', '(', ')'];
            (a, b) = (a.trim_matches(brackets), b.trim_matches(brackets));
        }
        a.replace(['{', '}', '(', ')'], "").to_lowercase() == b.replace(['{', '}', '(', ')'], "").to_lowercase()
    }

    fn symbolic(&self, a: &str, b: &str) -> bool {
        let Some(left) = self.symbolic_left.get().checked_sub(1) else { return false };
        self.symbolic_left.set(left);
        let parse = |text: &str| match self.sides.iter().find(|side| side.stripped.trim() == text) {
            Some(side) => Cow::Borrowed(side.symbolic.get_or_init(|| Symbolic::parse(text))),
            None => Cow::Owned(Symbolic::parse(text)),
        };
        let (a, b) = (parse(a), parse(b));
        let (Some(a), Some(b)) = (&*a, &*b) else { return false };
        a.equals(b) || matches!((a.value(), b.value()), (Some(a), Some(b)) if close(a, b))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extraction_takes_what_follows_the_last_box() {
        assert_eq!(extract(r"\boxed{1} \boxed{\frac{1}{2}.}").as_deref(), Some(r"\frac{1}{2}"));
        assert_eq!(extract(r"$\boxed 5$ more").as_deref(), Some("5"));
        assert_eq!(extract(r"\boxed{1 + {2").as_deref(), Some("1 + {2"));
        assert_eq!(extract("none"), None);
    }

    #[test]
    fn its_leniencies_are_kept() {
        for (prediction, gold) in [
            ("200", "2"),
            ("0.5", "50"),
            ("(0,1]", "[0,1)"),
            ("2,1", "1,2"),
            ("x+c", "x+a"),
            ("0.33333", "1/3"),
            ("528", "52_8"),
            ("(B)", "B"),
            ("five apples", "5"),
        ] {
            assert!(is_equal(prediction, gold), "{prediction} = {gold}");
        }
        for (prediction, gold) in [("3", "4"), ("0.3333", "1/4"), ("x+1", "x+2"), ("", "5"), ("(1,2)", "(1,3)"), ("C", "B")] {
            assert!(!is_equal(prediction, gold), "{prediction} ≠ {gold}");
        }
    }
}
