//! Letters and words: names of mathematics, variables, units, separators, arithmetic in words.

use super::{Lexer, Style, Token, lex_chars};
use crate::grading::strict::names::{
    ALIASES, CONJUNCTIONS, FUNCTIONS, GREEK, MULTIPLIERS, PLAIN_WORDS, SEPARATORS, UNIT_WORDS,
};

/// Whether three letters are a word rather than a product: a vowel between consonants.
fn is_short_word(run: &str) -> bool {
    let vowel = |b: &u8| b"aeiou".contains(b);
    let lower = run.bytes().all(|b| b.is_ascii_lowercase());
    lower && matches!(run.as_bytes(), [a, b, c] if !vowel(a) && vowel(b) && !vowel(c))
}

impl Lexer<'_> {
    /// A word of plain text: a separator, arithmetic, or what it says.
    pub(super) fn word(&mut self, word: String) {
        if self.style != Style::Sympy && self.arithmetic(&word) {
            return;
        }
        self.tokens.push(match word.as_str() {
            separator if SEPARATORS.contains(&separator) => Token::Op(','),
            conjunction if CONJUNCTIONS.contains(&conjunction) => Token::Op('∧'),
            "not" => Token::Op('¬'),
            _ => Token::Word(word),
        });
    }

    /// Arithmetic in words after a number or unit: million, squared, factorial. Whether it was that.
    fn arithmetic(&mut self, word: &str) -> bool {
        let number = |digits: &str, exponent| Token::Number { digits: digits.into(), exponent };
        let unit = matches!(self.tokens.last(), Some(Token::Word(_)));
        let operand = matches!(self.tokens.last(), Some(Token::Number { .. } | Token::Op('}' | ')')));
        let tokens = match word {
            "squared" if operand || unit => vec![Token::Op('^'), number("2", 0)],
            "cubed" if operand || unit => vec![Token::Op('^'), number("3", 0)],
            _ if !operand => return false,
            "factorial" => vec![Token::Op('!')],
            "pi" => vec![Token::Letter("π".into())],
            _ => {
                let Some((name, digits, exponent)) = MULTIPLIERS.iter().find(|(name, ..)| word.starts_with(name)) else {
                    return false;
                };
                let rest = word[name.len()..].trim_start_matches('s');
                if rest.starts_with(|c: char| c.is_ascii_alphabetic()) {
                    return false;
                }
                let unit = Some(rest.trim()).filter(|rest| !rest.is_empty()).map(|rest| Token::Word(rest.into()));
                [Token::Op('*'), number(digits, *exponent)].into_iter().chain(unit).collect()
            }
        };
        self.tokens.extend(tokens);
        true
    }

    /// An angle or triangle with its points, in their order. An angle is the same from either side.
    pub(super) fn figure(&mut self, sign: char) {
        let mut points = String::new();
        loop {
            let start = self.at;
            self.take_while(char::is_whitespace);
            let braces = usize::from(self.peek(0) == Some('{'));
            self.at += braces;
            let next = self.take_while(|c| c.is_ascii_uppercase());
            if next.is_empty() || braces == 1 && self.peek(0) != Some('}') {
                self.at = start;
                break;
            }
            self.at += braces;
            points += &next;
        }
        if sign == '∠' && points.chars().rev().lt(points.chars()) {
            points = points.chars().rev().collect();
        }
        self.tokens.push(Token::Letter(format!("{sign}{points}")));
    }

    /// A run of plain letters: a name that is known, a word, or a product of variables.
    pub(super) fn letters(&mut self) {
        let run = self.take_while(|c| c.is_ascii_alphabetic());
        if run == "np" && self.peek(0) == Some('.') || run == "math" && self.peek(0) == Some('.') {
            self.at += 1;
        } else if [SEPARATORS, CONJUNCTIONS].iter().any(|words| words.contains(&run.as_str())) {
            self.word(run);
        } else if run == "not" && self.style != Style::Sympy {
            self.tokens.push(Token::Op('¬'));
        } else if !self.named(&run) {
            let ordered = run.bytes().all(|b| b.is_ascii_uppercase()) || run.len() == self.text.len() && is_short_word(&run);
            match run.len() {
                3 if ordered && self.style != Style::Sympy => self.tokens.push(Token::Letter(run)),
                4.. => self.word(run),
                2.. if PLAIN_WORDS.contains(&run.to_lowercase().as_str()) => self.tokens.push(Token::Word(run)),
                2.. if UNIT_WORDS.contains(&run.as_str()) => self.tokens.push(Token::Word(run)),
                _ => self.tokens.extend(run.chars().map(|c| Token::Letter(c.into()))),
            }
        }
    }

    /// A name of mathematics, with or without its backslash.
    pub(super) fn named(&mut self, name: &str) -> bool {
        let name = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name, |(_, function)| function);
        if let Some(function) = FUNCTIONS.iter().find(|f| **f == name) {
            // Five minutes, not a minimum of something.
            if name == "min" && matches!(self.tokens.last(), Some(Token::Number { .. })) {
                return false;
            }
            self.tokens.push(Token::Function(function));
        } else if let Some((_, letter)) = GREEK.iter().find(|(greek, _)| *greek == name) {
            self.tokens.push(Token::Letter((*letter).into()));
        } else {
            match name {
                "frac" | "dfrac" | "tfrac" | "cfrac" => self.tokens.push(Token::Command("frac")),
                "binom" | "dbinom" | "tbinom" => self.tokens.push(Token::Command("binom")),
                "sqrt" => self.tokens.push(Token::Command("sqrt")),
                "inf" | "infinity" | "oo" => self.tokens.push(Token::Op('∞')),
                _ => return false,
            }
        }
        true
    }

    pub(super) fn text_argument(&mut self, command: &str, content: &[char], depth: usize) -> Option<()> {
        let text: String = content.iter().collect();
        let trimmed = text.trim_matches(|c: char| c.is_whitespace() || "~.,;:".contains(c) || c == '\\');
        let spaced = text.starts_with(['~', ' ', '\\']);
        let maths =
            trimmed.starts_with(|c: char| c.is_ascii_digit() || "(-[".contains(c)) || trimmed.contains(['\\', '$', '{', '=']);
        if trimmed.is_empty() || matches!(trimmed, "th" | "st" | "nd" | "rd") {
        } else if maths && depth < 4 {
            let inner = lex_chars(content, self.style, depth + 1)?;
            self.ambiguous |= inner.ambiguous;
            self.tokens.extend(inner.tokens);
        } else if command == "operatorname" || command == "mathrm" {
            match trimmed.chars().count() {
                1 if !spaced => self.tokens.push(Token::Letter(trimmed.into())),
                _ if self.named(trimmed) => {}
                _ => self.word(trimmed.into()),
            }
        } else {
            self.word(trimmed.into());
        }
        Some(())
    }
}
