//! Text to token ids and back, by a model folder's tokenizer.json.

use crate::error::{Error, Result, io_error};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// A tokenizer whose every id is below the model's vocabulary size.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: HashSet<i32>,
    vocabulary: usize,
    longest: usize,
    path: PathBuf,
}

impl Tokenizer {
    /// Reads `folder/tokenizer.json`.
    ///
    /// Errors: a data error if the file cannot be used, or if it has an id of `vocab_size` or more, for which the model has no row.
    pub fn load(folder: &Path, vocab_size: usize) -> Result<Tokenizer> {
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|error| {
            io_error(&path, error).help("the tokenizer folder needs tokenizer.json, as Hugging Face models ship it")
        })?;
        let read = || tokenizers::Tokenizer::from_bytes(&bytes).map_err(|error| error.to_string());
        let mut inner = contain(read).map_err(|error| Error::data(format!("{}: {error}", path.display())))?;
        // Both would change rows without a word: a length limit cuts them, padding adds to them.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| Error::data(format!("{}: {error}", path.display())))?;
        let entries = inner.get_vocab(true);
        let longest = entries.keys().map(String::len).max().unwrap_or_default();
        let vocabulary = entries.into_values().max().map_or(0, |largest| largest as usize + 1);
        if vocabulary > vocab_size {
            return Err(Error::data(format!(
                "{}: token id {} does not fit the model's vocabulary of {vocab_size}",
                path.display(),
                vocabulary - 1
            ))
            .help("the tokenizer and the model do not belong together"));
        }
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id as i32).collect();
        Ok(Tokenizer { inner, special, vocabulary, longest, path })
    }

    /// Token ids of `text`. Nothing is added; special tokens written in the text become their ids.
    pub fn encode(&self, text: &str) -> Result<Vec<i32>> {
        let encode = || self.inner.encode_fast(text, false).map_err(|error| error.to_string());
        let encoding = contain(encode).map_err(|error| Error::data(format!("{}: {error}", self.path.display())))?;
        Ok(encoding.get_ids().iter().map(|&id| id as i32).collect())
    }

    /// Text of `ids`; ids that no token has, such as a padded vocabulary's, give nothing.
    pub fn decode(&self, ids: &[i32], skip_special: bool) -> String {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        contain(|| self.inner.decode(&ids, skip_special).map_err(|error| error.to_string())).unwrap_or_default()
    }

    /// One more than the largest id.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Bytes of the longest token as the file spells it, which is at least as many as it stands for.
    pub fn longest(&self) -> usize {
        self.longest
    }

    pub fn id(&self, token: &str) -> Option<i32> {
        self.inner.token_to_id(token).map(|id| id as i32)
    }

    pub fn is_special(&self, id: i32) -> bool {
        self.special.contains(&id)
    }
}

/// Runs code of a library that panics on some crafted files and texts: a panic becomes an error.
pub(super) fn contain<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("the library that reads it failed: {}", message.unwrap_or("no reason given")))
    })
}
