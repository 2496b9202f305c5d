//! The names that answers are written with.

pub const FUNCTIONS: &[&str] = &[
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log", "lg", "exp",
    "max", "min", "gcd", "lcm",
];

/// Other names of functions.
pub const ALIASES: &[(&str, &str)] = &[
    ("asin", "arcsin"),
    ("acos", "arccos"),
    ("atan", "arctan"),
    ("arctg", "arctan"),
    ("tg", "tan"),
    ("ctg", "cot"),
    ("cosec", "csc"),
];

pub const GREEK: &[(&str, &str)] = &[
    ("alpha", "α"),
    ("beta", "β"),
    ("gamma", "γ"),
    ("delta", "δ"),
    ("epsilon", "ε"),
    ("varepsilon", "ε"),
    ("zeta", "ζ"),
    ("eta", "η"),
    ("theta", "θ"),
    ("vartheta", "θ"),
    ("iota", "ι"),
    ("kappa", "κ"),
    ("lambda", "λ"),
    ("mu", "μ"),
    ("nu", "ν"),
    ("xi", "ξ"),
    ("pi", "π"),
    ("rho", "ρ"),
    ("varrho", "ρ"),
    ("sigma", "σ"),
    ("tau", "τ"),
    ("upsilon", "υ"),
    ("phi", "φ"),
    ("varphi", "φ"),
    ("chi", "χ"),
    ("psi", "ψ"),
    ("omega", "ω"),
    ("Gamma", "Γ"),
    ("Delta", "Δ"),
    ("Theta", "Θ"),
    ("Lambda", "Λ"),
    ("Xi", "Ξ"),
    ("Pi", "Π"),
    ("Sigma", "Σ"),
    ("Phi", "Φ"),
    ("Psi", "Ψ"),
    ("Omega", "Ω"),
];

/// Commands that are one character.
pub const SYMBOLS: &[(&str, char)] = &[
    ("cdot", '*'),
    ("times", '*'),
    ("ast", '*'),
    ("div", '/'),
    ("pm", '±'),
    ("mp", '∓'),
    ("le", '≤'),
    ("leq", '≤'),
    ("leqslant", '≤'),
    ("ge", '≥'),
    ("geq", '≥'),
    ("geqslant", '≥'),
    ("lt", '<'),
    ("gt", '>'),
    ("ne", '≠'),
    ("neq", '≠'),
    ("approx", '≈'),
    ("equiv", '≡'),
    ("in", '∈'),
    ("notin", '∉'),
    ("subset", '⊂'),
    ("subseteq", '⊆'),
    ("to", '→'),
    ("rightarrow", '→'),
    ("perp", '⊥'),
    ("parallel", '∥'),
    ("cup", '∪'),
    ("cap", '∩'),
    ("setminus", '∖'),
    ("backslash", '∖'),
    ("infty", '∞'),
    ("emptyset", '∅'),
    ("varnothing", '∅'),
    ("circ", '°'),
    ("degree", '°'),
    ("prime", '\''),
    ("mid", '∣'),
    ("vert", '|'),
    ("lvert", '|'),
    ("rvert", '|'),
    ("Vert", '‖'),
    ("lVert", '‖'),
    ("rVert", '‖'),
    ("lfloor", '⌊'),
    ("rfloor", '⌋'),
    ("lceil", '⌈'),
    ("rceil", '⌉'),
    ("langle", '⟨'),
    ("rangle", '⟩'),
    ("lbrace", '⦃'),
    ("rbrace", '⦄'),
    ("lbrack", '['),
    ("rbrack", ']'),
    ("colon", ':'),
];

/// Commands that change only the look.
pub const IGNORED: &[&str] = &[
    "big",
    "Big",
    "bigg",
    "Bigg",
    "bigl",
    "bigr",
    "Bigl",
    "Bigr",
    "biggl",
    "biggr",
    "middle",
    "displaystyle",
    "textstyle",
    "limits",
    "quad",
    "qquad",
    "mathbf",
    "boldsymbol",
    "bm",
    "mathit",
    "mathcal",
    "mathsf",
    "bf",
    "it",
    "rm",
    "underline",
    "enspace",
    "thinspace",
    "space",
    "boxed",
    "fbox",
    "hfill",
    "newline",
    "mathstrut",
    "nolimits",
    "hspace",
    "phantom",
];

/// Commands whose argument is text.
pub const TEXT: &[&str] =
    &["text", "textbf", "textit", "textrm", "textnormal", "textsf", "texttt", "mbox", "hbox", "mathrm", "operatorname", "emph"];

/// Commands that decorate a variable.
pub const ACCENTS: &[&str] = &["vec", "hat", "bar", "overline", "dot", "ddot", "tilde", "widehat", "widetilde", "mathbb"];

/// Words that separate answers.
pub const SEPARATORS: &[&str] = &["or", "或", "和", "与", "及", "以及", "或者"];

/// Words that separate answers, and between inequalities ask for both.
pub const CONJUNCTIONS: &[&str] = &["and", "且"];

/// Words after a number that multiply it, and by what: a number and its power of ten.
pub const MULTIPLIERS: &[(&str, &str, i32)] = &[
    ("dozen", "12", 0),
    ("hundred", "1", 2),
    ("thousand", "1", 3),
    ("million", "1", 6),
    ("billion", "1", 9),
    ("trillion", "1", 12),
    ("百万", "1", 6),
    ("千万", "1", 7),
    ("万亿", "1", 12),
    ("万", "1", 4),
    ("亿", "1", 8),
];

/// Words that are not a product of their letters though they are short.
pub const UNIT_WORDS: &[&str] = &[
    "mm", "cm", "dm", "km", "kg", "mg", "ml", "mL", "kL", "ft", "in", "yd", "mi", "lb", "lbs", "oz", "hr", "hrs", "min",
    "mins", "sec", "secs", "day", "mph", "kmh", "kph", "deg", "sq", "cu", "rad", "Hz", "kHz", "eV", "per", "cubic", "men",
    "pct",
];

/// Short answers in words.
pub const PLAIN_WORDS: &[&str] = &["yes", "no", "odd"];
