//! What may be shown of text that others wrote.

/// Text without control characters, which could do anything to a terminal. Line ends and tabs stay.
pub fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' || turns(c) { '\u{fffd}' } else { c }).collect()
}

/// Whether a character changes the direction of text: what follows would be shown in another order than it is in.
fn turns(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
