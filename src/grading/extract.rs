//! Where in a response its final answer is.

/// The contents of the last `\boxed{…}` or `\fbox{…}` of a response, braces matched; of `\boxed 5`, the 5. None without
/// one, or if its braces never close.
pub fn boxed_answer(response: &str) -> Option<&str> {
    let start = ["\\boxed", "\\fbox"].iter().filter_map(|open| Some(response.rfind(open)? + open.len())).max()?;
    let rest = response[start..].trim_start();
    match rest.strip_prefix('{') {
        Some(content) => braced(content),
        None => {
            let end = rest.find(|c: char| c.is_whitespace() || "$,;".contains(c)).unwrap_or(rest.len());
            let word = rest[..end].trim_end_matches('.');
            (!word.is_empty()).then_some(word)
        }
    }
}

/// The text before the brace that closes the one before `content`.
fn braced(content: &str) -> Option<&str> {
    let mut depth = 1usize;
    let mut escaped = false;
    for (at, c) in content.char_indices() {
        match c {
            _ if escaped => {}
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        escaped = c == '\\' && !escaped;
        if depth == 0 {
            return Some(&content[..at]);
        }
    }
    None
}

/// How an answer is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extraction {
    /// The last box alone.
    Boxed,
    /// The last box; without one "the answer is …", then the last mathematics, then the last number.
    Auto,
    /// As `Auto`, for a question with options: the letter after "answer is", or the last letter that stands as an option.
    AutoChoice,
}

/// The part of a response that is searched without a box: its last 64 KiB.
const TAIL: usize = 64 << 10;

/// The final answer of a response. None if nothing looks like one.
pub fn extract(response: &str, extraction: Extraction) -> Option<String> {
    if let Some(answer) = boxed_answer(response) {
        return Some(answer.trim().to_string());
    }
    if extraction == Extraction::Boxed {
        return None;
    }
    let mut start = response.len().saturating_sub(TAIL);
    while !response.is_char_boundary(start) {
        start += 1;
    }
    let response = &response[start..];
    let phrase = after_phrase(response);
    if extraction == Extraction::AutoChoice {
        return phrase.and_then(first_letter).or_else(|| last_letter(response)).map(String::from);
    }
    phrase.or_else(|| last_mathematics(response)).or_else(|| last_number(response)).map(str::to_string)
}

/// Phrases that an answer follows. The last one in the text counts.
const PHRASES: &[&str] = &[
    "answer is",
    "answer:",
    "answer :",
    "answer：",
    "answer**:",
    "answer:**",
    "答案是",
    "答案为",
    "答案：",
    "答案:",
    "答案**：",
    "故选",
    "应选",
];

fn after_phrase(response: &str) -> Option<&str> {
    // ASCII lower case keeps every byte where it is.
    let lower = response.to_ascii_lowercase();
    let start = PHRASES.iter().filter_map(|phrase| Some(lower.rfind(phrase)? + phrase.len())).max()?;
    let rest = response[start..].trim_start_matches(|c: char| c.is_whitespace() || "：:*".contains(c));
    let rest = rest.strip_prefix("是").unwrap_or(rest);
    let line = rest.split(['\n', '。']).next()?;
    // Mathematics in delimiters is taken whole; plain text up to the end of its sentence.
    let answer = match first_delimited(line) {
        Some(inner) => inner,
        None => {
            let sentence = line.match_indices(". ").next().map_or(line, |(at, _)| &line[..at]);
            sentence.trim().trim_end_matches(['.', '*', '，', '；', ';', ','])
        }
    };
    (!answer.is_empty()).then_some(answer)
}

const DELIMITERS: &[(&str, &str)] = &[("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$")];

/// The content of the delimiters that a text starts with.
fn first_delimited(text: &str) -> Option<&str> {
    let text = text.trim_start();
    DELIMITERS.iter().find_map(|(open, close)| {
        let inner = text.strip_prefix(open)?;
        let end = inner.find(close)?;
        // What follows decides: "$5$ and $7$" is not one piece.
        let rest = inner[end + close.len()..].trim_matches(|c: char| c.is_whitespace() || ".,;*。".contains(c));
        (rest.is_empty() && end > 0).then(|| inner[..end].trim())
    })
}

/// The content of the last mathematics, display or inline.
fn last_mathematics(text: &str) -> Option<&str> {
    let (mut rest, mut last) = (text, None);
    while let Some(at) = rest.find(['$', '\\']) {
        rest = &rest[at..];
        let inside = DELIMITERS.iter().find_map(|(open, close)| {
            let inner = rest.strip_prefix(open)?;
            let inner = &inner[..inner.find(close)?];
            // A dollar beside a space is a price, as Pandoc has it.
            let price = *open == "$"
                && (inner.is_empty() || inner.starts_with(char::is_whitespace) || inner.ends_with(char::is_whitespace));
            (!price).then_some((inner, open.len() + inner.len() + close.len()))
        });
        last = inside.map(|(inner, _)| inner).or(last);
        rest = &rest[inside.map_or(1, |(_, width)| width)..];
    }
    // Of a chain of equations, the last right side.
    let answer = last?.rsplit('=').next()?.trim_matches(|c: char| c.is_whitespace() || ".,".contains(c));
    (!answer.is_empty()).then_some(answer)
}

