//! Answers that are generated before, during and after training.

use crate::cli::progress::Progress;
use crate::cli::terminal::visible;
use crate::config::{Config, ModelConfig};
use crate::data::{Chat, Message, Prompt, read_prompts};
use crate::error::Result;
use crate::grading::boxed_answer;
use crate::ops::{Narrowing, Ops, PAGE};
use crate::sample::{self, Capacity, FinishReason, LoadedModel, Settings, StopRules};
use crate::tensor::Ledgers;
use crate::train::Engine;
use serde_json::Value;

/// Rows to answer during training.
pub struct Samples {
    prompts: Vec<Prompt>,
    /// Token ids of each prompt.
    tokens: Vec<Vec<i32>>,
    max_tokens: usize,
}

impl Samples {
    pub fn load(config: &Config, chat: &Chat) -> Result<Option<Samples>> {
        let Some(file) = &config.samples.file else { return Ok(None) };
        let mut prompts = read_prompts(file, &config.data.fields, config.data.system.as_deref())?;
        if config.samples.n > 0 {
            prompts.truncate(config.samples.n);
        }
        let encode = |prompt: &Prompt| {
            chat.encode_prompt(&prompt.messages).map_err(|e| e.context(format!("{} (id {})", file.display(), prompt.id)))
        };
        let tokens = prompts.iter().map(encode).collect::<Result<_>>()?;
        Ok(Some(Samples { prompts, tokens, max_tokens: config.samples.max_tokens }))
    }

    /// What is generated from: the same on all ranks.
    pub fn digest(&self) -> String {
        format!("{:?} {}", self.tokens, self.max_tokens)
    }

    /// Tokens of the longest prompt with its longest answer.
    pub fn positions(&self) -> usize {
        self.tokens.iter().map(Vec::len).max().unwrap_or(1) + self.max_tokens
    }

    /// Room for all samples that are decoded at a time: none has to wait for another's pages.
    fn capacity(&self) -> Capacity {
        const MOST: usize = 64;
        const CHUNK: usize = 1024;
        let (batch, positions) = (self.tokens.len().clamp(1, MOST), self.positions());
        let pages = batch * (positions.div_ceil(PAGE) + 1);
        Capacity { batch, chunk: CHUNK.min(batch * positions), pages, host_pages: 0, positions }
    }

    /// What decoding them reserves.
    pub fn plan(&self, ops: &dyn Ops, architecture: &ModelConfig) -> Result<Ledgers> {
        let mut ledgers = sample::Engine::plan(ops, architecture, self.capacity())?;
        for ledger in [&mut ledgers.device, &mut ledgers.host] {
            ledger.entries.iter_mut().for_each(|entry| entry.name.insert_str(0, "samples."));
        }
        Ok(ledgers)
    }
}

pub struct Sampler<'a> {
    samples: &'a Samples,
    chat: &'a Chat,
    engine: sample::Engine,
    stop: &'a dyn Fn() -> Result<()>,
}

impl<'a> Sampler<'a> {
    /// Answers printed in full.
    const SHOWN: usize = 3;

    pub fn new(samples: &'a Samples, engine: &Engine, chat: &'a Chat, stop: &'a dyn Fn() -> Result<()>) -> Result<Self> {
        let config = &engine.state.model.config;
        let engine = sample::Engine::new(engine.ops.as_ref(), config, samples.capacity())?;
        Ok(Sampler { samples, chat, engine, stop })
    }

    /// All ranks generate; the one with `progress` prints.
    pub fn run(&mut self, engine: &Engine, step: usize, progress: Option<&Progress>) -> Result<()> {
        let state = &engine.state;
        let settings = Settings {
            narrowing: Narrowing { temperature: 0.0, ..Narrowing::NONE },
            stop: StopRules { ids: self.chat.stop_ids(), text: None, repetition: false },
            log_probabilities: false,
            vocabulary: self.chat.vocabulary(),
        };
        let on = LoadedModel { ops: engine.ops.as_ref(), model: &state.model, weights: &state.weights };
        let (prompts, most) = (&self.samples.tokens, self.samples.max_tokens);
        let answers = self.engine.answer(on, &settings, prompts, most, self.stop)?;
        let Some(progress) = progress else { return Ok(()) };
        let texts: Vec<String> = answers.iter().map(|a| self.chat.decode(&a.tokens)).collect();
        for ((prompt, text), answer) in self.samples.prompts.iter().zip(&texts).zip(&answers).take(Self::SHOWN) {
            let question = prompt.messages.last().map_or("", |m: &Message| m.content.as_str());
            let (question, text) = (visible(question), visible(text));
            let end = if answer.reason == FinishReason::Stop { "" } else { " […]" };
            progress.line(&format!(
                "sample at step {step}, id {}: {question}\n  {}{end}",
                prompt.id,
                text.replace('\n', "\n  ")
            ))?;
        }
        let graded: Vec<bool> =
            self.samples.prompts.iter().zip(&texts).filter_map(|(p, t)| exact_match(p.answer.as_ref()?, t)).collect();
        if !graded.is_empty() {
            let correct = graded.iter().filter(|&&correct| correct).count();
            let percent = 100.0 * correct as f64 / graded.len() as f64;
            progress.line(&format!("exact match at step {step}: {correct}/{} = {percent:.1} %", graded.len()))?;
        }
        Ok(())
    }
}

/// Whether the boxed answer of `response` is the reference answer, character by character. None where the reference is not text or a number.
fn exact_match(reference: &Value, response: &str) -> Option<bool> {
    let reference = match reference {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    Some(boxed_answer(response).is_some_and(|answer| answer.trim() == reference.trim()))
}
