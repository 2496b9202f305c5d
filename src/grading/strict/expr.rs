//! The expression tree of an answer, and its exact value where it has one.

use super::units::Unit;
use num_bigint::BigInt;
use num_rational::Ratio;
use num_traits::{One, Signed, ToPrimitive, Zero};

pub type Rational = Ratio<BigInt>;

/// Exact values are computed up to this size, in bits.
const MAX_BITS: u64 = 4096;

#[derive(Debug, Clone, PartialEq)]
pub enum Expr {
    Number(Rational),
    /// Written with a decimal point: the value, and the size of one unit of its last place.
    Decimal {
        value: Rational,
        places: usize,
        unit: Rational,
    },
    /// A variable, a word, or anything that stands for itself.
    Symbol(String),
    Pi,
    E,
    I,
    Infinity,
    Negative(Box<Expr>),
    Sum(Vec<Expr>),
    Product(Vec<Expr>),
    Quotient(Box<Expr>, Box<Expr>),
    Power(Box<Expr>, Box<Expr>),
    Call(Function, Vec<Expr>),
    /// a : b : c and longer. Two parts are a quotient.
    Ratio(Vec<Expr>),
    /// A value with a unit, a percentage, degrees.
    Quantity(Box<Expr>, Unit),
    /// (a, b), [a, b), ⟨a, b⟩: order and brackets matter.
    Tuple(char, char, Vec<Expr>),
    Set(Vec<Expr>),
    /// Several answers, in any order.
    List(Vec<Expr>),
    /// {element | conditions}.
    Builder(Box<Expr>, Vec<Expr>),
    /// Sets joined by ∪, ∩ or ∖, or conditions on one variable joined by ∧.
    Join(char, Vec<Expr>),
    /// a < b ≤ c: one more operand than there are signs.
    Relation(Vec<Expr>, Vec<char>),
    Matrix(Vec<Vec<Expr>>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    Sin,
    Cos,
    Tan,
    Arcsin,
    Arccos,
    Arctan,
    Sinh,
    Cosh,
    Tanh,
    /// Natural.
    Ln,
    Exp,
    /// Root: argument, degree.
    Root,
    Abs,
    Floor,
    Ceiling,
    Factorial,
    Binomial,
    Max,
    Min,
}

pub fn integer(value: i64) -> Expr {
    Expr::Number(Rational::from_integer(BigInt::from(value)))
}

impl Expr {
    pub fn negative(self) -> Expr {
        match self {
            Expr::Number(value) => Expr::Number(-value),
            Expr::Decimal { value, places, unit } => Expr::Decimal { value: -value, places, unit },
            Expr::Negative(inner) => *inner,
            Expr::Quantity(inner, unit) => Expr::Quantity(Box::new(inner.negative()), unit),
            other => Expr::Negative(Box::new(other)),
        }
    }

    pub fn minus(self, other: Expr) -> Expr {
        Expr::Sum(vec![self, other.negative()])
    }

    /// The direct parts.
    pub fn parts(&self) -> Vec<&Expr> {
        match self {
            Expr::Number(_) | Expr::Decimal { .. } | Expr::Symbol(_) | Expr::Pi | Expr::E | Expr::I | Expr::Infinity => {
                Vec::new()
            }
            Expr::Negative(a) | Expr::Quantity(a, _) => vec![a],
            Expr::Quotient(a, b) | Expr::Power(a, b) => vec![a, b],
            Expr::Sum(parts)
            | Expr::Product(parts)
            | Expr::Ratio(parts)
            | Expr::Call(_, parts)
            | Expr::Tuple(_, _, parts)
            | Expr::Set(parts)
            | Expr::List(parts)
            | Expr::Join(_, parts)
            | Expr::Relation(parts, _) => parts.iter().collect(),
            Expr::Builder(element, conditions) => std::iter::once(&**element).chain(conditions).collect(),
            Expr::Matrix(rows) => rows.iter().flatten().collect(),
        }
    }

    pub fn any(&self, test: &impl Fn(&Expr) -> bool) -> bool {
        test(self) || self.parts().iter().any(|part| part.any(test))
    }

    pub fn is_constant(&self) -> bool {
        !self.any(&|e| matches!(e, Expr::Symbol(_)))
    }

    /// Whether it is one value, as against a collection, relation or matrix.
    pub fn is_scalar(&self) -> bool {
        use Expr::*;
        !matches!(self, Ratio(_) | Tuple(..) | Set(_) | List(_) | Builder(..) | Join(..) | Relation(..) | Matrix(_))
    }

    /// The exact value of rational arithmetic. None if it is not rational, undefined or too large.
    pub fn exact(&self) -> Option<Rational> {
        self.exact_at(&|_| None)
    }