/// The last number, with sign, separators and decimals.
fn last_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let end = bytes.iter().rposition(u8::is_ascii_digit)? + 1;
    let part = |at: usize| {
        let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
        digit(at) || matches!(bytes[at], b'.' | b',' | b'/') && digit(at + 1) && (at > 0 && digit(at - 1) || bytes[at] == b'.')
    };
    let mut start = end - 1;
    while start > 0 && part(start - 1) {
        start -= 1;
    }
    if start > 0 && bytes[start - 1] == b'-' && !(start > 1 && bytes[start - 2].is_ascii_alphanumeric()) {
        start -= 1;
    }
    Some(&text[start..end])
}

fn is_option(c: char) -> bool {
    matches!(c, 'A'..='J')
}

/// The option letter that a text starts with: "B", "(B)", "**B**", "$\text{B}$", "option B".
fn first_letter(text: &str) -> Option<char> {
    let text = text.trim_start_matches("option ").trim_start_matches("Option ");
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || "(（*$[{".contains(c));
    let text = text.trim_start_matches("\\text{").trim_start_matches("\\mathrm{").trim_start_matches(['(', '（']);
    let mut chars = text.chars();
    let letter = chars.next().filter(|c| is_option(*c))?;
    (!chars.next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '\'')).then_some(letter)
}

/// The last capital letter that stands alone: in brackets, or at the end. "A" as an article does not.
fn last_letter(text: &str) -> Option<char> {
    let chars: Vec<char> = text.chars().collect();
    (0..chars.len()).rev().find_map(|at| {
        let letter = Some(chars[at]).filter(|c| is_option(*c))?;
        let before = at.checked_sub(1).map(|i| chars[i]);
        let after = chars.get(at + 1).copied();
        let word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '\'' || c == '\\');
        let article = after == Some(' ') && chars.get(at + 2).is_some_and(char::is_ascii_lowercase);
        (!word(before) && !word(after) && !article).then_some(letter)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_box_with_matched_braces() {
        assert_eq!(boxed_answer(r"so \boxed{1}, no: \boxed{\frac{1}{2}}."), Some(r"\frac{1}{2}"));
        assert_eq!(boxed_answer(r"\boxed{27}"), Some("27"));
        assert_eq!(boxed_answer(r"\boxed{}"), Some(""));
        assert_eq!(boxed_answer(r"\boxed{\frac{1}{2}"), None);
        assert_eq!(boxed_answer("the answer is 27"), None);
        assert_eq!(boxed_answer(r"\boxed{é}"), Some("é"));
        assert_eq!(boxed_answer(r"\boxed {3} then \fbox{4}"), Some("4"));
        assert_eq!(boxed_answer(r"so $\boxed 5$."), Some("5"));
        assert_eq!(boxed_answer(r"\boxed{\{1,2\}}"), Some(r"\{1,2\}"));
        assert_eq!(boxed_answer(r"\boxed{\left\{1\right.}"), Some(r"\left\{1\right."));
        assert_eq!(boxed_answer(r"\boxed"), None);
    }

    #[test]
    fn without_a_box_the_next_best_place() {
        let auto = |text| extract(text, Extraction::Auto);
        assert_eq!(extract("The answer is 5.", Extraction::Boxed), None);
        for (text, answer) in [
            (r"\boxed{7} and the answer is 5", "7"),
            ("The answer is 5.", "5"),
            ("The final answer is $\\frac{1}{2}$.", r"\frac{1}{2}"),
            ("Answer: 3.14", "3.14"),
            ("**Answer:** 12 apples. Good.", "12 apples"),
            ("答案是 42。", "42"),
            ("答案为：$x=3$", "x=3"),
            ("So we get $$x = 2 + 3 = 5.$$ Done.", "5"),
            (r"so \(a\) and \[ \frac{3}{4} \] holds", r"\frac{3}{4}"),
            ("first 12, then -3.5", "-3.5"),
            ("it costs 1,234 in all", "1,234"),
            ("10-7", "7"),
            ("half is 1/2", "1/2"),
            ("It is $5$. That is all $", "5"),
            ("It costs $7 and so $x=3$ holds", "3"),
        ] {
            assert_eq!(auto(text).as_deref(), Some(answer), "{text}");
        }
        assert_eq!(auto("no idea"), None);
        assert_eq!(auto(""), None);
    }

    #[test]
    fn option_letters() {
        let choice = |text| extract(text, Extraction::AutoChoice);
        for (text, letter) in [
            ("The answer is (B).", "B"),
            ("The answer is **C**", "C"),
            ("the correct answer is option D: because", "D"),
            ("故选 B", "B"),
            ("A careful look shows that (A) fails, so (J) holds. A proof follows.", "J"),
            (r"\boxed{C}", "C"),
            ("It must be D", "D"),
        ] {
            assert_eq!(choice(text).as_deref(), Some(letter), "{text}");
        }
        assert_eq!(choice("A dog Ate"), None);
    }
}
