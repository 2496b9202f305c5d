//! A chat as a model sees it: rendered by its template, turned into token ids, with the supervised tokens marked.

use super::rows::{Message, Role};
use super::template::{TEMPLATE_HELP, Template};
use super::tokenizer::Tokenizer;
use crate::config::read_json;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::Path;

/// Tokenizer, chat template and stop tokens of one model. Training and sampling both go through it.
pub struct Chat {
    tokenizer: Tokenizer,
    template: Template,
    stop: BTreeSet<i32>,
}

/// A conversation as token ids. Both fields have one entry a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    pub tokens: Vec<i32>,
    /// Whether the token is a target of training.
    pub supervised: Vec<bool>,
}

impl Chat {
    /// Reads `folder`: tokenizer.json, the chat template (`template_override` if given) and the stop tokens.
    ///
    /// Stop tokens are those of generation_config.json, else of config.json, else the tokenizer's own, and always the one with which the
    /// template ends an assistant turn, since that is what training teaches.
    ///
    /// Errors: data errors that name the file.
    pub fn load(folder: &Path, template_override: Option<&Path>, vocab_size: usize) -> Result<Chat> {
        let tokenizer = Tokenizer::load(folder, vocab_size)?;
        let tokenizer_config = read_if_present(folder, "tokenizer_config.json")?;
        let template = Template::load(folder, template_override, &tokenizer_config)?;
        let mut chat = Chat { tokenizer, template, stop: BTreeSet::new() };
        chat.stop = configured_stop(folder, &tokenizer_config, &chat.tokenizer, vocab_size)?;
        chat.stop.insert(chat.end_of_turn()?);
        Ok(chat)
    }

    /// Token ids of `messages` up to where the model is to answer.
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Vec<i32>> {
        self.tokenizer.encode(&self.template.render(messages, true)?)
    }

    /// Token ids of a whole conversation. Every assistant turn is supervised: its text, and what ends it.
    ///
    /// The text is cut wherever masked and supervised parts meet, and each part is tokenised alone, so that the tokens of a prompt are
    /// those that the model sees when it answers.
    ///
    /// Errors: a data error if the template alters or drops assistant text, if what it renders for an answer does not continue what it
    /// renders as the prompt, or if the conversation does not end with an assistant turn.
    pub fn encode_conversation(&self, messages: &[Message]) -> Result<Encoded> {
        if messages.last().is_none_or(|message| message.role != Role::Assistant) {
            return Err(Error::data("the conversation does not end with an assistant turn"));
        }
        let whole = self.template.render(messages, false)?;
        let mut encoded = Encoded { tokens: Vec::new(), supervised: Vec::new() };
        let mut done = 0;
        for (turn, message) in messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant) {
            let prompt = self.template.render(&messages[..turn], true)?;
            let through =
                if turn + 1 == messages.len() { whole.clone() } else { self.template.render(&messages[..=turn], false)? };
            let response = response_span(&whole, &prompt, &through, &message.content)
                .map_err(|why| Error::data(format!("message {turn} (assistant): {why}")).help(TEMPLATE_HELP))?;
            self.append(&mut encoded, whole.get(done..response.start).unwrap_or_default(), false)?;
            done = response.end;
            self.append(&mut encoded, &whole[response], true)?;
        }
        Ok(encoded)
    }

    /// Token ids of `messages` up to where the model is to answer, with the text of the user turns marked as supervised, and tokenised alone.
    ///
    /// Errors: a data error if the template alters or drops that text.
    pub fn encode_question(&self, messages: &[Message]) -> Result<Encoded> {
        let whole = self.template.render(messages, true)?;
        // A private-use character that stands nowhere else: rendered instead of a turn's text, it tells where that text begins.
        // The text itself could also stand in the template's own words.
        let mark = ('\u{e000}'..='\u{f8ff}').find(|&c| !whole.contains(c));
        let mark = mark.ok_or_else(|| Error::data("the messages hold every private-use character of Unicode"))?;
        let mut marked = messages.to_vec();
        let mut encoded = Encoded { tokens: Vec::new(), supervised: Vec::new() };
        let mut done = 0;
        for (turn, message) in messages.iter().enumerate() {
            marked[turn].content = mark.into();
            let before = self.template.render(&marked, true)?.split(mark).next().unwrap_or_default().to_string();
            marked[turn].content.clone_from(&message.content);
            let kept = whole.strip_prefix(&before).is_some_and(|rest| rest.starts_with(&message.content));
            if before.len() < done || !kept {
                return Err(Error::data(format!("message {turn}: the chat template alters or drops its text")));
            }
            let (start, end) = (before.len(), before.len() + message.content.len());
            if message.role == Role::User {
                self.append(&mut encoded, &whole[done..start], false)?;
                self.append(&mut encoded, &whole[start..end], true)?;
            } else {
                self.append(&mut encoded, &whole[done..end], false)?;
            }
            done = end;
        }
        self.append(&mut encoded, &whole[done..], false)?;
        Ok(encoded)
    }

    fn append(&self, encoded: &mut Encoded, text: &str, supervised: bool) -> Result<()> {
        encoded.tokens.extend(self.tokenizer.encode(text)?);
        encoded.supervised.resize(encoded.tokens.len(), supervised);
        Ok(())
    }

    /// Text of `ids` without special tokens.
    pub fn decode(&self, ids: &[i32]) -> String {
        self.tokenizer.decode(ids, true)
    }

    /// Text of `ids` with special tokens written out.
    pub fn decode_raw(&self, ids: &[i32]) -> String {
        self.tokenizer.decode(ids, false)
    }

    /// How many ids the tokenizer has; those above are padding rows of the model's vocabulary.
    pub fn vocabulary(&self) -> usize {
        self.tokenizer.vocabulary()
    }

    /// Bytes of the longest text that so many tokens can have.
    pub fn most_bytes(&self, tokens: usize) -> usize {
        self.tokenizer.longest().saturating_mul(tokens)
    }

    /// Ids at which an answer ends.
    pub fn stop_ids(&self) -> &BTreeSet<i32> {
        &self.stop
    }

    /// The id of a special token by its text, as `<|endoftext|>`: text of answers never has it.
    pub fn special_id(&self, token: &str) -> Option<i32> {
        self.tokenizer.id(token).filter(|&id| self.tokenizer.is_special(id))
    }

    /// The first token after an assistant's text, by rendering a small conversation.
    fn end_of_turn(&self) -> Result<i32> {
        const ANSWER: &str = "answer";
        let question = [Message::new(Role::User, "question"), Message::new(Role::Assistant, ANSWER)];
        let (prompt, whole) = (self.template.render(&question[..1], true)?, self.template.render(&question, false)?);
        let response = response_span(&whole, &prompt, &whole, ANSWER).map_err(|why| self.template.fail(why))?;
        let end = self.tokenizer.encode(&whole[response.start + ANSWER.len()..])?;
        end.first().copied().filter(|&id| self.tokenizer.is_special(id)).ok_or_else(|| {
            Error::data(
                "the chat template does not end an assistant turn with a special token: a trained model would never stop",
            )
            .help("set model.chat_template to a template that ends each turn with the model's end token")
        })
    }
}

