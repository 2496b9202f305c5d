//! A strict reader of TOML: every key is asked for by name with its default and its range; what is left over was a mistake.
//!
//! Values come from the file and from overrides laid over it. Mistakes are collected, each with the place it was made, and reported
//! together by [`Document::finish`].

use crate::error::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::path::PathBuf;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use toml::{Spanned, Value};

use super::schema::Every;

/// An enum of words; `WORDS` pairs each with its variant.
pub trait Choice: Copy + PartialEq + 'static {
    const WORDS: &'static [(&'static str, Self)];
}

/// Where something was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    /// Bytes of the file.
    File { start: usize, end: usize },
    /// Index into the overrides.
    Override(usize),
    /// Nowhere: it is missing.
    Absent,
}

impl From<Range<usize>> for Origin {
    fn from(span: Range<usize>) -> Self {
        Origin::File { start: span.start, end: span.end }
    }
}

type Table = BTreeMap<String, Entry>;

struct Entry {
    key: Origin,
    value: Origin,
    node: Node,
}

enum Node {
    Table(Table),
    Leaf(Value),
}

/// A parsed file with its overrides, and the mistakes found so far.
pub struct Document<'a> {
    name: &'a str,
    text: &'a str,
    overrides: &'a [String],
    root: Table,
    /// Every dotted key asked for.
    known: Vec<String>,
    /// Where each dotted key that is set was set.
    origins: BTreeMap<String, Origin>,
    /// Dotted keys that are set and were not asked for.
    unknown: Vec<(String, Origin)>,
    problems: Vec<(Origin, Error)>,
}

/// One table of a document, while it is read.
pub struct Section<'d, 'a> {
    /// Dotted, ends with a dot.
    prefix: String,
    table: Table,
    origin: Origin,
    document: &'d mut Document<'a>,
}

