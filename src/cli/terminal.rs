//! What may be shown of text that others wrote.

/// Text without control characters, which could do anything to a terminal. Line ends and tabs stay.
pub fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}
