//! When two parsed answers are the same answer.

use super::expr::{Expr, Function, Rational, to_f64};
use super::identity::{constant, identical, proportional};
use super::sets::{as_set, subject};
use num_bigint::BigInt;
use num_traits::{Signed, Zero};
use std::cell::Cell;

/// What is asked of the comparison beyond the defaults.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// 28 % also equals 0.28.
    pub percent_as_fraction: bool,
}

/// Nodes that one comparison may look at, so that long lists end in time.
const BUDGET: usize = 60_000;

/// A decimal with at least this many places equals what rounds to it.
const ROUNDED_PLACES: usize = 4;

/// It has at least three digits that are not leading zeros: 0.0001 says too little of what it was rounded from.
const LEAST_DIGITS: i32 = 100;

pub struct Comparison {
    options: Options,
    left: Cell<usize>,
}

/// Whether two answers are the same.
pub fn same(a: &Expr, b: &Expr, options: Options) -> bool {
    Comparison { options, left: Cell::new(BUDGET) }.same(a, b)
}

fn size(expr: &Expr) -> usize {
    1 + expr.parts().into_iter().map(size).sum::<usize>()
}

/// x, f(x), AB, (x, y): what stands before the = of "x = 5".
fn is_head(expr: &Expr) -> bool {
    match expr {
        Expr::Symbol(_) => true,
        Expr::Product(parts) => parts.iter().all(|part| matches!(part, Expr::Symbol(_) | Expr::E | Expr::I)),
        // The length |AB|; |x| = 5 does not say what x is.
        Expr::Call(Function::Abs, parts) => matches!(parts.as_slice(), [Expr::Product(_)]) && is_head(&parts[0]),
        Expr::Tuple(_, _, parts) => parts.iter().all(is_head),
        _ => false,
    }
}

/// What x = … = c or c = x says that x is, and the value of 10/2 = 5.
fn definition(expr: &Expr) -> Option<&Expr> {
    let Expr::Relation(operands, signs) = expr else { return None };
    let (first, last) = (operands.first()?, operands.last()?);
    let true_numbers = || {
        operands.iter().all(|operand| operand.is_scalar() && operand.is_constant())
            && operands.windows(2).all(|pair| identical(&pair[0], &pair[1]))
    };
    match signs.iter().all(|sign| *sign == '=') {
        true if is_head(first) => Some(last),
        true if is_head(last) => Some(first),
        true if true_numbers() => Some(last),
        _ => None,
    }
}

/// The answer before "k ∈ ℤ", which only says what its parameter is.
fn before_parameter(expr: &Expr) -> Option<Expr> {
    let Expr::List(items) = expr else { return None };
    let (Expr::Relation(operands, signs), rest) = items.split_last()? else { return None };
    let integer = matches!(operands.as_slice(), [Expr::Symbol(_), Expr::Symbol(set)] if set == "mathbb Z" || set == "ℤ");
    match rest {
        _ if !integer || *signs != ['∈'] => None,
        [] => None,
        [only] => Some(only.clone()),
        several => Some(Expr::List(several.to_vec())),
    }
}

/// The letters of a list of definitions, without their subscripts, if there are several: in x = 1, y = 2 it matters which
/// is which, in x_1 = 1, x_2 = 2 it does not.
fn defines_several(items: &[Expr]) -> bool {
    let letter = |item: &Expr| match item {
        Expr::Relation(operands, _) if definition(item).is_some() => match &operands[0] {
            Expr::Symbol(name) => name.chars().next(),
            _ => None,
        },
        _ => None,
    };
    let letters: Option<Vec<char>> = items.iter().map(letter).collect();
    letters.is_some_and(|letters| letters.iter().any(|other| *other != letters[0]))
}

fn infinity(expr: &Expr) -> Option<bool> {
    match expr {
        Expr::Infinity => Some(true),
        Expr::Negative(inner) if **inner == Expr::Infinity => Some(false),
        _ => None,
    }
}

/// Whether `decimal` is a literal of enough places that `value` rounds to.
fn rounds(decimal: &Expr, value: &Expr) -> bool {
    let Expr::Decimal { value: written, places, unit } = decimal else { return false };
    let digits = (written / unit).abs();
    if *places < ROUNDED_PLACES || digits < Rational::from_integer(BigInt::from(LEAST_DIGITS)) {
        return false;
    }
    if let Some(exact) = value.exact() {
        return (exact - written).abs() * Rational::from_integer(BigInt::from(2)) <= *unit;
    }
    let half = to_f64(unit) / 2.0;
    constant(value).is_some_and(|value| (value - to_f64(written)).abs() <= half * (1.0 + 1e-9))
}

