//! From tokens to an expression tree, by recursive descent. Depth and size are limited.

use super::expr::{Expr, Function, decimal, integer};
use super::lexer::Token;
use super::units::Unit;

const MAX_DEPTH: usize = 100;
const MAX_NODES: usize = 1500;

pub struct Parser<'a> {
    tokens: &'a [Token],
    at: usize,
    depth: usize,
    nodes: usize,
    /// Digits of the number at the cursor that are already used: \frac12 is 1 over 2.
    used_digits: usize,
    /// A bar closes something, so it cannot open an absolute value within a product.
    bar_closes: bool,
    /// The sign that ± stands for, and whether one was met.
    plus: bool,
    met_plus_minus: bool,
    /// The reading of SymPy's LaTeX parser: π, e and i are variables, 1\frac{1}{2} is a product, n(n+1) a function of n+1.
    as_sympy: bool,
}

/// Parses a whole answer: one expression, or a list of several. None if it is not one.
pub fn parse(tokens: &[Token]) -> Option<Expr> {
    let mut parser = Parser::new(tokens, false);
    if matches!(parser.op(), Some('=' | '≈')) {
        parser.at += 1;
    }
    let mut items = parser.items(&[], true)?;
    if parser.at < tokens.len() || items.is_empty() {
        return None;
    }
    Some(if items.len() == 1 { items.remove(0) } else { Expr::List(items) })
}

/// Parses one expression or relation as SymPy 1.12 reads LaTeX, which ignores what follows it.
pub fn parse_as_sympy(tokens: &[Token]) -> Option<Expr> {
    Parser::new(tokens, true).relation()
}

const RELATIONS: &str = "=<>≤≥≠≈≡∈∉⊂⊆→⊥∥∼";

/// Moves the unit of the last factor to the whole: 3√2 cm is (3√2) cm.
fn hoist(expr: Expr) -> Expr {
    let quantity = |value: Expr, unit| Expr::Quantity(Box::new(value), unit);
    match expr {
        Expr::Product(mut parts) => match parts.pop() {
            Some(Expr::Quantity(last, unit)) => {
                parts.push(*last);
                quantity(Expr::Product(parts), unit)
            }
            last => {
                parts.extend(last);
                Expr::Product(parts)
            }
        },
        Expr::Quotient(over, under) => match *under {
            Expr::Quantity(under, unit) => quantity(Expr::Quotient(over, under), unit),
            under => Expr::Quotient(over, Box::new(under)),
        },
        Expr::Negative(inner) => match hoist(*inner) {
            Expr::Quantity(value, unit) => quantity(value.negative(), unit),
            inner => Expr::Negative(Box::new(inner)),
        },
        Expr::Sum(parts) => {
            let parts: Vec<Expr> = parts.into_iter().map(hoist).collect();
            let unit = parts.iter().find_map(|part| match part {
                Expr::Quantity(_, unit) => Some(unit.clone()),
                _ => None,
            });
            let same = |part: &Expr| !matches!(part, Expr::Quantity(_, other) if Some(other) != unit.as_ref());
            match unit.clone() {
                Some(unit) if parts.iter().all(same) => {
                    let bare = |part| if let Expr::Quantity(value, _) = part { *value } else { part };
                    quantity(Expr::Sum(parts.into_iter().map(bare).collect()), unit)
                }
                _ => Expr::Sum(parts),
            }
        }
        other => other,
    }
}

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

fn one(function: Function, argument: Expr) -> Expr {
    Expr::Call(function, vec![argument])
}

fn quotient(over: Expr, under: Expr) -> Expr {
    Expr::Quotient(Box::new(over), Box::new(under))
}

impl<'a> Parser<'a> {
    fn new(tokens: &'a [Token], as_sympy: bool) -> Parser<'a> {
        Parser {
            tokens,
            at: 0,
            depth: 0,
            nodes: 0,
            used_digits: 0,
            bar_closes: false,
            plus: true,
            met_plus_minus: false,
            as_sympy,
        }
    }
    fn peek(&self) -> Option<&'a Token> {
        self.tokens.get(self.at)
    }

