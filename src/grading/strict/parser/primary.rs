//! What stands between operators: numbers, variables, brackets, functions, matrices.

use super::{Parser, one, quotient};
use crate::grading::strict::expr::{Expr, Function, decimal, integer};
use crate::grading::strict::lexer::Token;
use crate::grading::strict::units::Unit;

/// Tokens as a name, without spaces and braces.
fn spell(tokens: &[Token]) -> String {
    let mut name = String::new();
    for token in tokens {
        match token {
            Token::Op('{' | '}') => {}
            Token::Op(c) => name.push(*c),
            Token::Number { digits: text, .. } | Token::Repeating(text) | Token::Letter(text) | Token::Word(text) => {
                name += text
            }
            Token::Begin(text) | Token::End(text) => name += text,
            Token::Function(text) | Token::Command(text) => name += text,
        }
    }
    name
}

impl Parser<'_> {
    fn number(&mut self, digits: &str, exponent: i32) -> Option<Expr> {
        self.at += 1;
        self.node()?;
        let digits = &digits[std::mem::take(&mut self.used_digits).min(digits.len())..];
        if let Some(Token::Repeating(repeated)) = self.peek() {
            self.at += 1;
            let nines: Expr = decimal(&"9".repeat(repeated.len()), 0)?;
            let places = digits.split_once('.').map_or(0, |(_, fraction)| fraction.len() as i32);
            let scale = decimal("1", -places)?;
            let tail = quotient(Expr::Product(vec![decimal(repeated, 0)?, scale]), nines);
            return Some(Expr::Number(Expr::Sum(vec![decimal(digits, 0)?, tail]).exact()?));
        }
        let value = decimal(digits, exponent)?;
        if digits.bytes().all(|b| b.is_ascii_digit())
            && exponent == 0
            && !self.as_sympy
            && let Some(fraction) = self.proper_fraction()
        {
            return Some(Expr::Number(Expr::Sum(vec![value, fraction]).exact()?));
        }
        // 52_8: digits in a base stand for themselves.
        if self.is_op(0, '_') {
            return Some(Expr::Symbol(format!("{digits}{}", self.subscript()?)));
        }
        Some(value)
    }

    /// The fraction of a mixed number at the cursor, \frac{1}{2} or 1/2 with integers.
    fn proper_fraction(&mut self) -> Option<Expr> {
        let start = self.at;
        let integer_at = |n: usize| match self.ahead(n) {
            Some(Token::Number { digits, exponent: 0 }) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits),
            _ => None,
        };
        let plain = integer_at(0).is_some() && self.is_op(1, '/') && integer_at(2).is_some();
        let fraction = if plain {
            let (over, under) = (integer_at(0)?, integer_at(2)?);
            let fraction = quotient(decimal(over, 0)?, decimal(under, 0)?);
            self.at += 3;
            Some(fraction)
        } else if self.peek() == Some(&Token::Command("frac")) {
            self.nested(self.bar_closes, Self::primary)
        } else {
            None
        };
        let proper = |fraction: &Expr| match fraction {
            Expr::Quotient(over, under) => match (&**over, &**under) {
                (Expr::Number(over), Expr::Number(under)) => {
                    over < under && *over > Default::default() && over.is_integer() && under.is_integer()
                }
                _ => false,
            },
            _ => false,
        };
        let fraction = fraction.filter(proper);
        if fraction.is_none() {
            self.at = start;
            self.used_digits = 0;
        }
        fraction
    }

    /// _1 or _{…}, spelled without spaces and braces.
    fn subscript(&mut self) -> Option<String> {
        let start = self.at;
        while self.eat('_') {
            let mut depth = 0usize;
            loop {
                match self.peek()? {
                    Token::Op('{') => depth += 1,
                    Token::Op('}') => depth = depth.checked_sub(1)?,
                    _ => {}
                }
                self.at += 1;
                if depth == 0 {
                    break;
                }
            }
        }
        Some(spell(&self.tokens[start..self.at]))
    }

    /// Subscripts and primes of a variable, and its arguments if it is the name of a function.
    fn symbol(&mut self, letter: &str) -> Option<Expr> {
        self.at += 1;
        let mut name = letter.to_string();
        loop {
            if self.is_op(0, '_') {
                name += &self.subscript()?;
            } else if self.eat('\'') {
                name.push('\'');
            } else if self.is_op(0, '^') && self.is_op(1, '{') && self.is_op(2, '\'') {
                let primes = self.tokens[self.at + 2..].iter().take_while(|t| **t == Token::Op('\'')).count();
                if !self.is_op(2 + primes, '}') {
                    break;
                }
                self.at += 3 + primes;
                name += &"'".repeat(primes);
            } else {
                break;
            }
        }
        match name.as_str() {
            _ if self.as_sympy => {}
            "π" => return Some(Expr::Pi),
            "e" => return Some(Expr::E),
            "i" => return Some(Expr::I),
            "mathbb R" => return Some(Expr::Tuple('(', ')', vec![Expr::Infinity.negative(), Expr::Infinity])),
            _ => {}
        }
        if (self.as_sympy || letter.len() == 1 && "fghFGH".contains(letter)) && self.is_op(0, '(') {
            let start = self.at;
            self.bracketed('(')?;
            return Some(Expr::Symbol(name + &spell(&self.tokens[start..self.at])));
        }
        Some(Expr::Symbol(name))
    }

    /// A bracketed group, tuple or interval at its opening bracket.
    fn bracketed(&mut self, open: char) -> Option<Expr> {
        self.at += 1;
        let close_of = |c| match c {
            '(' => ')',
            '[' => ']',
            _ => '⟩',
        };
        let mut items = self.nested(false, |p| p.items(&[')', ']', '⟩'], false))?;
        let close = self.op().filter(|c| ")]⟩".contains(*c))?;
        self.at += 1;
        if items.len() == 1 && close == close_of(open) {
            return Some(items.remove(0));
        }
        (items.len() > 1).then_some(Expr::Tuple(open, close, items))
    }

    /// { … }: a group, a set, or a set with conditions.
    fn braces(&mut self, close: char) -> Option<Expr> {
        self.at += 1;
        if self.eat(close) {
            return (close == '⦄').then(|| Expr::Set(Vec::new()));
        }
        let set = close == '⦄';
        let bars: &[char] = if set { &['⦄', '∣', '|', ':'] } else { &['}', '∣'] };
        let mut items = self.nested(set, |p| p.items(bars, set))?;
        let bar = self.op().is_some_and(|c| c != close && bars.contains(&c));
        if bar {
            self.at += 1;
            let conditions = self.nested(false, |p| p.items(&[close], false))?;
            self.expect(close)?;
            return (items.len() == 1).then(|| Expr::Builder(Box::new(items.remove(0)), conditions));
        }
        self.expect(close)?;
        match items.len() {
            0 => None,
            1 if !set => Some(items.remove(0)),
            _ => Some(Expr::Set(items)),
        }
    }

    /// The argument of \frac, \sqrt or \binom: a group, one digit, or one primary.
    fn argument(&mut self, one_digit: bool) -> Option<Expr> {
        if let (Some(Token::Number { digits, exponent: 0 }), true) = (self.peek(), one_digit)
            && digits.len() > self.used_digits + 1
            && digits.bytes().all(|b| b.is_ascii_digit())
        {
            let digit = decimal(&digits[self.used_digits..=self.used_digits], 0)?;
            self.used_digits += 1;
            return Some(digit);
        }
        match self.peek()? {
            Token::Number { digits, exponent } => {
                let digits = &digits[std::mem::take(&mut self.used_digits).min(digits.len())..];
                self.at += 1;
                decimal(digits, *exponent)
            }
            _ => self.primary(),
        }
    }

    pub(super) fn primary(&mut self) -> Option<Expr> {
        self.node()?;
        match self.peek()? {
            Token::Number { digits, exponent } => self.number(digits, *exponent),
            Token::Letter(letter) => self.symbol(letter),
            Token::Word(word) if matches!(word.as_str(), "$" | "€" | "£" | "¥") => {
                self.at += 1;
                let value = self.factor()?;
                Some(Expr::Quantity(Box::new(value), Unit::parse(word)?))
            }
            Token::Word(_) => {
                let mut words = Vec::new();
                while let Some(Token::Word(word)) = self.peek() {
                    words.push(word.to_lowercase());
                    self.at += 1;
                }
                let name = words.join(" ") + &if self.is_op(0, '_') { self.subscript()? } else { String::new() };
                Some(Expr::Symbol(name))
            }
            Token::Function(name) => self.function(name),
            Token::Command("frac") => {
                self.at += 1;
                let over = self.nested(false, |p| p.argument(true))?;
                Some(quotient(over, self.nested(false, |p| p.argument(true))?))
            }
            Token::Command("binom") => {
                self.at += 1;
                let over = self.nested(false, |p| p.argument(true))?;
                Some(Expr::Call(Function::Binomial, vec![over, self.nested(false, |p| p.argument(true))?]))
            }
            Token::Command(_) => {
                self.at += 1;
                let degree = match self.eat('[') {
                    true => {
                        let degree = self.nested(false, Self::sum)?;
                        self.expect(']')?;
                        degree
                    }
                    false => integer(2),
                };
                let radicand = self.nested(false, |p| p.argument(false))?;
                Some(Expr::Call(Function::Root, vec![radicand, degree]))
            }
            Token::Begin(kind) => self.matrix(kind),
            Token::Repeating(_) | Token::End(_) => None,
            Token::Op(c) => match c {
                '(' | '[' | '⟨' => self.bracketed(*c),
                '{' => self.braces('}'),
                '⦃' => self.braces('⦄'),
                '∞' => {
                    self.at += 1;
                    Some(Expr::Infinity)
                }
                '∅' => {
                    self.at += 1;
                    Some(Expr::Set(Vec::new()))
                }
                '|' | '‖' => self.enclosed(*c, Function::Abs),
                '⌊' => self.enclosed('⌋', Function::Floor),
                '⌈' => self.enclosed('⌉', Function::Ceiling),
                _ => None,
            },
        }
    }

    fn enclosed(&mut self, close: char, function: Function) -> Option<Expr> {
        self.at += 1;
        let inner = self.nested("|‖".contains(close), Self::sum)?;
        self.expect(close)?;
        Some(one(function, inner))
    }

    fn function(&mut self, name: &str) -> Option<Expr> {
        self.at += 1;
        let base = match name == "log" && self.eat('_') {
            true => {
                // \log_28 has base 2, as LaTeX sets it. There is no base 1: \log_10 is meant as it is written.
                let ten = matches!(self.peek(), Some(Token::Number { digits, .. }) if digits.starts_with('1'));
                let one_digit = self.as_sympy || !ten;
                Some(self.nested(false, |p| p.argument(one_digit))?)
            }
            false => (name == "lg").then(|| integer(10)),
        };
        let power = match self.eat('^') {
            true => Some(self.exponent()?),
            false => None,
        };
        let argument = self.nested(self.bar_closes, Self::function_argument)?;
        if let Some(function) = match name {
            "max" => Some(Function::Max),
            "min" => Some(Function::Min),
            _ => None,
        } {
            let (Expr::Tuple(_, _, parts) | Expr::Set(parts)) = argument else { return None };
            return Some(Expr::Call(function, parts));
        }
        let inverse = power == Some(integer(-1));
        let of = |function| one(function, argument.clone());
        let value = match (name, inverse) {
            ("sin", true) | ("arcsin", _) => of(Function::Arcsin),
            ("cos", true) | ("arccos", _) => of(Function::Arccos),
            ("tan", true) | ("arctan", _) => of(Function::Arctan),
            ("sin", _) => of(Function::Sin),
            ("cos", _) => of(Function::Cos),
            ("tan", _) => of(Function::Tan),
            ("cot", _) => quotient(of(Function::Cos), of(Function::Sin)),
            ("sec", _) => quotient(integer(1), of(Function::Cos)),
            ("csc", _) => quotient(integer(1), of(Function::Sin)),
            ("sinh", _) => of(Function::Sinh),
            ("cosh", _) => of(Function::Cosh),
            ("tanh", _) => of(Function::Tanh),
            ("exp", _) => of(Function::Exp),
            ("ln" | "log" | "lg", _) => match base {
                Some(base) => quotient(of(Function::Ln), one(Function::Ln, base)),
                None => of(Function::Ln),
            },
            _ => return None,
        };
        let trigonometric = matches!(name, "sin" | "cos" | "tan");
        Some(match power {
            Some(power) if !(inverse && trigonometric) => Expr::Power(Box::new(value), Box::new(power)),
            _ => value,
        })
    }

    /// What \sin applies to: a bracketed group alone, else all factors up to the next sign, quotient or function.
    fn function_argument(&mut self) -> Option<Expr> {
        let grouped = matches!(self.op(), Some('(' | '[' | '{' | '|'));
        let minus = if grouped { None } else { self.sign() };
        let mut parts = vec![self.factor()?];
        while !grouped && self.factor_starts() && !matches!(self.peek(), Some(Token::Function(_))) {
            parts.push(self.factor()?);
        }
        let argument = if parts.len() == 1 { parts.remove(0) } else { Expr::Product(parts) };
        Some(if minus == Some(true) { argument.negative() } else { argument })
    }

    fn matrix(&mut self, kind: &str) -> Option<Expr> {
        if !matches!(kind, "pmatrix" | "bmatrix" | "matrix" | "array" | "smallmatrix" | "vmatrix") {
            return None;
        }
        self.at += 1;
        let mut rows = vec![Vec::new()];
        loop {
            if matches!(self.peek(), Some(Token::End(end)) if end == kind) {
                self.at += 1;
                break;
            } else if self.eat('↵') {
                rows.push(Vec::new());
            } else if !self.eat('&') {
                let cell = self.nested(false, Self::relation)?;
                rows.last_mut()?.push(cell);
            }
        }
        rows.retain(|row| !row.is_empty());
        let regular = rows.iter().all(|row| row.len() == rows[0].len());
        (kind != "vmatrix" && !rows.is_empty() && regular).then_some(Expr::Matrix(rows))
    }
}
