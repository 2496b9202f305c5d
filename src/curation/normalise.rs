//! The one form in which problems are compared: words without case, punctuation and layout.
//!
//! 1. Unicode NFKC (full-width letters, ligatures, ² and ½ become plain ones), then lower case.
//! 2. Words: a run of letters, a run of ASCII digits (so `2x` is two words, and 3.14 is two), one character of Chinese or
//!    Japanese, one operator, one LaTeX command without its backslash.
//! 3. Operators are + = < > * / % and two that depend on their place: `-`, unless a word of two letters or more follows it at once
//!    (`9-kilometer` has a hyphen, `x-y` a minus), and `!` after a number or a single letter (a factorial).
//! 4. LaTeX that is layout goes: `$`, braces, `^`, `_`, `&`, `\\`, `\,` and other spacing, \left, \right, \text, \mathrm and other
//!    fonts, \begin{…} and \end{…}. Commands of one meaning are one word (`\dfrac` = `\frac`, `\leq` = `\le`, `\cdot` = `\times` = `*`),
//!    and so are Unicode symbols and Greek letters (`≤` = `\le`, `π` = `\pi`, `°` = `^\circ`).
//! 5. Everything else separates words. So does a literal `\n` before anything but a lower-case letter, which some
//!    published files have where a line ends.
//!
//! Words stand between single spaces. Normalising a normalised text changes nothing.

use std::borrow::Cow;
use unicode_normalization::{UnicodeNormalization, is_nfkc};
use xxhash_rust::xxh3::xxh3_64;

/// LaTeX commands that say how a thing looks, not what it is.
const LAYOUT: &[&str] = &[
    "allowbreak",
    "big",
    "bigg",
    "biggl",
    "biggr",
    "bigl",
    "bigm",
    "bigr",
    "bf",
    "bm",
    "boldsymbol",
    "cal",
    "cdots",
    "displaystyle",
    "dots",
    "dotsb",
    "dotsc",
    "ensuremath",
    "hbox",
    "hfill",
    "hline",
    "hspace",
    "indent",
    "it",
    "kern",
    "ldots",
    "left",
    "limits",
    "lvert",
    "lVert",
    "mathbb",
    "mathbf",
    "mathcal",
    "mathfrak",
    "mathit",
    "mathop",
    "mathrm",
    "mathsf",
    "mathtt",
    "mbox",
    "middle",
    "mid",
    "mskip",
    "newline",
    "noindent",
    "nolimits",
    "nonumber",
    "operatorname",
    "par",
    "quad",
    "qquad",
    "right",
    "rm",
    "rvert",
    "rVert",
    "scriptstyle",
    "text",
    "textbf",
    "textit",
    "textnormal",
    "textrm",
    "textsf",
    "textstyle",
    "texttt",
    "thinspace",
    "tiny",
    "underline",
    "vdots",
    "vert",
    "Vert",
    "vspace",
];

/// LaTeX commands with another of the same meaning, or an operator's.
const ALIASES: &[(&str, &str)] = &[
    ("ast", "*"),
    ("bmod", "mod"),
    ("cdot", "*"),
    ("cfrac", "frac"),
    ("degree", "circ"),
    ("dfrac", "frac"),
    ("div", "/"),
    ("emptyset", "varnothing"),
    ("geq", "ge"),
    ("geqslant", "ge"),
    ("gt", ">"),
    ("iff", "leftrightarrow"),
    ("implies", "rightarrow"),
    ("leq", "le"),
    ("leqslant", "le"),
    ("lt", "<"),
    ("neq", "ne"),
    ("pmod", "mod"),
    ("tbinom", "binom"),
    ("dbinom", "binom"),
    ("tfrac", "frac"),
    ("times", "*"),
    ("to", "rightarrow"),
    ("varepsilon", "epsilon"),
    ("varphi", "phi"),
    ("vartheta", "theta"),
];

/// What a symbol is called in LaTeX, after the same aliases.
fn symbol(c: char) -> Option<&'static str> {
    Some(match c {
        '×' | '·' | '⋅' | '∙' | '∗' => "*",
        '÷' | '∕' | '⁄' => "/",
        '≤' | '≦' | '⩽' => "le",
        '≥' | '≧' | '⩾' => "ge",
        '≠' => "ne",
        '≈' => "approx",
        '≡' => "equiv",
        '≅' => "cong",
        '±' => "pm",
        '°' => "circ",
        '∞' => "infty",
        '√' => "sqrt",
        '∑' => "sum",
        '∏' => "prod",
        '∫' => "int",
        '∈' => "in",
        '∉' => "notin",
        '∩' => "cap",
        '∪' => "cup",
        '⊂' => "subset",
        '⊆' => "subseteq",
        '∅' => "varnothing",
        '∠' => "angle",
        '△' => "triangle",
        '⊥' => "perp",
        '∥' => "parallel",
        '→' => "rightarrow",
        'α' => "alpha",
        'β' => "beta",
        'γ' => "gamma",
        'δ' => "delta",
        'ε' => "epsilon",
        'ζ' => "zeta",
        'η' => "eta",
        'θ' => "theta",
        'ι' => "iota",
        'κ' => "kappa",
        'λ' => "lambda",
        'μ' => "mu",
        'ν' => "nu",
        'ξ' => "xi",
        'π' => "pi",
        'ρ' => "rho",
        'σ' | 'ς' => "sigma",
        'τ' => "tau",
        'υ' => "upsilon",
        'φ' => "phi",
        'χ' => "chi",
        'ψ' => "psi",
        'ω' => "omega",
        _ => return None,
    })
}

