//! From rows in files to micro-batches of tokens; nothing here knows a device.
//!
//! `row_file` reads files row by row, `rows` understands the formats, `template` renders a chat, `tokenizer` turns text into ids, `chat` joins the two and marks what is
//! supervised, `pack` composes micro-batches, `order` shuffles.

mod chat;
mod dataset;
mod order;
mod pack;
#[cfg(feature = "parquet")]
mod parquet;
mod row_file;
mod rows;
mod template;
mod tokenizer;

pub use chat::{Chat, Encoded};
pub use dataset::{Dataset, Example, Rejected, Truncated, load, load_conversations, load_questions, quantile};
pub use order::order;
pub use pack::{IGNORE, MicroBatch, pack, require_fit};
pub use row_file::RowFile;
pub(crate) use row_file::kind;
pub use rows::{Entry, Message, Prompt, PromptReader, Role, read_prompts};
