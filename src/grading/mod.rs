//! Judging answers.

/// The contents of the last `\boxed{…}` of a response, braces matched. None without one, or if its braces never close.
pub fn boxed_answer(response: &str) -> Option<&str> {
    const OPEN: &str = "\\boxed{";
    let content = &response[response.rfind(OPEN)? + OPEN.len()..];
    let mut depth = 1usize;
    for (at, c) in content.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&content[..at]);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::boxed_answer;

    #[test]
    fn last_box_with_matched_braces() {
        assert_eq!(boxed_answer(r"so \boxed{1}, no: \boxed{\frac{1}{2}}."), Some(r"\frac{1}{2}"));
        assert_eq!(boxed_answer(r"\boxed{27}"), Some("27"));
        assert_eq!(boxed_answer(r"\boxed{}"), Some(""));
        assert_eq!(boxed_answer(r"\boxed{\frac{1}{2}"), None);
        assert_eq!(boxed_answer("the answer is 27"), None);
        assert_eq!(boxed_answer(r"\boxed{é}"), Some("é"));
    }
}