/// Whether a character is written without spaces around it, and so is a word by itself.
pub(super) fn is_cjk(c: char) -> bool {
    matches!(c,
        '\u{2e80}'..='\u{2fdf}' | '々' | '〇' | '\u{3041}'..='\u{30ff}' | '\u{31f0}'..='\u{31ff}' | '\u{3400}'..='\u{4dbf}'
        | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{323af}')
        && c.is_alphabetic()
}

#[derive(Clone, Copy, PartialEq)]
enum Run {
    /// The next character begins a word.
    None,
    Letters,
    Digits,
}

struct Words {
    text: String,
    run: Run,
}

impl Words {
    fn push(&mut self, c: char, run: Run) {
        if self.run != run {
            self.begin();
        }
        self.run = run;
        self.text.push(c);
    }

    fn whole(&mut self, word: &str) {
        self.begin();
        self.text.push_str(word);
        self.run = Run::None;
    }

    fn begin(&mut self) {
        if !self.text.is_empty() {
            self.text.push(' ');
        }
    }

    /// Whether a `!` here is a factorial.
    fn ends_in_a_quantity(&self) -> bool {
        let word = self.text.rsplit(' ').next().unwrap_or("");
        let mut characters = word.chars();
        match (characters.next(), characters.next()) {
            (Some(c), None) => c.is_alphanumeric() && !is_cjk(c),
            (Some(c), Some(_)) => c.is_ascii_digit(),
            _ => false,
        }
    }
}

/// The words of `text` between single spaces; the module's documentation has the rules.
pub fn normalise(text: &str) -> String {
    form(text, false)
}

/// Like [`normalise`], but brackets and bars are words: 2(x+3) is not 2x+3.
pub(super) fn normalise_with_brackets(text: &str) -> String {
    form(text, true)
}

fn form(text: &str, brackets: bool) -> String {
    let text = if is_nfkc(text) { Cow::Borrowed(text) } else { Cow::Owned(text.nfkc().collect::<String>()) };
    let mut words = Words { text: String::with_capacity(text.len()), run: Run::None };
    let mut rest = text.as_ref();
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\\' => {
                words.run = Run::None;
                rest = command(rest, &mut words);
            }
            '0'..='9' => words.push(c, Run::Digits),
            _ if c.is_ascii_alphabetic() => words.push(c.to_ascii_lowercase(), Run::Letters),
            '*' if rest.starts_with('*') => {
                // Markdown's bold, or a power.
                rest = rest.trim_start_matches('*');
                words.run = Run::None;
            }
            '+' | '=' | '<' | '>' | '*' | '/' | '%' => words.whole(c.encode_utf8(&mut [0; 4])),
            '-' | '−' | '–' | '‒' | '‐' if !begins_with_a_word(rest) => words.whole("-"),
            '!' if words.ends_in_a_quantity() => words.whole("!"),
            '(' | ')' | '[' | ']' | '|' if brackets => words.whole(c.encode_utf8(&mut [0; 4])),
            _ if c.is_ascii() => words.run = Run::None,
            _ => {
                for c in c.to_lowercase() {
                    match symbol(c) {
                        Some(name) => words.whole(name),
                        None if is_cjk(c) => words.whole(c.encode_utf8(&mut [0; 4])),
                        None if c.is_alphanumeric() => words.push(c, Run::Letters),
                        None => words.run = Run::None,
                    }
                }
            }
        }
    }
    words.text
}

fn begins_with_a_word(text: &str) -> bool {
    text.chars().take(2).filter(|c| c.is_alphabetic() && !is_cjk(*c)).count() == 2
}

/// Reads what follows a backslash; returns what is left.
fn command<'a>(rest: &'a str, words: &mut Words) -> &'a str {
    let length = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
    let (name, after) = rest.split_at(length);
    if name.starts_with('n') && !name[1..].starts_with(|c: char| c.is_ascii_lowercase()) {
        return &rest[1..];
    }
    if name.is_empty() {
        if rest.starts_with('%') {
            words.whole("%");
        }
        let escaped = rest.chars().next().map_or(0, char::len_utf8);
        // An escape is one ASCII character; what else follows is text.
        return if rest.as_bytes().first().is_some_and(|b| b.is_ascii_punctuation() || *b == b' ') {
            &rest[escaped..]
        } else {
            rest
        };
    }
    if name == "begin" || name == "end" {
        return after
            .strip_prefix('{')
            .and_then(|group| group.split_once('}'))
            .filter(|(name, _)| name.len() < 20)
            .map_or(after, |(_, after)| after);
    }
    if !LAYOUT.contains(&name) && !LAYOUT.contains(&name.to_ascii_lowercase().as_str()) {
        let name = name.to_ascii_lowercase();
        words.whole(ALIASES.iter().find(|(alias, _)| *alias == name).map_or(&name, |(_, meaning)| meaning));
    }
    after
}

