//! Units of measurement: enough to ignore one, to tell two apart, and to convert between common ones.

use super::expr::Rational;
use num_bigint::BigInt;
use num_traits::One;
use std::collections::BTreeMap;

#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// Base units and their powers. Words that are not in the table are bases of their own.
    bases: BTreeMap<String, i32>,
    /// How many of its bases one of it is.
    pub factor: Rational,
}

/// Base unit, names, and the size in bases as a fraction.
const TABLE: &[(&str, &[&str], i64, i64)] = &[
    ("m", &["m", "meter", "metre", "米"], 1, 1),
    ("m", &["mm", "millimeter", "millimetre", "毫米"], 1, 1000),
    ("m", &["cm", "centimeter", "centimetre", "厘米"], 1, 100),
    ("m", &["dm", "decimeter", "decimetre", "分米"], 1, 10),
    ("m", &["km", "kilometer", "kilometre", "千米", "公里"], 1000, 1),
    ("m", &["in", "inch", "inche"], 254, 10_000),
    ("m", &["ft", "foot", "feet"], 3048, 10_000),
    ("m", &["yd", "yard"], 9144, 10_000),
    ("m", &["mi", "mile"], 1_609_344, 1000),
    ("s", &["s", "sec", "second", "秒"], 1, 1),
    ("s", &["min", "minute", "分钟"], 60, 1),
    ("s", &["h", "hr", "hour", "小时"], 3600, 1),
    ("s", &["day", "天", "日"], 86_400, 1),
    ("s", &["week", "周"], 604_800, 1),
    ("g", &["g", "gram", "克"], 1, 1),
    ("g", &["mg", "milligram", "毫克"], 1, 1000),
    ("g", &["kg", "kilogram", "千克", "公斤"], 1000, 1),
    ("g", &["吨", "tonne"], 1_000_000, 1),
    ("g", &["lb", "pound"], 45_359_237, 100_000),
    ("g", &["oz", "ounce"], 45_359_237, 1_600_000),
    ("L", &["L", "l", "liter", "litre", "升"], 1, 1),
    ("L", &["mL", "ml", "milliliter", "millilitre", "毫升"], 1, 1000),
    ("dollar", &["$", "dollar", "buck", "usd"], 1, 1),
    ("dollar", &["cent", "¢"], 1, 100),
    ("yuan", &["yuan", "元", "¥", "rmb"], 1, 1),
    ("euro", &["€", "euro"], 1, 1),
    ("£", &["£"], 1, 1),
    ("degree", &["degree", "deg", "°", "度"], 1, 1),
    ("celsius", &["celsius"], 1, 1),
    ("fahrenheit", &["fahrenheit"], 1, 1),
    ("radian", &["radian", "rad", "弧度"], 1, 1),
    ("percent", &["percent", "%", "pct"], 1, 1),
    ("V", &["V", "volt"], 1, 1),
    ("A", &["A", "amp", "ampere"], 1, 1),
    ("N", &["N", "newton"], 1, 1),
    ("J", &["J", "joule"], 1, 1),
    ("W", &["W", "watt"], 1, 1),
    ("K", &["K", "kelvin"], 1, 1),
    ("Hz", &["Hz", "hertz"], 1, 1),
];

/// Plural without the singular's spelling, and words that are two units.
const REWRITES: &[(&str, &str)] = &[
    ("mph", "mile/hour"),
    ("kmh", "km/hour"),
    ("kph", "km/hour"),
    ("people", "person"),
    ("men", "man"),
    ("women", "woman"),
    ("children", "child"),
];

/// Words after a number that make it another answer.
const NO_UNITS: &[&str] = &[
    "or",
    "and",
    "not",
    "no",
    "more",
    "less",
    "fewer",
    "at",
    "most",
    "least",
    "above",
    "below",
    "over",
    "under",
    "than",
    "greater",
    "smaller",
    "higher",
    "lower",
    "plus",
    "minus",
    "squared",
    "cubed",
    "factorial",
    "pi",
];

/// The same in Chinese, where they stand within a word.
const NO_UNIT_PARTS: &[&str] = &["以上", "以下", "以内", "以外", "不到", "超过", "至少", "至多"];

impl Unit {
    fn base(name: &str) -> Unit {
        Unit { bases: BTreeMap::from([(name.to_string(), 1)]), factor: Rational::one() }
    }

    pub fn percent() -> Unit {
        Unit::base("percent")
    }

    pub fn degree() -> Unit {
        Unit::base("degree")
    }

    /// A temperature is no angle, and no multiple of one on the other scale.
    pub fn celsius() -> Unit {
        Unit::base("celsius")
    }

    pub fn fahrenheit() -> Unit {
        Unit::base("fahrenheit")
    }

