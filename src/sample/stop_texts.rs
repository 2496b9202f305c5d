//! Texts at which an answer ends.

use crate::data::Chat;
use crate::error::{Error, Result};

/// The stop texts of a job. Whether an answer has reached one is a function of its tokens.
pub struct StopTexts<'a> {
    chat: &'a Chat,
    texts: &'a [String],
    longest: usize,
}

impl<'a> StopTexts<'a> {
    /// Errors: usage, if a text is empty.
    pub fn new(chat: &'a Chat, texts: &'a [String]) -> Result<StopTexts<'a>> {
        if texts.iter().any(String::is_empty) {
            return Err(Error::usage("--stop: the text is empty").help("give a text, or leave it out"));
        }
        Ok(StopTexts { chat, texts, longest: texts.iter().map(String::len).max().unwrap_or_default() })
    }

    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// Whether the last of an answer's `tokens` completes a stop text. Only the text of the last few is looked at.
    pub fn found(&self, tokens: &[i32]) -> bool {
        /// Bytes of a character that the window cuts: up to three, each shown as U+FFFD, which has three.
        const CUT: usize = 9;
        let Some((_, earlier)) = tokens.split_last() else { return false };
        let mut width = 8;
        loop {
            let start = tokens.len().saturating_sub(width);
            // Tokens may have no text at all, so it is the text that must be long enough, not their number.
            if start == 0 || self.chat.decode(&earlier[start..]).len() >= self.longest + CUT {
                let text = self.chat.decode(&tokens[start..]);
                return self.texts.iter().any(|stop| text.contains(stop));
            }
            width *= 2;
        }
    }

    /// `text` up to the first of the stop texts in it.
    pub fn cut<'t>(&self, text: &'t str) -> &'t str {
        let first = self.texts.iter().filter_map(|stop| text.find(stop)).min();
        &text[..first.unwrap_or(text.len())]
    }
}