impl Comparison {
    /// Takes nodes from the budget. None if there are not enough left.
    fn charge(&self, nodes: usize) -> Option<()> {
        self.left.set(self.left.get().checked_sub(nodes)?);
        Some(())
    }

    fn same(&self, a: &Expr, b: &Expr) -> bool {
        if self.charge(size(a) + size(b)).is_none() {
            return false;
        }
        if a == b {
            return true;
        }
        match (before_parameter(a), before_parameter(b)) {
            (Some(a), None) => return self.same(&a, b),
            (None, Some(b)) => return self.same(a, &b),
            _ => {}
        }
        match (a, b) {
            (Expr::Tuple(o, c, x), Expr::Tuple(p, d, y)) => {
                let round = |bracket: char| {
                    if bracket == '⟨' {
                        '('
                    } else if bracket == '⟩' {
                        ')'
                    } else {
                        bracket
                    }
                };
                round(*o) == round(*p) && round(*c) == round(*d) && self.in_order(x, y)
            }
            (Expr::Set(x), Expr::Set(y)) => self.subset(x, y) && self.subset(y, x),
            (Expr::List(x), Expr::List(y)) if defines_several(x) != defines_several(y) => self.in_order(x, y),
            (Expr::List(x) | Expr::Set(x), Expr::List(y) | Expr::Set(y)) => self.in_any_order(x, y) || self.as_sets(a, b),
            (Expr::Join(s, x), Expr::Join(t, y)) => {
                s == t && if *s == '∖' { self.in_order(x, y) } else { self.in_any_order(x, y) } || self.as_sets(a, b)
            }
            (Expr::Ratio(x), Expr::Ratio(y)) => self.in_order(x, y) || self.same_ratio(x, y),
            (Expr::Builder(x, p), Expr::Builder(y, q)) => self.same(x, y) && self.in_any_order(p, q) || self.as_sets(a, b),
            (Expr::Relation(x, s), Expr::Relation(y, t)) => self.same_relation(x, s, y, t) || self.as_sets(a, b),
            _ => {
                if let (Some(x), None) | (None, Some(x)) = (definition(a), definition(b)) {
                    return if definition(a).is_some() { self.same(x, b) } else { self.same(a, x) };
                }
                if let (Expr::Set(only), other) | (other, Expr::Set(only)) = (a, b)
                    && let [only] = only.as_slice()
                    && other.is_scalar()
                {
                    return self.same(only, other);
                }
                if let (Some(x), Some(y)) = (self.as_matrix(a), self.as_matrix(b)) {
                    return x.len() == y.len() && x.iter().zip(&y).all(|(x, y)| self.in_order(x, y));
                }
                if a.is_scalar() && b.is_scalar() { self.same_scalar(a, b) } else { self.as_sets(a, b) }
            }
        }
    }

    /// The rows of a matrix, with what it is multiplied by multiplied in.
    fn as_matrix(&self, expr: &Expr) -> Option<Vec<Vec<Expr>>> {
        let each = |rows: Vec<Vec<Expr>>, f: &dyn Fn(Expr) -> Expr| {
            rows.into_iter().map(|row| row.into_iter().map(f).collect()).collect()
        };
        match expr {
            Expr::Matrix(rows) => Some(rows.clone()),
            Expr::Negative(inner) => Some(each(self.as_matrix(inner)?, &Expr::negative)),
            Expr::Quotient(over, under) => {
                let rows = self.as_matrix(over)?;
                self.charge(rows.len() * rows[0].len() * size(under))?;
                Some(each(rows, &|cell| Expr::Quotient(Box::new(cell), under.clone())))
            }
            Expr::Product(parts) => {
                let (at, rows) = parts.iter().enumerate().find_map(|(at, part)| Some((at, self.as_matrix(part)?)))?;
                let scalars: Vec<Expr> = [&parts[..at], &parts[at + 1..]].concat();
                self.charge(rows.len() * rows[0].len() * scalars.iter().map(size).sum::<usize>())?;
                scalars.iter().all(Expr::is_scalar).then(|| {
                    each(rows, &|cell| {
                        let mut factors = scalars.clone();
                        factors.push(cell);
                        Expr::Product(factors)
                    })
                })
            }
            _ => None,
        }
    }

