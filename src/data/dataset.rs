//! Rows of files as token sequences, each row either an example or rejected with its reason.

use super::chat::{Chat, Encoded};
use super::rows::{Prompt, Row, read_prompts, read_rows};
use crate::config::{DataConfig, FieldNames, Overlong};
use crate::error::{Error, Result};
use rayon::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A row ready for training. `tokens` and `supervised` have one entry a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    pub id: String,
    pub tokens: Vec<i32>,
    /// Whether the token is a target.
    pub supervised: Vec<bool>,
}

/// A row that is not trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// `file:line`
    pub source: String,
    pub id: String,
    pub reason: String,
}

/// A row of which only the first tokens are trained on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncated {
    /// `file:line`
    pub source: String,
    pub id: String,
    /// How many tokens the whole row has.
    pub tokens: usize,
}

/// Every row of the files: `rows = examples.len() + rejected.len()`, in the order of the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dataset {
    pub examples: Vec<Example>,
    pub rejected: Vec<Rejected>,
    /// Those among the examples that were cut.
    pub truncated: Vec<Truncated>,
    pub rows: usize,
}

/// Reads and tokenises `paths`.
///
/// Rows longer than `data.max_tokens` are an error, rejected or cut, as `data.overlong` says. Everything else that is wrong with a row is
/// a data error that names file, line and field. A row without an id gets its number, from 0 over all files.
pub fn load(paths: &[PathBuf], options: &DataConfig, chat: &Chat) -> Result<Dataset> {
    let mut rows = Vec::new();
    for path in paths {
        rows.extend(read_rows(path, &options.fields, options.system.as_deref(), true)?);
    }
    let encoded = in_order(rows.par_iter().map(|row| encode(row, chat)))?;
    let mut dataset = Dataset { rows: rows.len(), ..Dataset::default() };
    let (mut overlong, mut lengths) = (Vec::new(), Vec::new());
    for (number, (row, encoded)) in rows.into_iter().zip(encoded).enumerate() {
        let Encoded { mut tokens, mut supervised } = encoded;
        let (source, length) = (row.source, tokens.len());
        lengths.push(length);
        let id = row.id.map_or_else(|| number.to_string(), |id| text_of(&id));
        if length > options.max_tokens {
            match options.overlong {
                Overlong::Error => {
                    overlong.push(format!("{source} (id {id}): {length}"));
                    continue;
                }
                Overlong::Drop => {
                    let reason = format!("{length} tokens, more than data.max_tokens = {}", options.max_tokens);
                    dataset.rejected.push(Rejected { source, id, reason });
                    continue;
                }
                Overlong::Truncate => {
                    tokens.truncate(options.max_tokens);
                    supervised.truncate(options.max_tokens);
                    if !supervised.contains(&true) {
                        let reason = format!("its prompt alone fills data.max_tokens = {}", options.max_tokens);
                        dataset.rejected.push(Rejected { source, id, reason });
                        continue;
                    }
                    dataset.truncated.push(Truncated { source, id: id.clone(), tokens: length });
                }
            }
        }
        dataset.examples.push(Example { id, tokens, supervised });
    }
    refuse_overlong(&overlong, lengths, options.max_tokens)?;
    if dataset.examples.is_empty() {
        let why =
            dataset.rejected.first().map_or(String::new(), |first| format!(", the first ({}): {}", first.source, first.reason));
        return Err(Error::data(format!(
            "no row is left to train on: {} of {} rejected{why}",
            dataset.rejected.len(),
            dataset.rows
        )));
    }
    Ok(dataset)
}

/// Reads and tokenises every row of one file for scoring, its assistant turns supervised. The id is the row's own, else its number from 0.
pub fn load_conversations(
    path: &Path,
    fields: &FieldNames,
    system: Option<&str>,
    chat: &Chat,
) -> Result<Vec<(Value, Example)>> {
    let rows = read_rows(path, fields, system, true)?;
    let row = |(number, row): (usize, Row)| {
        let encoded = encode(&row, chat)?;
        Ok(identified(row.id, number, encoded))
    };
    in_order(rows.into_par_iter().enumerate().map(row))
}

/// Like [`load_conversations`], with the user turns supervised and no answer after them.
pub fn load_questions(path: &Path, fields: &FieldNames, system: Option<&str>, chat: &Chat) -> Result<Vec<(Value, Example)>> {
    let prompts = read_prompts(path, fields, system)?;
    let prompt = |(number, prompt): (usize, Prompt)| {
        let encoded =
            chat.encode_question(&prompt.messages).map_err(|e| e.context(format!("{}: row {number}", path.display())))?;
        require_supervised(&encoded).map_err(|e| e.context(format!("{}: row {number}", path.display())))?;
        Ok(identified(Some(prompt.id), number, encoded))
    };
    in_order(prompts.into_par_iter().enumerate().map(prompt))
}

/// Collects what rows gave, or the error of the first row that failed, whichever thread was first.
fn in_order<T: Send>(results: impl IndexedParallelIterator<Item = Result<T>>) -> Result<Vec<T>> {
    results.collect::<Vec<_>>().into_iter().collect()
}

fn identified(id: Option<Value>, number: usize, encoded: Encoded) -> (Value, Example) {
    let id = id.unwrap_or_else(|| number.into());
    let Encoded { tokens, supervised } = encoded;
    (id.clone(), Example { id: text_of(&id), tokens, supervised })
}

/// An id as text: a string without its quotes.
fn text_of(id: &Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_string)
}

fn encode(row: &Row, chat: &Chat) -> Result<Encoded> {
    let encoded = chat.encode_conversation(&row.messages).map_err(|error| error.context(&row.source))?;
    require_supervised(&encoded).map_err(|error| error.context(&row.source))?;
    Ok(encoded)
}

/// The first token has nothing before it to be predicted from.
fn require_supervised(encoded: &Encoded) -> Result<()> {
    match encoded.supervised.iter().skip(1).any(|&target| target) {
        true => Ok(()),
        false => Err(Error::data("no token of the row is supervised")),
    }
}

fn refuse_overlong(overlong: &[String], mut lengths: Vec<usize>, max_tokens: usize) -> Result<()> {
    const SHOWN: usize = 10;
    if overlong.is_empty() {
        return Ok(());
    }
    lengths.sort_unstable();
    let at = |share| quantile(&lengths, share);
    let mut list: String = overlong.iter().take(SHOWN).map(|row| format!("\n  {row} tokens")).collect();
    if overlong.len() > SHOWN {
        list.push_str(&format!("\n  and {} more", overlong.len() - SHOWN));
    }
    list.push_str(&format!(
        "\n  of all rows half have at most {} tokens, 99 % at most {}, all at most {}",
        at(0.5),
        at(0.99),
        at(1.0)
    ));
    Err(Error::data(format!("{} rows are longer than data.max_tokens = {max_tokens}:{list}", overlong.len()))
        .help("raise data.max_tokens, or set data.overlong to \"drop\" or \"truncate\""))
}

/// The smallest of `sorted` values that at least a share of them do not exceed (nearest rank); 0 for none.
pub fn quantile(sorted: &[usize], share: f64) -> usize {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0)
}
