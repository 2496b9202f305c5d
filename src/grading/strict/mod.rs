//! `strict` mode: answers are parsed, and equal when they say the same mathematics.
//!
//! Text becomes tokens (lexer), tokens a tree (parser), constants exact rationals (expr), and what is not rational is
//! tested for identity at fixed points (identity). What cannot be parsed is compared token by token.

mod equal;
mod expr;
mod identity;
mod lexer;
mod names;
mod parser;
mod sets;
mod units;

pub use equal::Options;

use super::extract::boxed_answer;
use expr::Expr;
use lexer::{Style, Token, lex};
use std::borrow::Cow;
use units::Unit;

/// An answer that is read once and compared many times.
#[derive(Debug, Clone)]
pub struct Answer {
    text: String,
    choice: Option<Choice>,
    /// Letters of several options, sorted, and whether separators stand between them.
    letters: Option<(String, bool)>,
    /// With commas and spaces between digits read as thousands separators, then not. One, if that is the same.
    readings: Vec<Reading>,
    /// "5 m/s" in plain text: the number with its unit, whose letters alone would be variables.
    with_unit: Option<Box<Answer>>,
}

#[derive(Debug, Clone)]
struct Reading {
    tokens: Vec<Token>,
    expr: Option<Expr>,
}

/// An option letter, perhaps with the text of the option, which is no option again: "C", "(C)", "C. 17".
#[derive(Debug, Clone)]
struct Choice {
    letter: char,
    content: Option<Box<Answer>>,
}

/// Removes what is around an answer and not of it: a box, emphasis, a final full stop.
pub(super) fn trim(text: &str) -> &str {
    const AROUND: &[(&str, &str)] = &[("$", "$"), ("\\[", "\\]"), ("\\(", "\\)"), ("**", "**")];
    let mut text = boxed_answer(text).unwrap_or(text);
    loop {
        let inner = AROUND.iter().find_map(|(open, close)| text.trim().strip_prefix(open)?.strip_suffix(close));
        if let Some(inner) = inner.filter(|inner| !inner.ends_with('\\')) {
            text = inner;
            continue;
        }
        let trimmed = text.trim().trim_matches(['.', '。', '．', ',', '，', ';', '；', ':', '：']);

        // The dot of a decimal without a leading zero belongs to it.
        let start = trimmed.as_ptr() as usize - text.as_ptr() as usize;
        let dot = start > 0 && text[..start].ends_with('.') && trimmed.starts_with(|c: char| c.is_ascii_digit());
        let trimmed = if dot { &text[start - 1..start + trimmed.len()] } else { trimmed };
        if trimmed.len() == text.len() {
            return text;
        }
        text = trimmed;
    }
}

fn choice(text: &str) -> Option<Choice> {
    let text = text.trim_matches(|c: char| c.is_whitespace() || "$*".contains(c));
    let mut text = Cow::Borrowed(text);
    for command in ["\\text", "\\mathrm", "\\textbf", "\\mathbf"] {
        let inner = text.strip_prefix(command).map(str::trim_start).and_then(|rest| rest.strip_prefix('{'));
        if let Some((inner, rest)) = inner.and_then(|inner| inner.split_once('}')) {
            text = Cow::Owned(format!("{}{rest}", inner.trim()));
        }
    }
    const BEFORE: &[&str] = &["option ", "Option ", "choice ", "Choice ", "答案是", "选"];
    let text = BEFORE.iter().find_map(|word| text.strip_prefix(word)).unwrap_or(&text);
    let mut rest = text.chars();
    let mut next = rest.next()?;
    let bracket = matches!(next, '(' | '（');
    if bracket {
        next = rest.next()?;
    }
    let letter = match next {
        'Ａ'..='Ｊ' => char::from_u32(next as u32 - 'Ａ' as u32 + 'A' as u32)?,
        'A'..='J' | 'a'..='j' => next,
        _ => return None,
    };
    let after = rest.as_str();
    let content = match bracket {
        true => after.strip_prefix([')', '）'])?,
        false => match after.strip_prefix(['.', '．', ')', '）', ':', '：', '、']) {
            Some(content) => content,
            None if after.trim().is_empty() => "",
            None => return None,
        },
    };
    let content = content.trim();
    // f: x → 2x and (a)(b) are no options.
    if !letter.is_ascii_uppercase() && !content.is_empty()
        || bracket && content.starts_with(['(', '^', '+', '-', '*', '/', '='])
        || names_another(content)
    {
        return None;
    }
    let answer = Some(content).filter(|content| !content.is_empty()).map(Answer::parse);
    Some(Choice { letter, content: answer.filter(|answer| answer.choice.is_none()).map(Box::new) })
}