    /// Whether x₀ : x₁ : … and y₀ : y₁ : … are the same but for one factor, by products with a part that is not zero.
    fn same_ratio(&self, x: &[Expr], y: &[Expr]) -> bool {
        let zero = |part: &Expr| part.exact().is_some_and(|value| value.is_zero());
        let Some(at) = x.iter().position(|part| !zero(part)) else { return false };
        let product = |a: &Expr, b: &Expr| Expr::Product(vec![a.clone(), b.clone()]);
        x.len() == y.len()
            && !zero(&y[at])
            && x.iter().chain(y).all(Expr::is_scalar)
            && x.iter().zip(y).all(|(a, b)| {
                let (left, right) = (product(a, &y[at]), product(b, &x[at]));
                self.charge(size(&left) + size(&right)).is_some() && self.same_value(&left, &right)
            })
    }

    fn in_order(&self, x: &[Expr], y: &[Expr]) -> bool {
        x.len() == y.len() && x.iter().zip(y).all(|(x, y)| self.same(x, y))
    }

    fn in_any_order(&self, x: &[Expr], y: &[Expr]) -> bool {
        let mut rest: Vec<&Expr> = y.iter().collect();
        x.len() == y.len()
            && x.iter().all(|x| {
                let found = rest.iter().position(|y| self.same(x, y));
                found.map(|at| rest.swap_remove(at)).is_some()
            })
    }

    fn subset(&self, x: &[Expr], y: &[Expr]) -> bool {
        x.iter().all(|x| y.iter().any(|y| self.same(x, y)))
    }

    /// Compares as sets if that changes what either of them is. What is said of x is not said of y.
    fn as_sets(&self, a: &Expr, b: &Expr) -> bool {
        if let (Some(x), Some(y)) = (subject(a), subject(b))
            && x != y
        {
            return false;
        }
        match (as_set(a), as_set(b)) {
            (Some(x), Some(y)) if x != *a || y != *b => self.same(&x, &y),
            _ => false,
        }
    }

    fn same_relation(&self, x: &[Expr], s: &[char], y: &[Expr], t: &[char]) -> bool {
        if x.len() != y.len() {
            return false;
        }
        let flip = |sign: &char| match sign {
            '<' => '>',
            '>' => '<',
            '≤' => '≥',
            '≥' => '≤',
            other => *other,
        };
        let turned: Vec<Expr> = y.iter().rev().cloned().collect();
        let turned_signs: Vec<char> = t.iter().rev().map(flip).collect();
        let symmetric = |signs: &[char]| signs.iter().all(|c| "=<>≤≥≠≈≡⊥∥∼".contains(*c));
        (s == t && self.same_links(x, y, s)) || (symmetric(t) && s == turned_signs && self.same_links(x, &turned, s))
    }

    fn same_links(&self, x: &[Expr], y: &[Expr], signs: &[char]) -> bool {
        self.in_order(x, y)
            || signs.iter().enumerate().all(|(i, sign)| {
                let (x, y) = (&x[i..i + 2], &y[i..i + 2]);
                let link = [x, y].concat();
                let variables = !(x.iter().all(Expr::is_constant) || y.iter().all(Expr::is_constant));
                let difference = |pair: &[Expr]| pair[1].clone().minus(pair[0].clone());
                let ratio = || proportional(&difference(x), &difference(y));
                let equal = self.in_order(x, y);
                equal
                    || variables
                        && link.iter().all(Expr::is_scalar)
                        && match sign {
                            '=' | '≠' => ratio().is_some(),
                            '<' | '>' | '≤' | '≥' => ratio() == Some(true),
                            _ => false,
                        }
            })
    }

    fn same_scalar(&self, a: &Expr, b: &Expr) -> bool {
        match (a, b) {
            (Expr::Quantity(x, u), Expr::Quantity(y, v)) => {
                let scaled = |value: &Expr, factor: &Rational| Expr::Product(vec![value.clone(), Expr::Number(factor.clone())]);
                u.same_kind(v)
                    && (self.same(x, y) && u.factor == v.factor
                        || self.same_value(&scaled(x, &u.factor), &scaled(y, &v.factor)))
            }
            (quantity @ Expr::Quantity(x, unit), y) | (y, quantity @ Expr::Quantity(x, unit)) => {
                let percent = || Expr::Quotient(x.clone(), Box::new(Expr::Number(Rational::from_integer(BigInt::from(100)))));
                self.same(x, y)
                    || unit.is_degree() && identical(quantity, y)
                    || unit.is_percent() && self.options.percent_as_fraction && self.same_value(&percent(), y)
            }
            _ => self.same_value(a, b),
        }
    }

    fn same_value(&self, a: &Expr, b: &Expr) -> bool {
        if let (Some(x), y) | (y, Some(x)) = (infinity(a), infinity(b)) {
            return y == Some(x);
        }
        let equal = match (a.exact(), b.exact()) {
            (Some(x), Some(y)) => x == y,
            _ => identical(a, b),
        };
        equal || rounds(a, b) || rounds(b, a)
    }
}