impl<'a> Document<'a> {
    /// Errors: a TOML syntax error, or an override that is not `key=value`.
    pub fn parse(name: &'a str, text: &'a str, overrides: &'a [String]) -> Result<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut document = Document {
            name,
            text,
            overrides,
            root: Table::new(),
            known: Vec::new(),
            origins: BTreeMap::new(),
            unknown: Vec::new(),
            problems: Vec::new(),
        };
        let parsed = DeTable::parse(text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            document.locate(&span.into(), Error::usage(error.message().trim_end()))
        })?;
        document.root = document.table(parsed.into_inner())?;
        for (index, text) in overrides.iter().enumerate() {
            document.lay_over(index, text)?;
        }
        Ok(document)
    }

    fn table(&self, table: DeTable) -> Result<Table> {
        let entry = |(key, value): (Spanned<std::borrow::Cow<str>>, Spanned<DeValue>)| {
            let (key_span, value_span) = (key.span(), value.span());
            let node = match value.get_ref() {
                DeValue::Table(_) => match value.into_inner() {
                    DeValue::Table(table) => Node::Table(self.table(table)?),
                    _ => unreachable!("matched as a table above"),
                },
                _ => Node::Leaf(
                    Value::deserialize(ValueDeserializer::from(value))
                        .map_err(|error| self.locate(&value_span.clone().into(), Error::usage(error.message().to_string())))?,
                ),
            };
            Ok((key.into_inner().into_owned(), Entry { key: key_span.into(), value: value_span.into(), node }))
        };
        table.into_iter().map(entry).collect()
    }

    /// Sets the key of override number `index` to its value: TOML where it parses, else a string.
    fn lay_over(&mut self, index: usize, text: &str) -> Result<()> {
        let fail = |message: &str| {
            Error::usage(format!("-s {text}: {message}")).help("write -s section.key=value, as in -s train.epochs=3")
        };
        let (key, value) = text.split_once('=').ok_or_else(|| fail("there is no `=`"))?;
        let origin = Origin::Override(index);
        let mut table = &mut self.root;
        let mut words = key.trim().split('.').map(str::trim).peekable();
        while let Some(word) = words.next() {
            if word.is_empty() {
                return Err(fail("the key has an empty part"));
            }
            if words.peek().is_none() {
                let node = override_value(value.trim(), index);
                table.insert(word.to_string(), Entry { key: origin.clone(), value: origin, node });
                return Ok(());
            }
            let entry = table.entry(word.to_string()).or_insert_with(|| Entry {
                key: origin.clone(),
                value: origin.clone(),
                node: Node::Table(Table::new()),
            });
            match &mut entry.node {
                Node::Table(inner) => table = inner,
                Node::Leaf(_) => return Err(fail(&format!("`{word}` is not a table"))),
            }
        }
        Err(fail("there is no key"))
    }

    /// Reads a top-level table, empty where it is absent.
    pub fn section<T>(&mut self, name: &str, read: impl FnOnce(&mut Section) -> T) -> T {
        let entry = self.root.remove(name);
        self.read_table(name.to_string(), entry, read)
    }

    fn read_table<T>(&mut self, path: String, entry: Option<Entry>, read: impl FnOnce(&mut Section) -> T) -> T {
        self.known.push(path.clone());
        let (table, origin) = match entry {
            Some(Entry { node: Node::Table(table), key, .. }) => (table, key),
            Some(Entry { node: Node::Leaf(value), value: origin, .. }) => {
                self.problems.push((origin.clone(), Error::usage(format!("`{path}` must be a table, not {}", shown(&value)))));
                (Table::new(), origin)
            }
            None => (Table::new(), Origin::Absent),
        };
        let mut section = Section { prefix: format!("{path}."), table, origin, document: self };
        let result = read(&mut section);
        let Section { prefix, table, document, .. } = section;
        document.unknown.extend(table.into_iter().map(|(key, entry)| (format!("{prefix}{key}"), entry.key)));
        result
    }

    /// Reports every mistake at once, in the order of the file.
    pub fn finish(mut self) -> Result<()> {
        let top = std::mem::take(&mut self.root).into_iter().map(|(key, entry)| (key, entry.key));
        let unknown: Vec<_> = std::mem::take(&mut self.unknown).into_iter().chain(top).collect();
        for (key, origin) in unknown {
            let mut error = Error::usage(format!("unknown key `{key}`"));
            if let Some(best) = self.closest(&key) {
                error = error.help(format!("did you mean `{best}`?"));
            }
            self.problems.push((origin, error));
        }
        self.problems.sort_by(|a, b| a.0.cmp(&b.0));
        let mut errors: Vec<Error> =
            std::mem::take(&mut self.problems).into_iter().map(|(origin, error)| self.locate(&origin, error)).collect();
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Error::usage(errors.iter().map(Error::to_string).collect::<Vec<_>>().join("\n"))),
        }
    }

    /// The known key that `key` most likely stands for: the same name in another table, or a near miss.
    fn closest(&self, key: &str) -> Option<&str> {
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_lowercase().replace('-', "_");
        let table = |key: &str| key.rsplit_once('.').map(|(table, _)| table.to_string());
        let distance = |known: &String| {
            let elsewhere = usize::from(table(known) != table(key));
            (strsim::damerau_levenshtein(&last(known), &last(key)), elsewhere)
        };
        let best = self.known.iter().min_by_key(|known| distance(known))?;
        let (edits, elsewhere) = distance(best);
        let allowed = if elsewhere == 0 { (last(key).chars().count() / 3).max(2) } else { 1 };
        (edits <= allowed).then_some(best.as_str())
    }

    /// Puts the place in front of an error: file, line, column and the line itself, or the override.
    fn locate(&self, origin: &Origin, mut error: Error) -> Error {
        match *origin {
            Origin::Absent => error.context(self.name),
            Origin::Override(index) => error.context(format!("-s {}", self.overrides[index])),
            Origin::File { start, end } => {
                let start = floor_boundary(self.text, start);
                let line_start = self.text[..start].rfind('\n').map_or(0, |newline| newline + 1);
                let line = self.text[line_start..].lines().next().unwrap_or_default();
                let number = self.text[..start].matches('\n').count() + 1;
                let column = self.text[line_start..start].chars().count();
                let marked = self.text[start..floor_boundary(self.text, end.max(start))].lines().next().unwrap_or_default();
                error.message.push_str(&excerpt(number, line, column, marked.chars().count()));
                error.context(format!("{}:{number}:{}", self.name, column + 1))
            }
        }
    }
}

