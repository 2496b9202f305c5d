//! The published normalisation of an answer, step for step.

use super::words::{MONTHS, UNITS, number_in_words};
use std::sync::LazyLock;

static UNITS_AND_PLURALS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let plurals = UNITS.split('|').map(|unit| format!("{unit}s"));
    UNITS.split('|').map(str::to_string).chain(plurals).collect()
});

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The rest of `text` after `pattern`, whose dots stand for any character.
fn after<'a>(text: &'a str, pattern: &str) -> Option<&'a str> {
    let mut rest = text.chars();
    for p in pattern.chars() {
        let c = rest.next()?;
        if p != '.' && p != c {
            return None;
        }
    }
    Some(rest.as_str())
}

/// Removes `pattern` wherever it has a non-word character or an end of the text on both sides. A match uses up both
/// characters, so of two neighbours that share one the second stays.
fn without_word(text: &str, pattern: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut first = true;
    let closes = |tail: &str| tail.chars().next().is_none_or(|c| !is_word(c));
    while let Some(c) = rest.chars().next() {
        let from_start = if first { after(rest, pattern).filter(|tail| closes(tail)) } else { None };
        let after_boundary = || after(&rest[c.len_utf8()..], pattern).filter(|tail| !is_word(c) && closes(tail));
        let (kept, tail) = match from_start {
            Some(tail) => (None, Some(tail)),
            None => (Some(c), after_boundary()),
        };
        first = false;
        out.extend(kept);
        rest = match (tail, kept) {
            (Some(tail), _) => {
                let boundary = tail.chars().next();
                out.extend(boundary);
                &tail[boundary.map_or(0, char::len_utf8)..]
            }
            (None, _) => &rest[c.len_utf8()..],
        };
    }
    out
}

/// Removes the first `open` … `close`, as often as it occurs, keeping what is inside if asked.
fn unwrap(text: &str, open: &str, close: char, keep: bool) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(open)
        && let Some((inside, tail)) = after.split_once(close)
    {
        out += before;
        if keep {
            out += inside;
        }
        rest = tail;
    }
    out + rest
}

fn without_months(text: &str) -> String {
    let mut text = text.to_string();
    for month in MONTHS {
        let mut from = 0;
        while let Some(at) = text.to_ascii_lowercase().get(from..).and_then(|t| t.find(&month.to_ascii_lowercase())) {
            let (start, end) = (from + at, from + at + month.len());
            let inner = text[..start].ends_with(is_word) || text[end..].starts_with(is_word);
            if !inner {
                text.replace_range(start..end, "");
            }
            from = if inner { end } else { start };
        }
    }
    text
}

/// 27.0 and 27. lose their point and zeros.
fn without_zero_decimals(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(dot) = rest.find('.') {
        let after = rest[dot + 1..].trim_start_matches('0');
        let whole = rest[..dot].ends_with(|c: char| c.is_numeric());
        let fraction = after.starts_with(|c: char| c.is_numeric());
        if whole && !fraction {
            out += &rest[..dot];
            rest = after;
        } else {
            out += &rest[..=dot];
            rest = &rest[dot + 1..];
        }
    }
    out + rest
}

/// \sqrt2 → \sqrt{2}: all word characters that follow are the radicand.
fn with_root_braces(text: &str) -> String {
    let mut pieces = text.split("\\sqrt");
    let mut out = pieces.next().unwrap_or_default().to_string();
    for piece in pieces {
        let end = piece.find(|c| !is_word(c)).unwrap_or(piece.len());
        let (radicand, rest) = piece.split_at(end);
        out += "\\sqrt";
        if !radicand.is_empty() {
            out += &format!("{{{radicand}}}");
        }
        out += rest;
    }
    out
}

/// \frac12, \frac1{2} → \frac{1}{2}.
fn with_fraction_braces(text: &str) -> String {
    let mut pieces = text.split("\\frac");
    let mut out = pieces.next().unwrap_or_default().to_string();
    for piece in pieces {
        out += "\\frac";
        let mut chars = piece.chars();
        match (chars.next(), chars.next()) {
            (Some('{'), _) => out += piece,
            (Some(a), Some('{')) => out += &format!("{{{a}}}{{{}", chars.as_str()),
            (Some(a), Some(b)) => out += &format!("{{{a}}}{{{b}}}{}", chars.as_str()),
            _ => return text.to_string(),
        }
    }
    out
}

