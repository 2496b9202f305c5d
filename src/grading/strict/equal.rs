//! When two parsed answers are the same answer.

use super::expr::{Expr, Rational, to_f64};
use super::identity::{constant, identical, proportional};
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
        Expr::Tuple(_, _, parts) => parts.iter().all(is_head),
        _ => false,
    }
}

/// What x = … = c says that x is.
fn definition(expr: &Expr) -> Option<&Expr> {
    match expr {
        Expr::Relation(operands, signs) if is_head(&operands[0]) && signs.iter().all(|s| *s == '=') => operands.last(),
        _ => None,
    }
}

/// The set that an inequality, membership, or condition describes.
fn as_set(expr: &Expr) -> Option<Expr> {
    let interval = |open, a: &Expr, b: &Expr, close| Expr::Tuple(open, close, vec![a.clone(), b.clone()]);
    let (low, high) = (Expr::Infinity.negative(), Expr::Infinity);
    match expr {
        Expr::Tuple(_, _, items) if items.len() == 2 => Some(expr.clone()),
        Expr::Join(..) | Expr::Set(_) => Some(expr.clone()),
        Expr::Builder(element, conditions) => {
            let element = match &**element {
                Expr::Relation(operands, signs) if signs == &['∈'] => &operands[0],
                other => other,
            };
            let [condition] = conditions.as_slice() else { return None };
            let about = condition.parts().contains(&element);
            if matches!(element, Expr::Symbol(_)) && about { as_set(condition) } else { None }
        }
        Expr::Relation(operands, signs) => match (operands.as_slice(), signs.as_slice()) {
            ([Expr::Symbol(_), set], ['∈']) => as_set(set),
            ([Expr::Symbol(_), c], ['≠']) if c.is_constant() => {
                Some(Expr::Join('∪', vec![interval('(', &low, c, ')'), interval('(', c, &high, ')')]))
            }
            ([x @ Expr::Symbol(_), c], [sign]) | ([c, x @ Expr::Symbol(_)], [sign]) if c.is_constant() => {
                let below = std::ptr::eq(x, &operands[0]);
                match (sign, below) {
                    ('<', true) | ('>', false) => Some(interval('(', &low, c, ')')),
                    ('≤', true) | ('≥', false) => Some(interval('(', &low, c, ']')),
                    ('>', true) | ('<', false) => Some(interval('(', c, &high, ')')),
                    ('≥', true) | ('≤', false) => Some(interval('[', c, &high, ')')),
                    _ => None,
                }
            }
            ([a, Expr::Symbol(_), b], [s, t]) if a.is_constant() && b.is_constant() => {
                let open = |s: &char| if "<>".contains(*s) { '(' } else { '[' };
                let close = |s: &char| if "<>".contains(*s) { ')' } else { ']' };
                if "<≤".contains(*s) && "<≤".contains(*t) {
                    Some(interval(open(s), a, b, close(t)))
                } else if ">≥".contains(*s) && ">≥".contains(*t) {
                    Some(interval(open(t), b, a, close(s)))
                } else {
                    None
                }
            }
            _ => None,
        },
        Expr::List(items) => Some(Expr::Join('∪', items.iter().map(as_set).collect::<Option<_>>()?)),
        _ => None,
    }
}

/// The variable that an inequality, membership or list of them is about.
fn subject(expr: &Expr) -> Option<&Expr> {
    match expr {
        Expr::Relation(operands, _) => operands.iter().find(|operand| matches!(operand, Expr::Symbol(_))),
        Expr::List(items) => items.first().and_then(subject),
        _ => None,
    }
}

/// The rows of a matrix, with what it is multiplied by multiplied in.
fn as_matrix(expr: &Expr) -> Option<Vec<Vec<Expr>>> {
    let each =
        |rows: Vec<Vec<Expr>>, f: &dyn Fn(Expr) -> Expr| rows.into_iter().map(|row| row.into_iter().map(f).collect()).collect();
    match expr {
        Expr::Matrix(rows) => Some(rows.clone()),
        Expr::Negative(inner) => Some(each(as_matrix(inner)?, &Expr::negative)),
        Expr::Quotient(over, under) => Some(each(as_matrix(over)?, &|cell| Expr::Quotient(Box::new(cell), under.clone()))),
        Expr::Product(parts) => {
            let at = parts.iter().position(|part| as_matrix(part).is_some())?;
            let mut scalars = parts.clone();
            let rows = as_matrix(&scalars.remove(at))?;
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
    if *places < ROUNDED_PLACES || written.is_zero() {
        return false;
    }
    if let Some(exact) = value.exact() {
        return (exact - written).abs() * Rational::from_integer(BigInt::from(2)) <= *unit;
    }
    let half = to_f64(unit) / 2.0;
    constant(value).is_some_and(|value| (value - to_f64(written)).abs() <= half * (1.0 + 1e-9))
}

impl Comparison {
    fn same(&self, a: &Expr, b: &Expr) -> bool {
        let cost = size(a) + size(b);
        let Some(left) = self.left.get().checked_sub(cost) else { return false };
        self.left.set(left);
        if a == b {
            return true;
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
            (Expr::List(x) | Expr::Set(x), Expr::List(y) | Expr::Set(y)) => self.in_any_order(x, y) || self.as_sets(a, b),
            (Expr::Join(s, x), Expr::Join(t, y)) => {
                s == t && if *s == '∖' { self.in_order(x, y) } else { self.in_any_order(x, y) }
            }
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
                if let (Some(x), Some(y)) = (as_matrix(a), as_matrix(b)) {
                    return x.len() == y.len() && x.iter().zip(&y).all(|(x, y)| self.in_order(x, y));
                }
                if a.is_scalar() && b.is_scalar() { self.same_scalar(a, b) } else { self.as_sets(a, b) }
            }
        }
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
