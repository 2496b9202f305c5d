//! Numerical evaluation at points, with a running bound of the rounding error, and identity tests built on it.

use super::expr::{Expr, Function, Rational, to_f64};
use num_bigint::BigInt;
use num_complex::Complex64;
use num_traits::ToPrimitive;
use statrs::function::gamma::gamma;

/// Relative error charged for each operation.
const EPS: f64 = 4.0 * f64::EPSILON;

/// A computed value and a bound of its absolute error.
#[derive(Debug, Clone, Copy)]
pub struct Approx {
    pub value: Complex64,
    pub error: f64,
}

/// Where the variables are.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    kind: Kind,
    index: u64,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// 0.3 … 2.8.
    Positive,
    /// −3 … 3, each variable with both signs.
    Signed,
    /// Small positive integers, for what is defined on them alone; each variable even and odd.
    Integer,
}

/// Points of each kind but the first. Seven bits give every letter its own pattern of signs, and no two are opposites.
const PATTERN: usize = 7;
const POSITIVE: usize = 4;
const COUNT: usize = POSITIVE + 2 * PATTERN;

/// The points of every test: a pure function of names and these numbers, so that a verdict never changes.
pub const POINTS: [Point; COUNT] = {
    let mut points = [Point { kind: Kind::Positive, index: 0 }; COUNT];
    let mut i = 0;
    while i < COUNT {
        let kind = match i {
            0..POSITIVE => Kind::Positive,
            _ if i < POSITIVE + PATTERN => Kind::Signed,
            _ => Kind::Integer,
        };
        points[i] = Point { kind, index: i as u64 };
        i += 1;
    }
    points
};

/// Values from which on doubles lose what small integers add, with a margin.
const LARGE: f64 = 1e12;

/// Points at which both sides must have a value.
const ENOUGH: usize = 3;

/// Signs and parities of a variable at the points: a hash could leave a letter with one sign everywhere, and |c| = c
/// would hold. Never all zeros, and the highest bit is zero: so no pattern is the opposite of another.
fn pattern(name: &str) -> u32 {
    const PATTERNS: u32 = (1 << (PATTERN - 1)) - 1;
    1 + name.chars().fold(0, |sum, c| (sum * 31 + u32::from(c) % PATTERNS) % PATTERNS)
}