    /// The exact value where the variables have the values that `value_of` gives.
    pub fn exact_at(&self, value_of: &dyn Fn(&str) -> Option<Rational>) -> Option<Rational> {
        let exact = |expr: &Expr| expr.exact_at(value_of);
        let value = match self {
            Expr::Number(value) | Expr::Decimal { value, .. } => return Some(value.clone()),
            Expr::Symbol(name) => return value_of(name),
            Expr::Negative(a) => -exact(a)?,
            Expr::Sum(parts) => {
                let mut total = Rational::zero();
                for part in parts {
                    total = bounded(total + exact(part)?)?;
                }
                total
            }
            Expr::Product(parts) => {
                let mut total = Rational::one();
                for part in parts {
                    total = bounded(total * exact(part)?)?;
                }
                total
            }
            Expr::Quotient(a, b) => {
                let (a, b) = (exact(a)?, exact(b)?);
                (!b.is_zero()).then(|| a / b)?
            }
            Expr::Power(a, b) => power(&exact(a)?, &exact(b)?)?,
            Expr::Call(function, parts) => call(*function, parts, &exact)?,
            _ => return None,
        };
        bounded(value)
    }
}

fn bits(value: &Rational) -> u64 {
    value.numer().bits().max(value.denom().bits())
}

fn bounded(value: Rational) -> Option<Rational> {
    (bits(&value) <= MAX_BITS).then_some(value)
}

/// base^exponent for integer exponents, while the result is small enough.
fn power(base: &Rational, exponent: &Rational) -> Option<Rational> {
    if !exponent.is_integer() {
        return None;
    }
    let size = exponent.numer().abs().to_u32().filter(|size| *size <= 10_000)?;
    if exponent.is_negative() && base.is_zero() || bits(base).saturating_sub(1) * u64::from(size) > MAX_BITS {
        return None;
    }
    let (numer, denom) = (base.numer().pow(size), base.denom().pow(size));
    Some(if exponent.is_negative() { Rational::new(denom, numer) } else { Rational::new(numer, denom) })
}

/// One, changed by `step` for 0 … count − 1, while it is small enough.
fn product(count: u64, step: impl Fn(BigInt, u64) -> BigInt) -> Option<Rational> {
    let mut product = BigInt::one();
    for i in 0..count {
        product = step(product, i);
        if product.bits() > MAX_BITS {
            return None;
        }
    }
    Some(Rational::from_integer(product))
}

fn call(function: Function, parts: &[Expr], exact: &dyn Fn(&Expr) -> Option<Rational>) -> Option<Rational> {
    let whole = |value: &Rational| value.is_integer().then(|| value.to_integer());
    let first = exact(parts.first()?)?;
    match function {
        Function::Abs => Some(first.abs()),
        Function::Floor => Some(first.floor()),
        Function::Ceiling => Some(first.ceil()),
        Function::Factorial => {
            let n = whole(&first)?.to_u64()?;
            product(n, |product, i| product * (i + 1))
        }
        Function::Binomial => {
            let (n, k) = (whole(&first)?, whole(&exact(parts.get(1)?)?)?);
            if n.is_negative() || k.is_negative() {
                return None;
            }
            if k > n {
                return Some(Rational::zero());
            }
            product(k.clone().min(&n - k).to_u64()?, |product, i| product * (&n - i) / (i + 1))
        }
        Function::Root => {
            let degree = whole(&exact(parts.get(1)?)?)?.to_u32().filter(|d| (2..=20).contains(d))?;
            if bits(&first) > 512 || first.is_negative() {
                return None;
            }
            let root = Rational::new(first.numer().nth_root(degree), first.denom().nth_root(degree));
            (power(&root, &Rational::from_integer(degree.into()))? == first).then_some(root)
        }
        Function::Max | Function::Min => {
            let mut best = first;
            for part in &parts[1..] {
                let next = exact(part)?;
                best = if function == Function::Max { best.max(next) } else { best.min(next) };
            }
            Some(best)
        }
        _ => None,
    }
}

/// The nearest double, or infinity.
pub fn to_f64(value: &Rational) -> f64 {
    if let (Some(numer), Some(denom)) = (value.numer().to_i32(), value.denom().to_i32()) {
        return f64::from(numer) / f64::from(denom);
    }
    // 64 significant bits of the quotient, then the power of two that was taken out.
    let shift = 64 - (value.numer().bits() as i64 - value.denom().bits() as i64);
    let quotient = match shift >= 0 {
        true => (value.numer().abs() << shift as u64) / value.denom(),
        false => value.numer().abs() / (value.denom() << shift.unsigned_abs()),
    };
    let size = quotient.to_f64().unwrap_or(f64::INFINITY);
    // In two steps: the power alone can leave the range though the product does not.
    let half = (-shift / 2) as i32;
    let size = size * 2f64.powi(half) * 2f64.powi((-shift) as i32 - half);
    if value.is_negative() { -size } else { size }
}

/// A decimal literal: its digits with an optional point, times a power of ten.
pub fn decimal(digits: &str, exponent: i32) -> Option<Expr> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let numer: BigInt = format!("0{whole}{fraction}").parse().ok()?;
    let power = |e: i64| BigInt::from(10).pow(e.unsigned_abs() as u32);
    let last = i64::from(exponent) - fraction.len() as i64;
    let unit = if last < 0 { Rational::new(BigInt::one(), power(last)) } else { Rational::from_integer(power(last)) };
    let value = &unit * Rational::from_integer(numer);
    Some(match fraction.is_empty() {
        true => Expr::Number(value),
        false => Expr::Decimal { value, places: fraction.len(), unit },
    })
}