/// Whether a text after an option's label goes on to another option: "(A) or (B)", "A. 5 or B. 6". Such an answer chooses
/// neither.
fn names_another(content: &str) -> bool {
    let content =
        ["\\text", "\\mathrm", "\\mathbf"].iter().fold(content.to_string(), |text, command| text.replace(command, " "));
    let content = content.trim_matches(|c: char| c.is_whitespace() || "{}~$\\".contains(c));
    let bare = |text: &str| matches!(text.as_bytes(), [b'A'..=b'J']);
    let label = |word: &str| {
        let inner = word.strip_prefix(['(', '（']).unwrap_or(word);
        inner.char_indices().nth(1).is_some_and(|(at, c)| bare(&inner[..at]) && ".．)）:：、".contains(c))
    };
    let mut words = content.split(|c: char| c.is_whitespace() || ",，、;；/&{}~$".contains(c)).filter(|word| !word.is_empty());
    let separated = content.starts_with([',', '，', '、', ';', '；', '/', '&', '或', '和', '与', '及', '且'])
        || words.clone().next().is_some_and(|word| matches!(word, "or" | "and" | "nor"));
    separated || bare(content) || words.any(label)
}

/// The letters of "ABD" or "A, B and D".
fn several(text: &str) -> Option<(String, bool)> {
    let plain = ["\\text", "and", "和"].iter().fold(text.to_string(), |text, word| text.replace(word, " "));
    let mut letters: Vec<char> = plain.chars().filter(char::is_ascii_uppercase).collect();
    let known = plain.chars().all(|c| matches!(c, 'A'..='J') || c.is_whitespace() || ",，、;；{}$".contains(c));
    letters.sort_unstable();
    let distinct = letters.windows(2).all(|pair| pair[0] != pair[1]);
    let apart = plain.trim().contains(|c: char| c.is_whitespace() || ",，、;；".contains(c));
    (known && distinct && letters.len() >= 2).then(|| (letters.into_iter().collect(), apart))
}

/// (1)(3)(4) is a list of statements, no product.
fn labels(tokens: &[Token]) -> Option<Expr> {
    let number = |group: &[Token]| match group {
        [Token::Op('('), Token::Number { digits, exponent: 0 }, Token::Op(')')] if digits.len() == 1 => {
            expr::decimal(digits, 0)
        }
        _ => None,
    };
    if tokens.len() < 6 || !tokens.len().is_multiple_of(3) {
        return None;
    }
    Some(Expr::List(tokens.chunks(3).map(number).collect::<Option<_>>()?))
}

/// Tokens without braces around single ones.
fn bare(tokens: &[Token]) -> Vec<&Token> {
    let mut out: Vec<&Token> = Vec::new();
    for token in tokens {
        let single = *token == Token::Op('}') && out.len() >= 2 && *out[out.len() - 2] == Token::Op('{');
        out.push(if *token == Token::Op('∧') { &Token::Op(',') } else { token });
        if single {
            out.pop();
            let inner = out.pop();
            out.pop();
            out.extend(inner);
        }
    }
    out
}