    pub fn is_percent(&self) -> bool {
        self.same_kind(&Unit::percent())
    }

    pub fn is_degree(&self) -> bool {
        self.same_kind(&Unit::degree())
    }

    /// Whether values in both can be compared after conversion.
    pub fn same_kind(&self, other: &Unit) -> bool {
        self.bases == other.bases
    }

    /// Whether all its words are in the table.
    fn is_known(&self) -> bool {
        self.bases.keys().all(|name| TABLE.iter().any(|(base, ..)| base == name))
    }

    /// This unit to a power. None out of range, also where the powers of its bases are: square units may nest.
    pub fn power(&self, exponent: i32) -> Option<Unit> {
        const MAX_POWER: u32 = 12;
        if !(1..=4).contains(&exponent.unsigned_abs()) {
            return None;
        }
        let power = |power: i32| Some(power * exponent).filter(|power| power.unsigned_abs() <= MAX_POWER);
        let bases = self.bases.iter().map(|(name, old)| Some((name.clone(), power(*old)?)));
        Some(Unit { bases: bases.collect::<Option<_>>()?, factor: self.factor.pow(exponent) })
    }

    pub fn times(mut self, other: &Unit) -> Unit {
        for (name, power) in &other.bases {
            *self.bases.entry(name.clone()).or_default() += power;
        }
        self.bases.retain(|_, power| *power != 0);
        self.factor *= &other.factor;
        self
    }

    /// Reads a unit: km/h, square inches, miles per hour, cm^2, apples. None if it is not words.
    pub fn parse(text: &str) -> Option<Unit> {
        const MAX_BYTES: usize = 80;
        if text.len() > MAX_BYTES {
            return None;
        }
        let spaced: String =
            text.replace("per ", "/").replace('每', "/").replace(['·', '*', '~', '.', '-'], " ").replace('/', " / ");
        let mut unit: Option<Unit> = None;
        let (mut sign, mut next_power) = (1, 1);
        for word in spaced.split_whitespace() {
            match word {
                "/" => sign = -1,
                "square" | "sq" => next_power = 2,
                "cubic" | "cu" => next_power = 3,
                _ => {
                    let part = Unit::word(word)?.power(sign * next_power)?;
                    unit = Some(match unit {
                        Some(unit) => unit.times(&part),
                        None => part,
                    });
                    (sign, next_power) = (1, 1);
                }
            }
        }
        // Degrees Celsius are a unit of their own.
        if let Some(unit) = &mut unit
            && ["celsius", "fahrenheit"].iter().any(|scale| unit.bases.contains_key(*scale))
        {
            unit.bases.remove("degree");
        }
        unit.filter(|u| u.bases.len() <= 6)
    }

    /// Reads a unit whose words are all in the table.
    pub fn parse_known(text: &str) -> Option<Unit> {
        Unit::parse(text).filter(Unit::is_known)
    }

    fn word(word: &str) -> Option<Unit> {
        let (word, exponent) = word.split_once('^').unwrap_or((word, "1"));
        let exponent: i32 = exponent.trim_matches(['{', '}']).parse().ok()?;
        if let Some(rest) = word.strip_prefix("平方").filter(|rest| !rest.is_empty()) {
            return Unit::word(rest)?.power(2);
        }
        if let Some(rest) = word.strip_prefix("立方").filter(|rest| !rest.is_empty()) {
            return Unit::word(rest)?.power(3);
        }
        if !word.chars().all(|c| c.is_alphabetic() || "$%°€£¥¢'".contains(c)) {
            return None;
        }
        let lower = word.to_lowercase();
        if NO_UNITS.contains(&lower.as_str()) || NO_UNIT_PARTS.iter().any(|part| word.contains(part)) {
            return None;
        }
        // Short names keep their case: mg is not MG.
        let spelling = if word.chars().count() <= 2 { word } else { &lower };
        let singular = match spelling.strip_suffix('s') {
            Some(stem) if stem.len() >= 2 => stem,
            _ => spelling,
        };
        if let Some((_, rewritten)) = REWRITES.iter().find(|(name, _)| *name == spelling) {
            return match rewritten.contains('/') {
                true => Unit::parse(rewritten)?.power(exponent),
                false => Unit::base(rewritten).power(exponent),
            };
        }
        let found = TABLE.iter().find(|(_, names, ..)| names.contains(&spelling) || names.contains(&singular));
        let unit = match found {
            Some((base, _, numer, denom)) => {
                Unit { factor: Rational::new(BigInt::from(*numer), BigInt::from(*denom)), ..Unit::base(base) }
            }
            None => Unit::base(singular),
        };
        unit.power(exponent)
    }
}