/// The words of a normalised text.
pub fn words(normalised: &str) -> impl Iterator<Item = &str> {
    normalised.split(' ').filter(|word| !word.is_empty())
}

/// A 64-bit hash of each word (XXH3, the same on every machine).
pub(super) fn word_hashes(normalised: &str) -> Vec<u64> {
    words(normalised).map(|word| xxh3_64(word.as_bytes())).collect()
}

/// A hash of each run of `n` words, in order. None for texts of fewer.
pub(super) fn gram_hashes(words: &[u64], n: usize) -> impl Iterator<Item = u64> {
    words.windows(n).map(gram_hash)
}

/// A hash of words in their order.
pub(super) fn gram_hash(words: &[u64]) -> u64 {
    mix(words.iter().fold(words.len() as u64, |hash, word| (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}

/// The finalizer of SplitMix64 (Steele, Lea & Flood 2014).
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn layout_case_and_punctuation_do_not_count() {
        let cases = [
            ("What is $2x+3$?", "what is 2 x + 3"),
            (r"WHAT is \( 2x + 3 \),", "what is 2 x + 3"),
            (r"$\dfrac{1}{2} \leq x^{2}$", "frac 1 2 le x 2"),
            ("\\frac 12≤x²", "frac 12 le x 2"),
            (r"\left( a,\;b \right) \text{cm}", "a b cm"),
            (r"\begin{align*} a &= b \\ c &= d \end{align*}", "a = b c = d"),
            (r"60^\circ\cdot\pi", "60 circ * pi"),
            ("60°·π", "60 circ * pi"),
            (r"\Delta ABC", "delta abc"),
            ("ΔABC", "delta abc"),
            ("ＡＢＣ　１２３", "abc 123"),
            ("3.14 and 1,000", "3 14 and 1 000"),
            ("28\\% of 28%", "28 % of 28 %"),
            ("**Bold** 2**3 a*b", "bold 2 3 a * b"),
            ("naïve Straße É e\u{301}", "naïve straße é é"),
            ("已知函数$f(x)$，求", "已 知 函 数 f x 求"),
            ("こんにちは", "こ ん に ち は"),
            ("Привет, мир!", "привет мир"),
            (r"ends here.\nA. one\n已知", "ends here a one 已 知"),
            (r"\nu \neq \nabla", "nu ne nabla"),
            ("?! …", ""),
            ("", ""),
            ("\\", ""),
            (r"\begin{", ""),
            ("\\é", "é"),
        ];
        for (text, expected) in cases {
            assert_eq!(normalise(text), expected, "{text:?}");
        }
    }

    #[test]
    fn operators_count_where_they_are_operators() {
        let cases = [
            ("a 9-kilometer-long walk", "a 9 kilometer long walk"),
            ("a $9$-kilometer walk", "a 9 kilometer walk"),
            ("x-y, 3-5, 1−\\frac12", "x - y 3 - 5 1 - frac 12"),
            ("1+2", "1 + 2"),
            ("1-2", "1 - 2"),
            ("Find 5!", "find 5 !"),
            ("(2n)! apples!", "2 n ! apples"),
            (r"a\!b", "a b"),
            (r"\frac{a}{b} \div c", "frac a b / c"),
        ];
        for (text, expected) in cases {
            assert_eq!(normalise(text), expected, "{text:?}");
        }
    }

    #[test]
    fn grams_tell_order_and_length() {
        let hashes = |text: &str| word_hashes(&normalise(text));
        let grams = |text: &str, n| gram_hashes(&hashes(text), n).collect::<Vec<_>>();
        assert_eq!(grams("a b c a b", 2).len(), 4);
        assert_eq!(grams("a b c a b", 2)[0], grams("a b c a b", 2)[3]);
        assert_ne!(grams("a b", 2), grams("b a", 2));
        assert!(grams("a b", 3).is_empty());
    }

    proptest! {
        #[test]
        fn twice_is_once(text in r"(\PC|[a-zA-Z0-9\\{}$ !*/+=<>.,\n-]){0,60}") {
            let once = normalise(&text);
            prop_assert_eq!(normalise(&once), once.clone());
            prop_assert_eq!(words(&once).collect::<Vec<_>>().join(" "), once);
        }

        #[test]
        fn case_and_layout_change_nothing(words in prop::collection::vec("[a-z]{2,8}|[0-9]{1,4}", 1..20)) {
            let plain = words.join(" ");
            prop_assert_eq!(&normalise(&plain), &plain);
            prop_assert_eq!(&normalise(&plain.to_uppercase()), &plain);
            prop_assert_eq!(&normalise(&words.join("$, \\left(\n")), &plain);
        }
    }
}