/// The lower-case text of an answer that is only words and letters.
fn prose(tokens: &[Token]) -> Option<String> {
    let word = |token: &Token| match token {
        Token::Word(word) | Token::Letter(word) => Some(word.to_lowercase().replace(' ', "")),
        Token::Op('¬') => Some("not".into()),
        _ => None,
    };
    tokens.iter().map(word).collect()
}

/// Whether two answers are the same words, of which one may be spelled without \text.
fn same_prose(a: &[Token], b: &[Token]) -> bool {
    let worded = |tokens: &[Token]| tokens.iter().any(|token| matches!(token, Token::Word(_)));
    (worded(a) || worded(b)) && prose(a).is_some_and(|text| prose(b) == Some(text))
}

impl Reading {
    fn new(mut tokens: Vec<Token>) -> Reading {
        while tokens.last() == Some(&Token::Op('↵')) {
            tokens.pop();
        }
        let expr = labels(&tokens).or_else(|| parser::parse(&tokens));
        Reading { tokens, expr }
    }

    fn equals(&self, other: &Reading, options: Options) -> bool {
        if self.tokens == other.tokens {
            return !self.tokens.is_empty();
        }
        if same_prose(&self.tokens, &other.tokens) {
            return true;
        }
        match (&self.expr, &other.expr) {
            (Some(a), Some(b)) => equal::same(a, b, options),
            _ => bare(&self.tokens) == bare(&other.tokens),
        }
    }
}

impl Answer {
    /// Reads an answer. What is too long to be read equals the same text alone.
    pub fn parse(text: &str) -> Answer {
        let text = trim(text);
        let mut readings = Vec::new();
        if text.len() > lexer::MAX_TEXT {
            return Answer { text: text.to_string(), choice: None, letters: None, readings, with_unit: None };
        }
        if let Some(first) = lex(text, Style::Thousands) {
            readings.push(Reading::new(first.tokens));
            if first.ambiguous {
                readings.extend(lex(text, Style::Apart).map(|second| Reading::new(second.tokens)));
            }
        }
        let with_unit = with_unit(text).map(Box::new);
        Answer { text: text.to_string(), choice: choice(text), letters: several(text), readings, with_unit }
    }

    /// Whether this is the same answer as `gold`.
    pub fn equals(&self, gold: &Answer, options: Options) -> bool {
        if self.text == gold.text && !self.text.is_empty() {
            return true;
        }
        // A run of letters may be no choice at all, so two runs are compared as such.
        if let (Some((own, apart)), Some((gold, gold_apart))) = (&self.letters, &gold.letters)
            && (*apart || *gold_apart)
        {
            return own == gold;
        }
        match (&self.choice, &gold.choice) {
            (Some(own), Some(gold)) if gold.letter.is_ascii_uppercase() => {
                return own.letter.eq_ignore_ascii_case(&gold.letter);
            }
            (Some(Choice { content: Some(content), .. }), None) => return content.equals(gold, options),
            (None, Some(Choice { content: Some(content), .. })) => return self.equals(content, options),
            _ => {}
        }
        let pairs = self.readings.len().max(gold.readings.len());
        let equal = (0..pairs).any(|i| match (self.reading(i), gold.reading(i)) {
            (Some(a), Some(b)) => a.equals(b, options),
            _ => false,
        });
        equal || self.with_unit.as_ref().is_some_and(|value| gold.is_number() && value.equals(gold, options))
    }

    fn reading(&self, i: usize) -> Option<&Reading> {
        self.readings.get(i).or(self.readings.last())
    }

    fn is_number(&self) -> bool {
        self.readings.iter().any(|reading| {
            reading.expr.as_ref().is_some_and(|e| {
                let value = if let Expr::Quantity(value, _) = e { value } else { e };
                value.is_scalar() && value.is_constant()
            })
        })
    }
}

fn with_unit(text: &str) -> Option<Answer> {
    let (number, unit) = text.split_once(' ')?;
    Unit::parse_known(unit)?;
    Some(Answer::parse(&format!("{number}\\text{{ {unit}}}"))).filter(Answer::is_number)
}

