//! Chat templates: the Jinja programs that model folders carry, rendered in a sandbox.

use super::rows::Message;
use crate::error::{Error, Result, io_error};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value, context};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;

/// Instructions one rendering may run. Qwen2.5's template takes about 30 a message.
const FUEL: u64 = 5_000_000;
/// Bytes one rendering may write: this much, and as much again as the messages have.
const MOST_OUTPUT: usize = 1 << 20;

const NAME: &str = "chat template";
/// What to do about any of a template's faults.
pub(super) const TEMPLATE_HELP: &str = "chat_template.jinja in the model's folder is the template; when training, model.chat_template may name another, and `inspect data` shows what it makes of the rows";

/// A compiled chat template.
pub struct Template {
    environment: Environment<'static>,
    /// Where the template was found, for errors.
    origin: String,
    /// bos_token, eos_token and so on, as tokenizer_config.json states them.
    special_tokens: BTreeMap<String, String>,
}

impl Template {
    /// The template of `file` if given, else of `folder/chat_template.jinja`, else of `tokenizer_config` (of `folder`), which holds one
    /// or a list of named ones, of which "default" is taken. The order is transformers'.
    ///
    /// Errors: a data error if there is none, or it does not parse.
    pub fn load(
        folder: &Path,
        file: Option<&Path>,
        tokenizer_config: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Template> {
        let beside = folder.join("chat_template.jinja");
        let file = file.or_else(|| beside.is_file().then_some(beside.as_path()));
        let (origin, source) = match file {
            Some(path) => (path.display().to_string(), std::fs::read_to_string(path).map_err(|error| io_error(path, error))?),
            None => {
                let path = folder.join("tokenizer_config.json");
                let source = named_template(tokenizer_config).ok_or_else(|| {
                    Error::data(format!("{}: no chat template here, nor in {}", path.display(), beside.display()))
                        .help("put one into chat_template.jinja in the model's folder; when training, model.chat_template may name a file")
                })?;
                (path.display().to_string(), source.to_string())
            }
        };
        Template::new(origin, source, special_tokens(tokenizer_config))
    }

    fn new(origin: String, source: String, special_tokens: BTreeMap<String, String>) -> Result<Template> {
        let mut environment = Environment::new();
        // As transformers sets Jinja up.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| Error::internal(error.to_string()))?);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", tojson);
        environment.set_fuel(Some(FUEL));
        environment
            .add_template_owned(NAME, plain_generation_blocks(&source))
            .map_err(|error| Error::data(format!("{origin}: {}", describe(&error))).help(TEMPLATE_HELP))?;
        Ok(Template { environment, origin, special_tokens })
    }

    /// Renders `messages`, followed by the opening of an assistant turn if `add_generation_prompt`.
    ///
    /// Errors: a data error with the template's own message, or because it ran or wrote too long.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let most = MOST_OUTPUT + 2 * messages.iter().map(|message| message.content.len()).sum::<usize>();
        let mut output = Capped { bytes: Vec::new(), most };
        let template = self.environment.get_template(NAME).map_err(|error| self.fail(describe(&error)))?;
        let special_tokens = Value::from(Serde(&self.special_tokens));
        let messages = Value::from(Serde(messages));
        let context = context! { messages, add_generation_prompt, ..special_tokens };
        template.render_captured_to(context, &mut output).map_err(|error| self.fail(describe(&error)))?;
        String::from_utf8(output.bytes).map_err(|_| self.fail("the chat template wrote broken UTF-8"))
    }

    /// A data error that names the template's file.
    pub fn fail(&self, why: impl Display) -> Error {
        Error::data(format!("{}: {why}", self.origin)).help(TEMPLATE_HELP)
    }
}

/// A buffer that refuses to grow past `most` bytes.
struct Capped {
    bytes: Vec<u8>,
    most: usize,
}

impl std::io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.most {
            return Err(std::io::Error::other(format!("it wrote more than {} bytes", self.most)));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn describe(error: &minijinja::Error) -> String {
    let line = error.line().map_or(String::new(), |line| format!(" line {line}"));
    let cause = std::error::Error::source(error).map_or(String::new(), |cause| format!(": {cause}"));
    let detail = error.detail().map_or(String::new(), |detail| format!(": {detail}"));
    match error.kind() {
        ErrorKind::OutOfFuel => format!("chat template{line}: it ran for more than {FUEL} instructions"),
        kind => format!("chat template{line}: {kind}{detail}{cause}"),
    }
}

/// `{% generation %}` blocks, which mark assistant text for other trainers, as blocks that are always rendered.
fn plain_generation_blocks(source: &str) -> String {
    let mut parts = source.split("{%");
    let mut plain = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let (tag, rest) = part.split_at(part.find("%}").unwrap_or(0));
        plain.push_str("{%");
        plain.push_str(&match tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => tag.replace("generation", "if true"),
            "endgeneration" => tag.replace("endgeneration", "endif"),
            _ => tag.to_string(),
        });
        plain.push_str(rest);
    }
    plain
}

fn named_template(tokenizer_config: &serde_json::Map<String, serde_json::Value>) -> Option<&str> {
    match tokenizer_config.get("chat_template")? {
        serde_json::Value::String(source) => Some(source),
        serde_json::Value::Array(named) => {
            let default = named.iter().find(|one| one.get("name").and_then(|name| name.as_str()) == Some("default"));
            default?.get("template")?.as_str()
        }
        _ => None,
    }
}

/// The tokens that tokenizer_config.json names, which templates use as variables: plain strings or objects with `content`.
fn special_tokens(tokenizer_config: &serde_json::Map<String, serde_json::Value>) -> BTreeMap<String, String> {
    let text = |value: &serde_json::Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string);
    let tokens = tokenizer_config.iter().filter(|(key, _)| key.ends_with("_token") && !key.starts_with("add_"));
    tokens.filter_map(|(key, value)| Some((key.clone(), text(value)?))).collect()
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("the template refuses these messages: {message}")))
}

/// Refused: a prompt that changes with the day cannot be reproduced, and training and inference would see different ones.
fn strftime_now(_format: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(
        ErrorKind::InvalidOperation,
        "the template writes today's date (strftime_now), which would differ between training and inference",
    ))
}

/// Python's json.dumps(value, ensure_ascii=False): unlike Jinja's own filter it escapes nothing for HTML.
fn tojson(value: Value) -> Result<Value, minijinja::Error> {
    let mut bytes = Vec::new();
    let written = value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, PythonSpacing));
    let fail = |error: String| minijinja::Error::new(ErrorKind::BadSerialization, error);
    written.map_err(|error| fail(error.to_string()))?;
    String::from_utf8(bytes).map(Value::from).map_err(|error| fail(error.to_string()))
}

/// `{"a": 1, "b": [2, 3]}`: a space after each colon and comma.
struct PythonSpacing;

impl serde_json::ser::Formatter for PythonSpacing {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
