//! From the text of an answer, LaTeX or plain, to tokens in one spelling.

mod words;

use super::names::{ACCENTS, IGNORED, SYMBOLS, TEXT};

/// The longest answer that is looked at, in bytes.
pub const MAX_TEXT: usize = 8192;
const MAX_TOKENS: usize = 4000;
const MAX_DIGITS: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// Decimal digits, perhaps with a point, perhaps with a power of ten.
    Number {
        digits: String,
        exponent: i32,
    },
    /// Digits that repeat for ever after those of the number before: 0.1\overline{6}.
    Repeating(String),
    /// One variable: a letter, a Greek letter, a decorated letter.
    Letter(String),
    /// A word of plain text, or the content of \text.
    Word(String),
    /// sin, \log, …
    Function(&'static str),
    /// A command with arguments: frac, binom, sqrt.
    Command(&'static str),
    /// \begin{…} and \end{…}.
    Begin(String),
    End(String),
    /// An operator, bracket or separator. ⦃ and ⦄ are \{ and \}; ∣ is \mid; ↵ is \\; ∧ is "and", ¬ is "not".
    Op(char),
}

/// How a text is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// 1,234 and 1 234 are one number.
    Thousands,
    /// They are two.
    Apart,
    /// As SymPy reads LaTeX, which knows no names of several letters.
    Sympy,
}

/// What a text can be read as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lexed {
    pub tokens: Vec<Token>,
    /// A comma or space stood between digits so that it can be a thousands separator or separate two numbers.
    pub ambiguous: bool,
}

struct Lexer<'a> {
    text: &'a [char],
    at: usize,
    tokens: Vec<Token>,
    style: Style,
    ambiguous: bool,
}

/// Reads `text`. None if it is too long.
pub fn lex(text: &str, style: Style) -> Option<Lexed> {
    if text.len() > MAX_TEXT {
        return None;
    }
    let text: Vec<char> = text.chars().map(plain).collect();
    lex_chars(&text, style, 0)
}

fn lex_chars(text: &[char], style: Style, depth: usize) -> Option<Lexed> {
    let mut lexer = Lexer { text, at: 0, tokens: Vec::new(), style, ambiguous: false };
    while lexer.at < text.len() {
        lexer.step(depth)?;
        if lexer.tokens.len() > MAX_TOKENS {
            return None;
        }
    }
    Some(Lexed { tokens: lexer.tokens, ambiguous: lexer.ambiguous })
}

/// One spelling for characters that exist twice: full-width forms, Chinese punctuation, mathematical Unicode.
fn plain(c: char) -> char {
    match c {
        '！'..='～' => char::from_u32(c as u32 - 0xFEE0).unwrap_or(c),
        '\u{3000}' | '\u{A0}' | '\u{2009}' | '\u{202F}' => ' ',
        '。' => '.',
        '、' => ',',
        '【' | '〔' => '[',
        '】' | '〕' => ']',
        '×' | '·' | '⋅' | '∙' | '∗' => '*',
        '÷' | '∕' => '/',
        '∶' => ':',
        '−' | '–' | '—' | '‐' | '‑' => '-',
        '≦' | '⩽' => '≤',
        '≧' | '⩾' => '≥',
        '′' | '’' | '‘' => '\'',
        '˚' | 'º' => '°',
        'ϕ' => 'φ',
        'ϵ' => 'ε',
        'µ' => 'μ',
        _ => c,
    }
}

fn superscript(c: char) -> Option<char> {
    let digits = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    digits.iter().position(|&d| d == c).and_then(|at| char::from_digit(at as u32, 10)).or((c == '⁻').then_some('-'))
}