/// Whether a relation between two rational numbers holds.
fn truth(sides: &[Expr], signs: &[char]) -> Option<bool> {
    let (a, b) = (sides.first()?.exact()?, sides.get(1)?.exact()?);
    match signs.first()? {
        '=' => Some(a == b),
        '<' => Some(a < b),
        '>' => Some(a > b),
        '≤' => Some(a <= b),
        '≥' => Some(a >= b),
        _ => None,
    }
}

/// A single expression or equation: what LIMO's rules hand to a computer algebra system.
#[derive(Debug, Clone)]
pub struct Symbolic(Expr);

impl Symbolic {
    /// Reads the expression that a text starts with, as SymPy does. None if there is none, or if it is written in a way
    /// that strict mode reads and SymPy's LaTeX parser does not.
    pub fn parse(text: &str) -> Option<Symbolic> {
        const NOT_LATEX: &[&str] = &["boxed", "{,}", "cfrac", "mathrm", "**", "displaystyle", "\\[", "\\]"];
        const PLAIN_NAMES: &[&str] = &["sqrt", "frac", "arc", "sin", "cos", "tan", "log", "ln", "exp", "or", "and"];
        let plain = |word: &str| PLAIN_NAMES.iter().any(|name| word.contains(name));
        // Words without a backslash: every second piece of the text begins with a command's name.
        let words = text.split('\\').enumerate().map(|(i, piece)| match i {
            0 => piece,
            _ => piece.trim_start_matches(|c: char| c.is_ascii_alphabetic()),
        });
        // Its lexer knows no line break and no command that starts with a digit: stripping \pm as a unit leaves such ones.
        let broken = text
            .trim_end_matches('\\')
            .split('\\')
            .skip(1)
            .any(|piece| piece.is_empty() || piece.starts_with(|c: char| c.is_ascii_digit()));
        if broken || !text.is_ascii() || NOT_LATEX.iter().any(|part| text.contains(part)) || words.into_iter().any(plain) {
            return None;
        }
        let mut tokens = lex(text, Style::Sympy)?.tokens;
        while matches!(tokens.last(), Some(Token::Op('+' | '-' | '*' | '/' | '=' | '^' | '<' | '>'))) {
            tokens.pop();
        }
        let known = |token: &Token| match token {
            Token::Number { exponent, .. } => *exponent == 0,
            token => !matches!(token, Token::Repeating(_) | Token::Op('±' | '∓' | ';')),
        };
        let expr = if tokens.iter().all(known) { parser::parse_as_sympy(&tokens)? } else { return None };
        let relation =
            matches!(&expr, Expr::Relation(operands, _) if operands.len() == 2 && operands.iter().all(Expr::is_scalar));
        (relation || expr.is_scalar()).then_some(Symbolic(expr))
    }

    /// Whether both are the same expression, or relations whose sides differ by the same but for the sign: the published
    /// code does not look at which relation it is.
    pub fn equals(&self, other: &Symbolic) -> bool {
        match (&self.0, &other.0) {
            (Expr::Relation(a, s), Expr::Relation(b, t)) => {
                // SymPy replaces a relation between numbers by its truth.
                if let (Some(x), Some(y)) = (truth(a, s), truth(b, t)) {
                    return x == y;
                }
                let difference = |sides: &[Expr]| sides[0].clone().minus(sides[1].clone());
                let (a, b) = (difference(a), difference(b));
                identity::identical(&a, &b) || identity::identical(&a.negative(), &b)
            }
            (Expr::Relation(..), _) | (_, Expr::Relation(..)) => false,
            (a, b) => match (a.exact(), b.exact()) {
                (Some(x), Some(y)) if x == y => true,
                _ => a == b || identity::identical(a, b),
            },
        }
    }

    /// The value of a real constant.
    pub fn value(&self) -> Option<f64> {
        identity::constant(&self.0)
    }
}