/// Where in `whole` the answer `content` and its end lie, given the renderings of what comes before it (`prompt`) and up to its end (`through`).
fn response_span(whole: &str, prompt: &str, through: &str, content: &str) -> Result<std::ops::Range<usize>, &'static str> {
    if !whole.starts_with(through) {
        return Err("the chat template changes this turn when others follow it");
    }
    let response =
        through.strip_prefix(prompt).ok_or("the chat template does not render the answer as a continuation of its prompt")?;
    if !response.starts_with(content) {
        return Err("what the chat template renders after the prompt does not begin with the assistant's text: \
             it alters or drops the assistant's text, or ignores add_generation_prompt");
    }
    Ok(prompt.len()..through.len())
}

fn read_if_present(folder: &Path, name: &str) -> Result<Map<String, Value>> {
    let path = folder.join(name);
    if path.exists() { read_json(&path) } else { Ok(Map::new()) }
}

fn configured_stop(
    folder: &Path,
    tokenizer_config: &Map<String, Value>,
    tokenizer: &Tokenizer,
    vocab_size: usize,
) -> Result<BTreeSet<i32>> {
    for name in ["generation_config.json", "config.json"] {
        let config = read_if_present(folder, name)?;
        let Some(value) = config.get("eos_token_id").filter(|value| !value.is_null()) else { continue };
        let listed = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let id = |value: &Value| value.as_u64().filter(|&id| id < vocab_size as u64).map(|id| id as i32);
        return listed.iter().map(id).collect::<Option<_>>().ok_or_else(|| {
            Error::data(format!(
                "{}: `eos_token_id` ({value}) must be token ids below {vocab_size}",
                folder.join(name).display()
            ))
        });
    }
    let token = tokenizer_config.get("eos_token").and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
    Ok(token.and_then(|token| tokenizer.id(token)).into_iter().collect())
}