impl Section<'_, '_> {
    /// Reads one key: `convert` says whether the value is what `expected` describes.
    fn read<T>(&mut self, key: &str, default: T, expected: &str, convert: impl FnOnce(&Value) -> Option<T>) -> T {
        let path = format!("{}{key}", self.prefix);
        self.document.known.push(path.clone());
        let Some(entry) = self.table.remove(key) else { return default };
        self.document.origins.insert(path.clone(), entry.value.clone());
        let (converted, found) = match &entry.node {
            Node::Leaf(value) => (convert(value), shown(value)),
            Node::Table(_) => (None, "a table".to_string()),
        };
        converted.unwrap_or_else(|| {
            self.document.problems.push((entry.value, Error::usage(format!("`{path}` must be {expected}, not {found}"))));
            default
        })
    }

    pub fn boolean(&mut self, key: &str, default: bool) -> bool {
        self.read(key, default, "true or false", Value::as_bool)
    }

    pub fn integer<T: TryFrom<i64>>(&mut self, key: &str, default: T, range: RangeInclusive<i64>) -> T {
        let expected = match (*range.start(), *range.end()) {
            (low, i64::MAX) => format!("an integer of at least {low}"),
            (low, high) => format!("an integer from {low} to {high}"),
        };
        self.read(key, default, &expected, |value| {
            value.as_integer().filter(|integer| range.contains(integer)).and_then(|integer| T::try_from(integer).ok())
        })
    }

    pub fn float(&mut self, key: &str, default: f64, range: RangeInclusive<f64>) -> f64 {
        let low = match *range.start() {
            f64::MIN_POSITIVE => "a number above 0".to_string(),
            low => format!("a number of at least {low}"),
        };
        let expected =
            if *range.end() == f64::MAX { format!("{low}, and finite") } else { format!("{low} and at most {}", range.end()) };
        self.read(key, default, &expected, |value| number(value).filter(|number| range.contains(number)))
    }

    /// Two numbers, each in `range`.
    pub fn pair(&mut self, key: &str, default: [f64; 2], range: RangeInclusive<f64>, expected: &str) -> [f64; 2] {
        self.read(key, default, expected, |value| {
            let numbers: Option<Vec<f64>> = value.as_array()?.iter().map(number).collect();
            <[f64; 2]>::try_from(numbers?).ok().filter(|pair| pair.iter().all(|number| range.contains(number)))
        })
    }

    /// A text; empty means unset.
    pub fn string(&mut self, key: &str) -> Option<String> {
        let text = self.read(key, String::new(), "a string", |value| value.as_str().map(str::to_string));
        Some(text).filter(|text| !text.is_empty())
    }

