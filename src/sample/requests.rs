//! From rows of a file to requests of the engine, and from what it finished to rows of the output.

use super::output::{Done, SampleRow, first_word, id_hash};
use super::{Capacity, FinishReason, Finished, Request, StopTexts};
use crate::data::{Chat, Entry, Prompt, PromptReader};
use crate::error::{Error, Result};
use crate::ops::PAGE;
use serde_json::Value;
use std::collections::BTreeSet;
use std::collections::hash_map::{Entry as Slot, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A part of the rows: those whose number leaves the remainder `index` when divided by `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    pub index: usize,
    pub of: usize,
}

impl Shard {
    pub const ALL: Shard = Shard { index: 0, of: 1 };

    fn holds(self, number: usize) -> bool {
        number % self.of == self.index
    }

    /// How many of `rows` rows it has.
    pub fn share(self, rows: usize) -> usize {
        (rows + self.of - 1 - self.index) / self.of
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl FromStr for Shard {
    type Err = String;
    fn from_str(text: &str) -> Result<Shard, String> {
        let parts = text.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match parts {
            Some((index, of)) if index < of => Ok(Shard { index, of }),
            _ => Err(format!("{text:?} is not i/n with i from 0 to n − 1, as 0/4 is")),
        }
    }
}

/// What is asked of every prompt, and what its rows hold.
pub struct Asked<'a> {
    pub seed: u64,
    pub samples: u32,
    /// Tokens of the longest answer.
    pub max_tokens: usize,
    pub stop_ids: &'a BTreeSet<i32>,
    pub stop_texts: &'a StopTexts<'a>,
    pub token_ids: bool,
    pub logprobs: bool,
}

/// What became of the rows.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Rows of this shard.
    pub rows: usize,
    /// Those of them that cannot be sampled.
    pub broken: usize,
    /// Rows that can be, those of other shards included as far as they were looked at.
    pub usable: usize,
    /// Samples that the output held already.
    pub kept: usize,
    /// Samples that it finished, and their tokens.
    pub finished: usize,
    pub tokens: usize,
}

/// The rows of a file on their way through the engine. Of a row that waits or is done, a few bytes are kept.
pub struct Requests<'a> {
    path: PathBuf,
    prompts: PromptReader,
    chat: &'a Chat,
    asked: Asked<'a>,
    shard: Shard,
    capacity: Capacity,
    done: Done,
    /// The line of each id.
    lines: HashMap<u64, u32>,
    running: HashMap<u64, Running>,
    told_cut: bool,
    pub counts: Counts,
}

/// A prompt whose samples are not all finished.
struct Running {
    id: Value,
    prompt: u64,
    left: usize,
}

impl<'a> Requests<'a> {
    /// `path` is what `prompts` reads; `done` are the samples that need no generating.
    pub fn new(
        path: PathBuf,
        prompts: PromptReader,
        chat: &'a Chat,
        asked: Asked<'a>,
        shard: Shard,
        capacity: Capacity,
        done: Done,
    ) -> Requests<'a> {
        let (lines, running, counts) = (HashMap::new(), HashMap::new(), Counts::default());
        Requests { path, prompts, chat, asked, shard, capacity, done, lines, running, told_cut: false, counts }
    }

    /// The next prompt that lacks samples; none after the last one. `report` hears of rows that cannot be sampled, with file and line.
    ///
    /// Errors: data, if the input cannot be read any further, or if none of its rows can be sampled.
    pub fn next(&mut self, report: &mut dyn FnMut(&str)) -> Result<Option<Request>> {
        while let Some(Entry { number, line, prompt }) = self.prompts.next_row()? {
            let own = self.shard.holds(number);
            self.counts.rows += usize::from(own);
            // Every shard looks at all ids, so that all agree which row has one first.
            let made = prompt.and_then(|prompt| {
                self.register(&prompt.id, line)?;
                if own { self.request(number, prompt, report).map(Some) } else { Ok(None) }
            });
            match made {
                Ok(request) => {
                    self.counts.usable += 1;
                    if let Some(request) = request.filter(|request| !request.samples.is_empty()) {
                        return Ok(Some(request));
                    }
                }
                Err(what) if own => {
                    self.counts.broken += 1;
                    report(&format!("{}:{line}: {what}; the row is left out", self.path.display()));
                }
                Err(_) => {}
            }
        }
        if self.counts.usable == 0 && self.counts.broken > 0 {
            let (path, broken) = (self.path.display(), self.counts.broken);
            return Err(Error::data(format!("{path}: none of {broken} rows can be sampled"))
                .help("docs/sampling.md has the rows that can; the reasons are above"));
        }
        Ok(None)
    }

    fn register(&mut self, id: &Value, line: usize) -> Result<(), String> {
        match self.lines.entry(id_hash(id)) {
            Slot::Occupied(first) => Err(format!("its id {id} is that of line {}", first.get())),
            Slot::Vacant(slot) => {
                slot.insert(u32::try_from(line).unwrap_or(u32::MAX));
                Ok(())
            }
        }
    }

    /// The missing samples of a prompt, or why there can be none.
    fn request(&mut self, number: usize, prompt: Prompt, report: &mut dyn FnMut(&str)) -> Result<Request, String> {
        let Prompt { id, messages, .. } = prompt;
        if messages.last().is_some_and(|message| message.content.trim().is_empty()) {
            return Err("the prompt is empty".into());
        }
        let Capacity { positions: context, pages, .. } = self.capacity;
        // Reading tokens off a text takes a hundred times its memory, so what can be told without is.
        let bytes: usize = messages.iter().map(|message| message.content.len()).sum();
        if bytes > self.chat.most_bytes(context) {
            return Err(format!("a prompt of {bytes} bytes has more tokens than the model's context of {context}"));
        }
        let tokens = self.chat.encode_prompt(&messages).map_err(|error| error.message)?;
        let length = tokens.len();
        if length == 0 {
            return Err("the chat template makes no token of the prompt".into());
        }
        if length >= context {
            return Err(format!(
                "the prompt has {length} tokens, the model's context of {context} leaves no room for an answer"
            ));
        }
        let max_tokens = self.asked.max_tokens.min(context - length);
        if !self.capacity.fits(length, max_tokens) {
            return Err(format!(
                "{length} tokens of prompt and {max_tokens} of answer do not fit the key/value cache of {pages} pages of {PAGE} tokens, \
                 one of them spare: lower --max-tokens or raise --kv-memory"
            ));
        }
        if max_tokens < self.asked.max_tokens && !self.told_cut {
            self.told_cut = true;
            report(&format!(
                "the model's context of {context} tokens leaves the answer of id {id} {max_tokens} tokens, fewer than --max-tokens; \
                 so it is for every {}",
                match context.saturating_sub(self.asked.max_tokens) {
                    0 => "prompt".to_string(),
                    most => format!("prompt of more than {most} tokens"),
                }
            ));
        }
        let prompt = prompt_hash(&tokens);
        let Some(missing) = self.done.missing(id_hash(&id), prompt, self.asked.samples) else {
            return Err(format!("the output has samples of id {id} for another prompt: give the row a new id"));
        };
        self.counts.kept += self.asked.samples as usize - missing.len();
        let key = |sample: u32| (sample, sample_key(self.asked.seed, &id, sample));
        let samples: Vec<(u32, u64)> = missing.into_iter().map(key).collect();
        if !samples.is_empty() {
            self.running.insert(number as u64, Running { id, prompt, left: samples.len() });
        }
        Ok(Request { prompt: number as u64, tokens, samples, max_tokens })
    }

    /// The row of a finished sample.
    pub fn row(&mut self, finished: Finished) -> Result<SampleRow> {
        let Finished { prompt, sample, tokens, log_probabilities, reason } = finished;
        let Some(running) = self.running.get_mut(&prompt) else {
            return Err(Error::internal(format!("sample {sample} of prompt {prompt} was not asked for")));
        };
        running.left -= 1;
        let (id, hash) = (running.id.clone(), running.prompt);
        if running.left == 0 {
            self.running.remove(&prompt);
        }
        self.counts.finished += 1;
        self.counts.tokens += tokens.len();
        let shown = match tokens.split_last() {
            Some((last, rest)) if reason == FinishReason::Stop && self.asked.stop_ids.contains(last) => rest,
            _ => &tokens[..],
        };
        let text = self.chat.decode(shown);
        Ok(SampleRow {
            id,
            sample,
            text: self.asked.stop_texts.cut(&text).to_string(),
            tokens: tokens.len(),
            logprobs: self.asked.logprobs.then_some(log_probabilities),
            token_ids: self.asked.token_ids.then_some(tokens),
            finish_reason: reason,
            prompt_hash: format!("{hash:016x}"),
        })
    }
}

/// The key of a sample's random numbers: the first 16 hexadecimal digits of the BLAKE3 hash of `[seed,id,sample]` as JSON without spaces.
pub fn sample_key(seed: u64, id: &Value, sample: u32) -> u64 {
    first_word(&blake3::hash(format!("[{seed},{id},{sample}]").as_bytes()))
}

/// Of the token ids as 32-bit little-endian numbers.
fn prompt_hash(tokens: &[i32]) -> u64 {
    let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
    first_word(&blake3::hash(&bytes))
}
