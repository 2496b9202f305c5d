//! The sets of numbers that inequalities and conditions describe.

use super::expr::Expr;
use super::identity::constant;
use std::cmp::Ordering;

/// The pieces of one set, at most: conditions can cut it into many.
const MAX_PIECES: usize = 16;

fn interval(open: char, low: &Expr, high: &Expr, close: char) -> Expr {
    Expr::Tuple(open, close, vec![low.clone(), high.clone()])
}

/// The numbers but one.
fn all_but(point: &Expr) -> Expr {
    let (low, high) = (Expr::Infinity.negative(), Expr::Infinity);
    Expr::Join('∪', vec![interval('(', &low, point, ')'), interval('(', point, &high, ')')])
}

/// The set that an inequality, membership, or condition describes.
pub fn as_set(expr: &Expr) -> Option<Expr> {
    let (low, high) = (Expr::Infinity.negative(), Expr::Infinity);
    match expr {
        Expr::Tuple(_, _, items) if items.len() == 2 => Some(expr.clone()),
        Expr::Join('∧', conditions) => intersection(conditions),
        Expr::Join('∩', parts) => intersection(parts).or_else(|| Some(expr.clone())),
        Expr::Join('∖', parts) => match parts.as_slice() {
            [set, Expr::Set(points)] if !points.is_empty() && points.len() <= MAX_PIECES => {
                intersection(&std::iter::once(set.clone()).chain(points.iter().map(all_but)).collect::<Vec<_>>())
            }
            _ => Some(expr.clone()),
        },
        Expr::Join(..) | Expr::Set(_) => Some(expr.clone()),
        Expr::Builder(element, conditions) => {
            let element = match &**element {
                Expr::Relation(operands, signs) if signs == &['∈'] => &operands[0],
                other => other,
            };
            // Several conditions can be meant as alternatives.
            let [condition] = conditions.as_slice() else { return None };
            let about = matches!(element, Expr::Symbol(_)) && subject(condition) == Some(element);
            if about { as_set(condition) } else { None }
        }
        Expr::Relation(operands, signs) => match (operands.as_slice(), signs.as_slice()) {
            ([Expr::Symbol(_), set], ['∈']) => as_set(set),
            ([Expr::Symbol(_), c], ['≠']) if c.is_constant() => Some(all_but(c)),
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
pub fn subject(expr: &Expr) -> Option<&Expr> {
    match expr {
        Expr::Relation(operands, _) => operands.iter().find(|operand| matches!(operand, Expr::Symbol(_))),
        Expr::List(items) | Expr::Join('∧', items) => items.first().and_then(subject),
        _ => None,
    }
}

/// What all of them describe. None if that is not made of intervals and points whose ends are known.
fn intersection(sets: &[Expr]) -> Option<Expr> {
    let (first, rest) = sets.split_first()?;
    let mut common = pieces(&as_set(first)?)?;
    for set in rest {
        let other = pieces(&as_set(set)?)?;
        let mut next = Vec::new();
        for (a, b) in common.iter().flat_map(|a| other.iter().map(move |b| (a, b))) {
            next.extend(meet(a, b)?);
        }
        common = next;
        if common.len() > MAX_PIECES {
            return None;
        }
    }
    match common.len() {
        0 => Some(Expr::Set(Vec::new())),
        1 => common.pop(),
        _ => Some(Expr::Join('∪', common)),
    }
}

fn pieces(set: &Expr) -> Option<Vec<Expr>> {
    let pieces = match set {
        Expr::Tuple(_, _, ends) if ends.len() == 2 => vec![set.clone()],
        Expr::Set(points) => points.iter().map(|point| interval('[', point, point, ']')).collect(),
        Expr::Join('∪', parts) => parts.iter().map(pieces).collect::<Option<Vec<_>>>()?.concat(),
        _ => return None,
    };
    (pieces.len() <= MAX_PIECES).then_some(pieces)
}

/// The common part of two intervals: Some(None) if it is empty, None if an end has no known value.
fn meet(a: &Expr, b: &Expr) -> Option<Option<Expr>> {
    let (Expr::Tuple(o, c, x), Expr::Tuple(p, d, y)) = (a, b) else { return None };
    let (low, open) = match order(&x[0], &y[0])? {
        Ordering::Greater => (&x[0], *o),
        Ordering::Less => (&y[0], *p),
        Ordering::Equal => (&x[0], if *o == '[' { *p } else { *o }),
    };
    let (high, close) = match order(&x[1], &y[1])? {
        Ordering::Less => (&x[1], *c),
        Ordering::Greater => (&y[1], *d),
        Ordering::Equal => (&x[1], if *c == ']' { *d } else { *c }),
    };
    Some(match order(low, high)? {
        Ordering::Less => Some(interval(open, low, high, close)),
        Ordering::Equal if open == '[' && close == ']' => Some(Expr::Set(vec![low.clone()])),
        _ => None,
    })
}

fn order(a: &Expr, b: &Expr) -> Option<Ordering> {
    let value = |end: &Expr| match end {
        Expr::Infinity => Some(f64::INFINITY),
        Expr::Negative(inner) if **inner == Expr::Infinity => Some(f64::NEG_INFINITY),
        end => constant(end),
    };
    let (a, b) = (value(a)?, value(b)?);
    let close = a == b || (a - b).abs() <= 1e-12 * a.abs().min(b.abs());
    if close { Some(Ordering::Equal) } else { a.partial_cmp(&b) }
}