    /// A path; empty means unset.
    pub fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.string(key).map(PathBuf::from)
    }

    /// A list of paths; one alone may stand without brackets.
    pub fn paths(&mut self, key: &str) -> Vec<PathBuf> {
        self.read(key, Vec::new(), "a list of file names", |value| match value {
            Value::String(path) if path.is_empty() => Some(Vec::new()),
            Value::String(path) => Some(vec![path.into()]),
            Value::Array(paths) => {
                paths.iter().map(|path| path.as_str().filter(|path| !path.is_empty()).map(PathBuf::from)).collect()
            }
            _ => None,
        })
    }

    /// One of a set of words.
    pub fn choice<C: Choice>(&mut self, key: &str, default: C) -> C {
        self.read(key, default, &words(C::WORDS), word)
    }

    /// A list of words out of a set.
    pub fn choices<C: Choice>(&mut self, key: &str) -> Vec<C> {
        let expected = format!("a list of {}", words(C::WORDS));
        self.read(key, Vec::new(), &expected, |value| value.as_array()?.iter().map(word).collect())
    }

    /// `"epoch"`, which is the default, or a number of steps.
    pub fn every(&mut self, key: &str) -> Every {
        self.read(key, Every::Epoch, "\"epoch\" or a number of steps of at least 1", |value| match value {
            Value::String(word) if word == "epoch" => Some(Every::Epoch),
            Value::Integer(steps) => u64::try_from(*steps).ok().filter(|steps| *steps > 0).map(Every::Steps),
            _ => None,
        })
    }

    /// Reads a table inside this one, empty where it is absent.
    pub fn subsection<T>(&mut self, name: &str, read: impl FnOnce(&mut Section) -> T) -> T {
        let entry = self.table.remove(name);
        self.document.read_table(format!("{}{name}", self.prefix), entry, read)
    }

    /// Reports a required key without a value.
    pub fn missing(&mut self, key: &str, what: &str) {
        let error = Error::usage(format!("`{}{key}` is required: {what}", self.prefix));
        self.report(key, error);
    }

    /// Reports keys that do not go together, at `key`.
    pub fn contradiction(&mut self, key: &str, message: &str, help: &str) {
        self.report(key, Error::usage(message).help(help));
    }

    fn report(&mut self, key: &str, error: Error) {
        let origin = self.document.origins.get(&format!("{}{key}", self.prefix)).unwrap_or(&self.origin).clone();
        // One mistake a place: a required key of the wrong type is not missing as well.
        if !matches!(origin, Origin::Absent) && self.document.problems.iter().any(|(other, _)| *other == origin) {
            return;
        }
        self.document.problems.push((origin, error));
    }
}

/// The value of override number `index`: TOML where it parses, else a string.
fn override_value(text: &str, index: usize) -> Node {
    let parsed = toml::from_str::<toml::Table>(&format!("value = {text}")).ok().filter(|table| table.len() == 1);
    match parsed.and_then(|mut table| table.remove("value")) {
        Some(value) => value_node(value, index),
        None => Node::Leaf(Value::String(text.to_string())),
    }
}

fn value_node(value: Value, index: usize) -> Node {
    let origin = || Origin::Override(index);
    match value {
        Value::Table(table) => Node::Table(
            table
                .into_iter()
                .map(|(key, value)| (key, Entry { key: origin(), value: origin(), node: value_node(value, index) }))
                .collect(),
        ),
        leaf => Node::Leaf(leaf),
    }
}

fn number(value: &Value) -> Option<f64> {
    value.as_float().or_else(|| value.as_integer().map(|integer| integer as f64))
}

fn word<C: Choice>(value: &Value) -> Option<C> {
    let text = value.as_str()?;
    C::WORDS.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice)
}

fn words<C>(words: &[(&str, C)]) -> String {
    words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(" or ")
}

/// A value as an error shows it: short values in full, long ones by type.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.len() <= 60 { text } else { format!("this {}", value.type_str()) }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

/// The offending line with its fault underlined, cut to a window around it where the line is long.
fn excerpt(number: usize, line: &str, column: usize, marked: usize) -> String {
    const WINDOW: usize = 100;
    let skipped = column.saturating_sub(WINDOW / 2);
    let visible: String = line.chars().skip(skipped).take(WINDOW).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let carets = "^".repeat(marked.clamp(1, WINDOW.saturating_sub(column - skipped).max(1)));
    format!("\n{number:>5} | {visible}\n      | {}{carets}", " ".repeat(column - skipped))
}