/// 3/4 → \frac{3}{4}, for integers and roots.
fn with_slash_as_fraction(text: &str) -> String {
    let Some((a, b)) = text.split_once('/') else { return text.to_string() };
    let plain = |part: &str| part.contains("sqrt") || part.parse::<i64>().is_ok_and(|n| n.to_string() == part);
    if plain(a) && plain(b) && !b.contains('/') { format!("\\frac{{{a}}}{{{b}}}") } else { text.to_string() }
}

/// The normal form in which two answers are compared.
pub fn strip(text: &str) -> String {
    let mut s = text.trim().replace('\n', "");
    s.truncate(s.trim_end_matches('.').len());
    s = s.replace("\\!", "");
    while let Some((before, after)) = s.split_once("\\begin{array}{")
        && let Some((_, tail)) = after.split_once('}')
    {
        s = format!("{before}\\begin{{pmatrix}}{tail}");
    }
    for (from, to) in [
        ("\\end{array}", "\\end{pmatrix}"),
        ("bmatrix", "pmatrix"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\neq", "\\ne"),
        ("\\leq", "\\le"),
        ("\\geq", "\\ge"),
        ("\\left", ""),
        ("\\right", ""),
        ("\\{", "{"),
        ("\\}", "}"),
    ] {
        s = s.replace(from, to);
    }
    // A trailing \text{…}, from the first one on.
    if s.ends_with('}')
        && let Some((before, _)) = s.split_once("\\text{")
        && !before.trim().is_empty()
    {
        s = before.trim().to_string();
    }
    // Every unit has a letter.
    let units = if s.contains(char::is_alphabetic) { UNITS_AND_PLURALS.as_slice() } else { &[] };
    for unit in units {
        let certain = unit.split('.').next().unwrap_or_default();
        if s.contains(certain) {
            let without = without_word(&s, unit);
            s = if without.is_empty() { s } else { without };
        }
    }
    for removed in ["^{\\circ}", "^\\circ", "\\$", "$", "\\(", "\\)"] {
        s = s.replace(removed, "");
    }
    s = number_in_words(&s).unwrap_or(s);
    s = unwrap(&s, "\\text{", '}', true);
    for head in ["x=", "y=", "z=", "x\\in", "y\\in", "z\\in", "x\\to", "y\\to", "z\\to"] {
        s = s.replace(head, "");
    }
    s = s.replace("\\emptyset", "{}").replace("(-\\infty,\\infty)", "\\mathbb{R}").replace("\\%", "").replace('%', "");
    s = without_months(&s).replace(" .", " 0.").replace("{.", "{0.").replace("infinity", "\\infty");
    if !s.contains("\\infty") {
        s = s.replace("inf", "\\infty");
    }
    s = unwrap(&s.replace("and", "").replace("\\mathbf", ""), "\\mbox{", '}', false);
    if s.contains('j') && !s.contains('i') {
        s = s.replace('j', "i");
    }
    s = without_zero_decimals(&s);
    if s.starts_with('.') {
        s.insert(0, '0');
    }
    let sides: Vec<&str> = s.split('=').collect();
    if let [left, right] = sides.as_slice()
        && left.chars().count() <= 2
    {
        s = right.to_string();
    }
    s = with_root_braces(&s).replace(' ', "");
    with_slash_as_fraction(&with_fraction_braces(&s))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_the_normalisation() {
        for (text, expected) in [
            ("025", "25"),
            ("27.0", "27"),
            ("1.50", "1.50"),
            ("\\dfrac12.", "\\frac{1}{2}"),
            ("\\frac1{72}", "\\frac{1}{72}"),
            ("3/4", "\\frac{3}{4}"),
            ("03/4", "03/4"),
            ("11\\sqrt2", "11\\sqrt{2}"),
            ("864 \\mbox{ inches}^2", "864^2"),
            ("90^\\circ", "90"),
            ("15 cm", "15"),
            ("x+a", "x+"),
            ("5 \\text{ apples}", "5"),
            ("\\text{Evelyn}", "Evelyn"),
            ("twenty-five", "25"),
            ("two hundred apples", "200"),
            ("x = 5", "5"),
            ("\\$32,\\!348", "32,348"),
            ("50\\%", "50"),
            (".5", "0.5"),
            ("May 5", "5"),
            ("3j", "3i"),
            ("m", "m"),
            ("a a", "a"),
        ] {
            assert_eq!(strip(text), expected, "{text}");
        }
    }
}