    fn ahead(&self, n: usize) -> Option<&'a Token> {
        self.tokens.get(self.at + n)
    }

    fn is_op(&self, n: usize, op: char) -> bool {
        self.ahead(n) == Some(&Token::Op(op))
    }

    fn op(&self) -> Option<char> {
        match self.peek() {
            Some(Token::Op(c)) => Some(*c),
            _ => None,
        }
    }

    fn eat(&mut self, op: char) -> bool {
        let found = self.is_op(0, op);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, op: char) -> Option<()> {
        self.eat(op).then_some(())
    }

    /// Counts a node against the limit.
    fn node(&mut self) -> Option<()> {
        self.nodes += 1;
        (self.nodes <= MAX_NODES).then_some(())
    }

    fn nested<T>(&mut self, bar_closes: bool, parse: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.depth >= MAX_DEPTH {
            return None;
        }
        let outer = std::mem::replace(&mut self.bar_closes, bar_closes);
        self.depth += 1;
        let result = parse(self);
        self.depth -= 1;
        self.bar_closes = outer;
        result
    }

    /// Expressions separated by commas or semicolons, up to one of `closing` or the end. With `expand`, one with ± is two.
    fn items(&mut self, closing: &[char], expand: bool) -> Option<Vec<Expr>> {
        let mut items = Vec::new();
        loop {
            while self.eat(',') || self.eat(';') {}
            match self.op() {
                None if self.peek().is_none() => return Some(items),
                Some(c) if closing.contains(&c) => return Some(items),
                _ => {}
            }
            match expand {
                true => self.both_signs(&mut items)?,
                false => items.push(self.relation()?),
            }
            if !matches!(self.op(), Some(',' | ';')) {
                return Some(items);
            }
        }
    }

    fn both_signs(&mut self, items: &mut Vec<Expr>) -> Option<()> {
        let start = self.at;
        let outer = (self.plus, self.met_plus_minus);
        (self.plus, self.met_plus_minus) = (true, false);
        items.push(self.relation()?);
        if self.met_plus_minus {
            self.at = start;
            self.plus = false;
            items.push(self.relation()?);
        }
        (self.plus, self.met_plus_minus) = outer;
        Some(())
    }

    fn relation(&mut self) -> Option<Expr> {
        self.nested(self.bar_closes, |p| {
            let first = hoist(p.union()?);
            let (mut operands, mut signs) = (vec![first], Vec::new());
            while let Some(sign) = p.op().filter(|c| RELATIONS.contains(*c)) {
                p.at += 1;
                p.node()?;
                signs.push(sign);
                operands.push(hoist(p.union()?));
            }
            // Of "√2/2 ≈ 0.707" the exact value counts.
            if signs.last() == Some(&'≈') && !p.as_sympy {
                signs.pop();
                operands.pop();
            }
            Some(if signs.is_empty() { operands.remove(0) } else { Expr::Relation(operands, signs) })
        })
    }

    fn union(&mut self) -> Option<Expr> {
        let mut parts = vec![self.sum()?];
        let mut joint = None;
        while let Some(sign) = self.op().filter(|c| "∪∩∖".contains(*c)) {
            if joint.is_some_and(|joint| joint != sign) {
                return None;
            }
            joint = Some(sign);
            self.at += 1;
            parts.push(self.sum()?);
        }
        Some(match joint {
            Some(sign) => Expr::Join(sign, parts),
            None => parts.remove(0),
        })
    }

    /// The sign at the cursor: whether it is a minus.
    fn sign(&mut self) -> Option<bool> {
        let minus = match self.op()? {
            '+' => false,
            '-' => true,
            c @ ('±' | '∓') => {
                self.met_plus_minus = true;
                (c == '±') != self.plus
            }
            _ => return None,
        };
        self.at += 1;
        Some(minus)
    }

    fn sum(&mut self) -> Option<Expr> {
        let mut parts = Vec::new();
        loop {
            let mut minus = false;
            let mut signs = 0;
            while let Some(next) = self.sign() {
                minus ^= next;
                signs += 1;
                self.node()?;
            }
            if signs == 0 && !parts.is_empty() {
                return Some(if parts.len() == 1 { parts.remove(0) } else { Expr::Sum(parts) });
            }
            let product = self.product()?;
            parts.push(if minus { product.negative() } else { product });
        }
    }

    /// Whether an implicit factor starts at the cursor.
    fn factor_starts(&self) -> bool {
        match self.peek() {
            Some(Token::Op(c)) => match c {
                '|' | '‖' => !self.bar_closes,
                _ => "([{⦃⌊⌈∞⟨∅".contains(*c),
            },
            // Two numbers side by side are no product.
            Some(Token::Number { .. }) => self.at > 0 && !matches!(self.tokens[self.at - 1], Token::Number { .. }),
            Some(Token::Repeating(_) | Token::End(_)) | None => false,
            _ => true,
        }
    }

    fn product(&mut self) -> Option<Expr> {
        let mut parts = vec![self.factor()?];
        loop {
            let divide = self.is_op(0, '/') || self.is_op(0, ':') && !self.bar_closes;
            if divide || self.eat('*') {
                self.at += usize::from(divide);
                let minus = self.sign();
                let factor = self.factor()?;
                let factor = if minus == Some(true) { factor.negative() } else { factor };
                if divide {
                    let over = if parts.len() == 1 { parts.remove(0) } else { Expr::Product(std::mem::take(&mut parts)) };
                    parts = vec![quotient(over, factor)];
                } else {
                    parts.push(factor);
                }
            } else if self.factor_starts() {
                parts.push(self.factor()?);
            } else {
                return Some(if parts.len() == 1 { parts.remove(0) } else { Expr::Product(parts) });
            }
        }
    }

    /// A primary with what follows it: powers, factorials, degrees, percent, units.
    fn factor(&mut self) -> Option<Expr> {
        self.node()?;
        let mut value = self.nested(self.bar_closes, Self::primary)?;
        loop {
            self.node()?;
            value = match self.peek() {
                Some(Token::Op('!')) => {
                    self.at += 1;
                    one(Function::Factorial, value)
                }
                Some(Token::Op('%')) => {
                    self.at += 1;
                    Expr::Quantity(Box::new(value), Unit::percent())
                }
                Some(Token::Op('°')) => {
                    self.at += 1;
                    self.degrees(value)
                }
                Some(Token::Op('^')) => {
                    self.at += 1;
                    if self.eat('°') {
                        self.degrees(value)
                    } else if self.is_op(0, '{') && self.is_op(1, '°') && self.is_op(2, '}') {
                        self.at += 3;
                        self.degrees(value)
                    } else {
                        Expr::Power(Box::new(value), Box::new(self.exponent()?))
                    }
                }
                Some(Token::Word(word)) if !matches!(value, Expr::Symbol(_)) || Unit::parse_known(word).is_some() => {
                    Expr::Quantity(Box::new(value), self.unit()?)
                }
                _ => return Some(value),
            };
        }
    }

    /// Degrees, perhaps Celsius or Fahrenheit, whose letter is dropped.
    fn degrees(&mut self, value: Expr) -> Expr {
        if matches!(self.peek(), Some(Token::Letter(c)) if c == "C" || c == "F") {
            self.at += 1;
        }
        Expr::Quantity(Box::new(value), Unit::degree())
    }

    fn exponent(&mut self) -> Option<Expr> {
        let minus = self.sign();
        let value = self.nested(self.bar_closes, |p| {
            let base = p.primary()?;
            if p.is_op(0, '^') && p.depth < MAX_DEPTH {
                p.at += 1;
                return Some(Expr::Power(Box::new(base), Box::new(p.exponent()?)));
            }
            Some(base)
        })?;
        Some(if minus == Some(true) { value.negative() } else { value })
    }

    /// Words of a unit at the cursor, joined.
    fn unit(&mut self) -> Option<Unit> {
        let mut text = String::new();
        loop {
            match self.peek() {
                Some(Token::Word(word)) => {
                    text.push(' ');
                    text += word;
                    self.at += 1;
                }
                Some(Token::Op('/')) if matches!(self.ahead(1), Some(Token::Word(_))) => {
                    text.push('/');
                    self.at += 1;
                }
                Some(Token::Op('/')) => match self.ahead(1) {
                    Some(Token::Letter(letter)) if matches!(letter.as_str(), "h" | "s" | "m" | "g" | "L") => {
                        text += &format!("/{letter}");
                        self.at += 2;
                    }
                    _ => break,
                },
                Some(Token::Op('^')) => {
                    let braces = usize::from(self.is_op(1, '{'));
                    let minus = usize::from(self.is_op(1 + braces, '-'));
                    let Some(Token::Number { digits, exponent: 0 }) = self.ahead(1 + braces + minus) else { break };
                    text += &format!("^{}{digits}", if minus == 1 { "-" } else { "" });
                    self.at += 2 + 2 * braces + minus;
                }
                _ => break,
            }
        }
        Unit::parse(&text)
    }

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

    fn primary(&mut self) -> Option<Expr> {
        self.node()?;
        if self.depth >= MAX_DEPTH {
            return None;
        }
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
                let one_digit = self.as_sympy;
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
