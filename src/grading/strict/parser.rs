//! From tokens to an expression tree, by recursive descent. Depth and size are limited.

mod primary;

use super::expr::{Expr, Function};
use super::lexer::Token;
use super::units::Unit;

const MAX_DEPTH: usize = 100;
const MAX_NODES: usize = 1500;
/// Of the tree, whose functions recurse: a long chain of factorials or quotients is as deep as one of brackets.
const MAX_HEIGHT: usize = 120;

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
    Some(if items.len() == 1 { items.remove(0) } else { Expr::List(items) }).filter(is_flat_enough)
}

fn is_flat_enough(expr: &Expr) -> bool {
    let mut level = vec![expr];
    for _ in 0..MAX_HEIGHT {
        level = level.into_iter().flat_map(Expr::parts).collect();
        if level.is_empty() {
            return true;
        }
    }
    false
}

/// Parses one expression or relation as SymPy 1.12 reads LaTeX, which ignores what follows it.
pub fn parse_as_sympy(tokens: &[Token]) -> Option<Expr> {
    Parser::new(tokens, true).relation().filter(is_flat_enough)
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
                match parts.first() {
                    // \$5 million
                    Some(Expr::Quantity(_, unit)) if !unit.is_percent() && !unit.is_degree() => {
                        let Expr::Quantity(value, unit) = parts.remove(0) else { return Expr::Product(parts) };
                        parts.insert(0, *value);
                        quantity(Expr::Product(parts), unit)
                    }
                    _ => Expr::Product(parts),
                }
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

/// The variable of an inequality or membership, or of several joined by "and".
fn condition(expr: &Expr) -> Option<&Expr> {
    match expr {
        Expr::Relation(operands, signs) if signs.iter().all(|sign| "<>≤≥≠∈".contains(*sign)) => {
            operands.iter().find(|operand| matches!(operand, Expr::Symbol(_)))
        }
        Expr::Join('∧', parts) => condition(&parts[0]),
        _ => None,
    }
}

/// Makes one of the last two items if they are conditions on one variable: x > 2 and x < 3 is no list of two answers.
fn conjoin(items: &mut Vec<Expr>) {
    let [.., before, last] = items.as_slice() else { return };
    if condition(before).is_none() || condition(before) != condition(last) {
        return;
    }
    let last = items.pop();
    let mut parts = match items.pop() {
        Some(Expr::Join('∧', parts)) => parts,
        before => Vec::from_iter(before),
    };
    parts.extend(last);
    items.push(Expr::Join('∧', parts));
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

    /// Expressions separated by commas, semicolons or "and", up to one of `closing` or the end. With `expand`, one with ± is two.
    fn items(&mut self, closing: &[char], expand: bool) -> Option<Vec<Expr>> {
        let mut items = Vec::new();
        loop {
            let mut and = false;
            while self.eat(',') || self.eat(';') || self.is_op(0, '∧') {
                and |= self.eat('∧');
            }
            match self.op() {
                None if self.peek().is_none() => return Some(items),
                Some(c) if closing.contains(&c) => return Some(items),
                _ => {}
            }
            match expand {
                true => self.both_signs(&mut items)?,
                false => items.push(self.relation()?),
            }
            if and {
                conjoin(&mut items);
            }
            if !matches!(self.op(), Some(',' | ';' | '∧')) {
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
            let ratio = self.ratio()?;
            parts.push(if minus { ratio.negative() } else { ratio });
        }
    }

    /// Whether an implicit factor starts at the cursor.
    fn factor_starts(&self) -> bool {
        match self.peek() {
            Some(Token::Op(c)) => match c {
                '|' | '‖' => !self.bar_closes,
                _ => "([{⦃⌊⌈∞⟨∅".contains(*c),
            },
            // Two numbers side by side are no product, unless the first is a script: 2^3 100.
            Some(Token::Number { .. }) => match &self.tokens[..self.at] {
                [.., Token::Op('^' | '_'), Token::Number { .. }] => !self.as_sympy,
                [.., Token::Number { .. }] | [] => false,
                _ => true,
            },
            Some(Token::Repeating(_) | Token::End(_)) | None => false,
            _ => true,
        }
    }

    /// a : b is a quotient; a : b : c is no quotient of a quotient.
    fn ratio(&mut self) -> Option<Expr> {
        let mut parts = vec![self.product()?];
        while !self.as_sympy && !self.bar_closes && self.eat(':') {
            let minus = self.sign();
            let part = self.product()?;
            parts.push(if minus == Some(true) { part.negative() } else { part });
        }
        let last = parts.pop()?;
        Some(match parts.len() {
            0 => last,
            1 => quotient(parts.pop()?, last),
            _ => {
                parts.push(last);
                Expr::Ratio(parts)
            }
        })
    }

    fn product(&mut self) -> Option<Expr> {
        let mut parts = vec![self.factor()?];
        loop {
            let divide = self.is_op(0, '/') || self.is_op(0, ':') && self.as_sympy && !self.bar_closes;
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
                    let unit = self.unit()?;
                    if unit.is_degree() { self.degrees(value) } else { Expr::Quantity(Box::new(value), unit) }
                }
                _ => return Some(value),
            };
        }
    }

    /// Degrees, or those of Celsius or Fahrenheit where their letter follows. SymPy knows angles alone.
    fn degrees(&mut self, value: Expr) -> Expr {
        let scale = match self.peek() {
            Some(Token::Letter(scale) | Token::Word(scale)) => scale.to_lowercase(),
            _ => String::new(),
        };
        let unit = match scale.as_str() {
            "c" | "celsius" => Some(Unit::celsius()),
            "f" | "fahrenheit" => Some(Unit::fahrenheit()),
            _ => None,
        };
        self.at += usize::from(unit.is_some());
        Expr::Quantity(Box::new(value), unit.filter(|_| !self.as_sympy).unwrap_or_else(Unit::degree))
    }

    fn exponent(&mut self) -> Option<Expr> {
        let minus = self.sign();
        let value = self.nested(self.bar_closes, |p| {
            let base = p.primary()?;
            if p.is_op(0, '^') {
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
}