impl Point {
    fn value_of(self, name: &str) -> f64 {
        // FNV-1a of the name, then splitmix64's finaliser.
        let hash =
            name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        let mut z = hash.wrapping_add((self.index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let unit = (z >> 11) as f64 / (1u64 << 53) as f64;
        let bit = f64::from(pattern(name) >> (self.index as usize % PATTERN) & 1);
        match self.kind {
            Kind::Positive => 0.3 + 2.5 * unit,
            Kind::Signed => (0.1 + 2.9 * unit) * (1.0 - 2.0 * bit),
            Kind::Integer => 2.0 + 2.0 * (4.5 * unit).floor() + bit,
        }
    }
}

impl Approx {
    fn new(value: Complex64, error: f64) -> Option<Approx> {
        let error = error + EPS * value.norm();
        (value.re.is_finite() && value.im.is_finite() && error.is_finite()).then_some(Approx { value, error })
    }

    pub fn real(value: f64) -> Option<Approx> {
        Approx::new(Complex64::new(value, 0.0), 0.0)
    }

    fn exact(value: &Rational) -> Option<Approx> {
        Approx::real(to_f64(value))
    }

    fn times(self, other: Approx) -> Option<Approx> {
        let error = self.error * other.value.norm() + other.error * self.value.norm() + self.error * other.error;
        Approx::new(self.value * other.value, error)
    }

    fn over(self, other: Approx) -> Option<Approx> {
        let size = other.value.norm();
        if size <= 4.0 * other.error {
            return None;
        }
        let value = self.value / other.value;
        Approx::new(value, (self.error + value.norm() * other.error) / (size - other.error))
    }

    /// f applied; its error is how much f moves when the argument does.
    fn map(self, f: impl Fn(Complex64) -> Complex64) -> Option<Approx> {
        let value = f(self.value);
        let moved = |by: f64| (f(self.value + by) - value).norm();
        let error = match (moved(self.error), moved(-self.error)) {
            (a, b) if a.is_finite() && b.is_finite() => a.max(b),
            (a, b) if a.is_finite() || b.is_finite() => {
                if a.is_finite() {
                    a
                } else {
                    b
                }
            }
            _ => return None,
        };
        Approx::new(value, 2.0 * error)
    }

    pub fn agrees(self, other: Approx) -> bool {
        (self.value - other.value).norm() <= 4.0 * (self.error + other.error)
    }

    /// Whether rounding has not eaten the value.
    fn is_meaningful(self) -> bool {
        self.error <= 1e-6 * self.value.norm().max(1e-9)
    }
}

/// The value at a point. Over the reals, what has no real value has none; else principal values are taken.
pub fn evaluate(expr: &Expr, point: Point, real: bool) -> Option<Approx> {
    let at = |e: &Expr| evaluate(e, point, real);
    match expr {
        Expr::Number(value) | Expr::Decimal { value, .. } => Approx::exact(value),
        Expr::Symbol(name) => Approx::real(point.value_of(name)),
        Expr::Pi => Approx::real(std::f64::consts::PI),
        Expr::E => Approx::real(std::f64::consts::E),
        Expr::I => (!real).then(|| Approx::new(Complex64::I, 0.0)).flatten(),
        Expr::Negative(a) => at(a).map(|a| Approx { value: -a.value, ..a }),
        Expr::Sum(parts) => {
            let mut total = Approx::real(0.0)?;
            for part in parts {
                let part = at(part)?;
                total = Approx::new(total.value + part.value, total.error + part.error)?;
            }
            Some(total)
        }
        Expr::Product(parts) => parts.iter().try_fold(Approx::real(1.0)?, |total, part| total.times(at(part)?)),
        Expr::Quotient(a, b) => at(a)?.over(at(b)?),
        Expr::Power(a, b) => power(at(a)?, at(b)?, real),
        Expr::Quantity(a, unit) if unit.is_degree() => at(a)?.times(Approx::real(std::f64::consts::PI / 180.0)?),
        Expr::Quantity(a, unit) if unit.is_percent() => at(a)?.times(Approx::real(0.01)?),
        Expr::Call(function, parts) => call(*function, parts, point, real),
        _ => None,
    }
}

fn power(base: Approx, exponent: Approx, real: bool) -> Option<Approx> {
    let (b, x) = (base.value, exponent.value);
    let whole = x.im == 0.0 && x.re.fract() == 0.0 && x.re.abs() <= 1000.0;
    if b.norm() <= base.error {
        return if x.re > 0.0 && x.im == 0.0 { Approx::new(Complex64::ZERO, base.error.powf(x.re.min(1.0))) } else { None };
    }
    let value = if whole {
        b.powi(x.re.to_i32()?)
    } else if b.im == 0.0 && x.im == 0.0 && b.re > 0.0 {
        Complex64::new(b.re.powf(x.re), 0.0)
    } else if real {
        // A negative base has a real power for fractions with an odd denominator.
        let odd = [3.0, 5.0, 7.0, 9.0, 11.0].into_iter().find(|d| (x.re * d - (x.re * d).round()).abs() < 1e-12)?;
        let sign = if (x.re * odd).round() % 2.0 == 0.0 { 1.0 } else { -1.0 };
        Complex64::new(sign * (-b.re).powf(x.re), 0.0)
    } else {
        b.powc(x)
    };
    let relative = x.norm() * base.error / b.norm() + b.ln().norm() * exponent.error;
    Approx::new(value, value.norm() * (relative + 16.0 * EPS * (1.0 + (x * b.ln()).norm())))
}

/// Γ(x + 1), for x > −0.5.
fn factorial(x: f64) -> Option<Approx> {
    if x <= -0.5 {
        return None;
    }
    let value = gamma(x + 1.0);
    Approx::new(Complex64::new(value, 0.0), value.abs() * 1e-12)
}

fn call(function: Function, parts: &[Expr], point: Point, real: bool) -> Option<Approx> {
    let argument = |i: usize| evaluate(parts.get(i)?, point, real);
    let real_argument = |i: usize| argument(i).filter(|a| a.value.im == 0.0);
    let a = argument(0)?;
    // The real domain: outside it there is no value over the reals.
    let (inside, edge) = match function {
        Function::Ln => (a.value.re > 0.0, false),
        Function::Arcsin | Function::Arccos => (a.value.re.abs() <= 1.0, a.value.re.abs() <= 1.0 + a.error),
        _ => (true, false),
    };
    let a = match (inside, edge && a.value.im == 0.0) {
        (false, true) => Approx { value: Complex64::new(a.value.re.signum(), 0.0), ..a },
        (false, false) if real => return None,
        _ => a,
    };
    // Real arithmetic where the result is real: it is the more exact one.
    let plain = a.value.im == 0.0 && inside;
    let map = |over_reals: fn(f64) -> f64, over_complex: fn(Complex64) -> Complex64| match plain {
        true => a.map(|z| Complex64::new(over_reals(z.re), 0.0)),
        false => a.map(over_complex),
    };
    match function {
        Function::Sin => map(f64::sin, |z| z.sin()),
        Function::Cos => map(f64::cos, |z| z.cos()),
        Function::Tan => (a.value.cos().norm() > 1e-9).then(|| map(f64::tan, |z| z.tan()))?,
        Function::Arcsin => map(f64::asin, |z| z.asin()),
        Function::Arccos => map(f64::acos, |z| z.acos()),
        Function::Arctan => map(f64::atan, |z| z.atan()),
        Function::Sinh => map(f64::sinh, |z| z.sinh()),
        Function::Cosh => map(f64::cosh, |z| z.cosh()),
        Function::Tanh => map(f64::tanh, |z| z.tanh()),
        Function::Ln if a.value.norm() <= a.error => None,
        Function::Ln => map(f64::ln, |z| z.ln()),
        Function::Exp => map(f64::exp, |z| z.exp()),
        Function::Abs => Approx::new(Complex64::new(a.value.norm(), 0.0), a.error),
        Function::Root => root(a, argument(1)?, real),
        Function::Floor | Function::Ceiling => {
            let a = real_argument(0)?;
            let nearest = a.value.re.round();
            // Close to an integer, it is that integer.
            let x = if (a.value.re - nearest).abs() <= a.error + EPS { nearest } else { a.value.re };
            Approx::real(if function == Function::Floor { x.floor() } else { x.ceil() })
        }
        Function::Factorial => factorial(real_argument(0)?.value.re),
        Function::Binomial => {
            let (n, k) = (real_argument(0)?.value.re, real_argument(1)?.value.re);
            factorial(n)?.over(factorial(k)?.times(factorial(n - k)?)?)
        }
        Function::Max | Function::Min => {
            let mut best = real_argument(0)?;
            for i in 1..parts.len() {
                let next = real_argument(i)?;
                if (next.value.re > best.value.re) == (function == Function::Max) {
                    best = next;
                }
            }
            Some(best)
        }
    }
}

fn root(a: Approx, degree: Approx, real: bool) -> Option<Approx> {
    let odd = degree.value.im == 0.0 && degree.value.re % 2.0 == 1.0;
    if a.value.im == 0.0 && (a.value.re >= 0.0 || odd) && degree.value.im == 0.0 && degree.value.re > 0.0 {
        let n = degree.value.re;
        if a.value.re.abs() <= a.error {
            return Approx::new(Complex64::ZERO, a.error.powf(1.0 / n));
        }
        let value = a.value.re.signum() * if n == 2.0 { a.value.re.abs().sqrt() } else { a.value.re.abs().powf(1.0 / n) };
        let relative = a.error / a.value.re.abs() / n + degree.error + 16.0 * EPS;
        return Approx::new(Complex64::new(value, 0.0), value.abs() * relative);
    }
    if real {
        return None;
    }
    power(a, Approx::real(1.0)?.over(degree)?, false)
}

/// Whether the two are equal wherever both have a value. Over the reals first; if neither side has values there, over
/// the complex numbers.
pub fn identical(a: &Expr, b: &Expr) -> bool {
    [true, false].into_iter().find_map(|real| agree_over(a, b, real)).unwrap_or(false)
}

/// None if there are too few points where both have a value.
fn agree_over(a: &Expr, b: &Expr, real: bool) -> Option<bool> {
    let constant = a.is_constant() && b.is_constant();
    let mut valid = 0;
    for point in &POINTS[..if constant { 1 } else { POINTS.len() }] {
        let (Some(x), Some(y)) = (evaluate(a, *point, real), evaluate(b, *point, real)) else { continue };
        // Next to 10^100 rounding eats a variable: such values are compared exactly where they can be.
        let large = !constant && matches!(point.kind, Kind::Integer) && x.value.norm() >= LARGE;
        let value_of = |name: &str| Some(Rational::from_integer(BigInt::from(point.value_of(name) as i64)));
        if !x.agrees(y) || large && matches!((a.exact_at(&value_of), b.exact_at(&value_of)), (Some(x), Some(y)) if x != y) {
            return Some(false);
        }
        // A value that is all rounding error agrees with everything: it proves nothing, unless it is zero for zero.
        let zero = x.value.norm() <= 4.0 * x.error && y.value.norm() <= 4.0 * y.error;
        valid += usize::from(zero || x.is_meaningful() && y.is_meaningful());
    }
    (valid >= if constant { 1 } else { ENOUGH }).then_some(true)
}

/// Whether a = r·b everywhere for one number r ≠ 0. Some(true): r is positive.
pub fn proportional(a: &Expr, b: &Expr) -> Option<bool> {
    [true, false].into_iter().find_map(|real| ratio_over(a, b, real)).flatten()
}

fn ratio_over(a: &Expr, b: &Expr, real: bool) -> Option<Option<bool>> {
    let mut first: Option<Approx> = None;
    let mut valid = 0;
    for point in POINTS {
        let (Some(x), Some(y)) = (evaluate(a, point, real), evaluate(b, point, real)) else { continue };
        if !x.is_meaningful() || !y.is_meaningful() {
            continue;
        }
        let ratio = x.over(y)?;
        match first {
            Some(first) if !first.agrees(ratio) => return Some(None),
            Some(_) => {}
            None => first = Some(ratio),
        }
        valid += 1;
    }
    let ratio = first.filter(|_| valid >= ENOUGH)?;
    Some(Some(ratio.value.im.abs() <= ratio.error && ratio.value.re > 0.0))
}

/// The real value of a constant.
pub fn constant(expr: &Expr) -> Option<f64> {
    if let Some(value) = expr.exact() {
        return Some(to_f64(&value)).filter(|v| v.is_finite());
    }
    if !expr.is_constant() {
        return None;
    }
    evaluate(expr, POINTS[0], true).map(|a| a.value.re)
}