fn is_cjk(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}')
}

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.text.get(self.at + ahead).copied()
    }

    fn starts_with(&self, word: &str) -> bool {
        word.chars().enumerate().all(|(i, c)| self.peek(i) == Some(c))
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while self.peek(0).is_some_and(&keep) {
            self.at += 1;
        }
        self.text[start..self.at].iter().collect()
    }

    fn op(&mut self, c: char, width: usize) {
        self.tokens.push(Token::Op(c));
        self.at += width;
    }

    fn step(&mut self, depth: usize) -> Option<()> {
        let c = self.peek(0)?;
        match c {
            _ if c.is_whitespace() => self.at += 1,
            '$' | '~' | '"' | '“' | '”' | '`' => self.at += 1,
            '\\' => self.command(depth)?,
            '0'..='9' => self.number()?,
            '.' if self.peek(1).is_some_and(|c| c.is_ascii_digit()) => self.number()?,
            '*' if self.peek(1) == Some('*') => self.op('^', 2),
            '<' if self.peek(1) == Some('=') => self.op('≤', 2),
            '>' if self.peek(1) == Some('=') => self.op('≥', 2),
            '!' if self.peek(1) == Some('=') => self.op('≠', 2),
            '=' if self.peek(1) == Some('=') => self.op('=', 2),
            '+' if self.starts_with("+-") || self.starts_with("+/-") => {
                self.op('±', if self.peek(1) == Some('/') { 3 } else { 2 })
            }
            '-' if self.starts_with("->") => self.op('→', 2),
            '√' => {
                self.tokens.push(Token::Command("sqrt"));
                self.at += 1;
            }
            '℃' | '℉' => {
                self.op('°', 1);
                self.tokens.push(Token::Letter(if c == '℃' { "C" } else { "F" }.into()));
            }
            '∠' | '△' => {
                self.at += 1;
                self.figure(c);
            }
            '½' | '⅓' | '⅔' | '¼' | '¾' => {
                let (over, under) = match c {
                    '½' => ("1", "2"),
                    '⅓' => ("1", "3"),
                    '⅔' => ("2", "3"),
                    '¼' => ("1", "4"),
                    _ => ("3", "4"),
                };
                let number = |digits: &str| Token::Number { digits: digits.into(), exponent: 0 };
                self.tokens.extend([Token::Command("frac"), number(over), number(under)]);
                self.at += 1;
            }
            '①'..='⑨' => {
                let digit = char::from_digit(c as u32 - '①' as u32 + 1, 10)?;
                self.tokens.push(Token::Op('('));
                self.tokens.push(Token::Number { digits: digit.into(), exponent: 0 });
                self.op(')', 1);
            }
            '₀'..='₉' => {
                let digits = self.take_while(|c| ('₀'..='₉').contains(&c));
                let digits = digits.chars().filter_map(|c| char::from_digit(c as u32 - '₀' as u32, 10)).collect();
                let number = Token::Number { digits, exponent: 0 };
                self.tokens.extend([Token::Op('_'), Token::Op('{'), number, Token::Op('}')]);
            }
            '€' | '£' | '¥' | '¢' => {
                self.tokens.push(Token::Word(c.into()));
                self.at += 1;
            }
            _ if superscript(c).is_some() => {
                let power: String = std::iter::from_fn(|| {
                    let digit = superscript(self.peek(0)?)?;
                    self.at += 1;
                    Some(digit)
                })
                .collect();
                self.tokens.extend([Token::Op('^'), Token::Op('{')]);
                if power.starts_with('-') {
                    self.tokens.push(Token::Op('-'));
                }
                let digits: String = power.chars().filter(char::is_ascii_digit).collect();
                self.tokens.push(Token::Number { digits, exponent: 0 });
                self.tokens.push(Token::Op('}'));
            }
            _ if c.is_ascii_alphabetic() => self.letters(),
            _ if is_cjk(c) => {
                let word = self.take_while(is_cjk);
                self.word(word);
            }
            _ if c.is_alphabetic() => {
                self.tokens.push(Token::Letter(c.into()));
                self.at += 1;
            }
            _ => self.op(c, 1),
        }
        Some(())
    }

    /// The content of `{…}` at the cursor, without the braces. Without an opening brace: the next character.
    fn braced(&mut self) -> Option<Vec<char>> {
        self.take_while(char::is_whitespace);
        if self.peek(0) != Some('{') {
            let one = self.peek(0)?;
            self.at += 1;
            return Some(vec![one]);
        }
        let start = self.at + 1;
        let mut depth = 0usize;
        while let Some(c) = self.peek(0) {
            self.at += 1;
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                return Some(self.text[start..self.at - 1].to_vec());
            }
        }
        None
    }

    fn command(&mut self, depth: usize) -> Option<()> {
        self.at += 1;
        let Some(c) = self.peek(0) else { return Some(()) };
        if !c.is_ascii_alphabetic() {
            match c {
                '{' => self.tokens.push(Token::Op('⦃')),
                '}' => self.tokens.push(Token::Op('⦄')),
                '\\' => self.tokens.push(Token::Op('↵')),
                '%' => self.tokens.push(Token::Op('%')),
                '|' => self.tokens.push(Token::Op('‖')),
                '$' => self.tokens.push(Token::Word("$".into())),
                _ => {}
            }
            self.at += 1;
            return Some(());
        }
        let name = self.take_while(|c| c.is_ascii_alphabetic());
        let name = if name == "overrightarrow" { "vec" } else { name.as_str() };
        if matches!(name, "left" | "right") {
            // A dot stands for no bracket.
            self.at += usize::from(self.peek(0) == Some('.'));
        } else if IGNORED.contains(&name) || self.named(name) {
        } else if let Some((_, symbol)) = SYMBOLS.iter().find(|(known, _)| *known == name) {
            self.tokens.push(Token::Op(*symbol));
        } else if TEXT.contains(&name) {
            let content = self.braced()?;
            self.text_argument(name, &content, depth)?;
        } else if ACCENTS.contains(&name) {
            let content: String = self.braced()?.into_iter().filter(|c| !c.is_whitespace() && !"{}".contains(*c)).collect();
            let repeats = matches!(name, "overline" | "dot" | "bar") && content.bytes().all(|b| b.is_ascii_digit());
            match self.tokens.last() {
                Some(Token::Number { digits, exponent: 0 }) if repeats && digits.contains('.') && content.len() <= 50 => {
                    self.tokens.push(Token::Repeating(content));
                }
                Some(Token::Repeating(_)) if repeats => return None,
                _ => self.tokens.push(Token::Letter(format!("{name} {content}"))),
            }
        } else if matches!(name, "color" | "textcolor") {
            self.braced()?;
        } else if matches!(name, "angle" | "triangle") && self.style != Style::Sympy {
            self.figure(if name == "angle" { '∠' } else { '△' });
        } else if name == "begin" || name == "end" {
            let kind: String = self.braced()?.into_iter().collect();
            let kind = kind.trim_end_matches('*').to_string();
            if name == "begin" && kind == "array" {
                self.braced()?;
            }
            self.tokens.push(if name == "begin" { Token::Begin(kind) } else { Token::End(kind) });
        } else if matches!(name, "item" | "sum" | "int" | "prod" | "lim") {
            // Known and not computed: it makes the answer one that is compared by its tokens.
            self.tokens.push(Token::Op('∫'));
            self.tokens.push(Token::Word(name.into()));
        } else {
            self.tokens.push(Token::Letter(format!("\\{name}")));
        }
        Some(())
    }

    fn digits(&mut self) -> String {
        self.take_while(|c| c.is_ascii_digit())
    }

    /// The width of a separator at the cursor that three digits follow, and whether it can only be one.
    fn separator(&self) -> Option<(usize, bool)> {
        const SURE: &[&str] = &["{,}", "\\,", "\\ ", "\\;", "\\:", "~", "'"];
        let group = |from: usize| {
            let from = from + (from..).take_while(|&i| self.peek(i) == Some(' ')).count();
            let three = (from..from + 3).all(|i| self.peek(i).is_some_and(|c| c.is_ascii_digit()));
            (three && !self.peek(from + 3).is_some_and(|c| c.is_ascii_digit())).then_some(from)
        };
        for separator in SURE {
            if self.starts_with(separator) {
                return group(separator.len()).map(|width| (width, true));
            }
        }
        if self.peek(0) == Some(' ') {
            return group(1).map(|width| (width, self.style == Style::Sympy));
        }
        if self.starts_with(",\\!") {
            return group(3).map(|width| (width, false));
        }
        let adjacent = self.peek(0) == Some(',') && self.peek(1).is_some_and(|c| c.is_ascii_digit());
        // No number of a list starts with a zero, so 1,000 is no list.
        if adjacent { group(1).map(|width| (width, self.peek(1) == Some('0') && self.style == Style::Apart)) } else { None }
    }

    fn number(&mut self) -> Option<()> {
        let follows = |token: &Token| matches!(token, Token::Op('_' | '^') | Token::Command(_));
        // \log_2 100 and \frac 1 234 have two numbers, and the second of \frac 1 234 is all of its argument.
        let starts_argument = self.tokens.last().is_some_and(follows) && self.style != Style::Sympy;
        let ends_argument = self.style != Style::Sympy
            && matches!(self.tokens.as_slice(), [.., Token::Command("frac" | "binom"), Token::Number { .. }]);
        let mut digits = self.digits();
        if !starts_argument && (1..=3).contains(&digits.len()) && !digits.starts_with('0') {
            while let Some((width, sure)) = self.separator() {
                self.ambiguous |= !sure;
                if !sure && self.style != Style::Thousands {
                    break;
                }
                self.at += width;
                digits += &self.digits();
            }
        }
        // A point that ends a sentence is not a decimal point.
        let more = |c: char| c.is_ascii_digit() || c == '/' || c == '\\' || c == '*';
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(more) {
            self.at += 1;
            digits.push('.');
            digits += &self.digits();
        }
        let mut exponent = 0;
        if matches!(self.peek(0), Some('e' | 'E')) {
            let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
            if self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit()) {
                let negative = self.peek(1) == Some('-');
                self.at += 1 + sign;
                let size: i32 = self.digits().parse().ok().filter(|e| *e <= 1000)?;
                exponent = if negative { -size } else { size };
            }
        }
        if digits.len() > MAX_DIGITS {
            return None;
        }
        let number = Token::Number { digits, exponent };
        match ends_argument {
            true => self.tokens.extend([Token::Op('{'), number, Token::Op('}')]),
            false => self.tokens.push(number),
        }
        Some(())
    }
}
