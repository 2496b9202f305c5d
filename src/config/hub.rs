//! Models that are already in the local Hugging Face cache, by their hub id. Nothing is ever downloaded.

use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// The folder that `path` means: itself where it exists, else the cached snapshot of the hub id `organisation/name`.
///
/// Errors: a data error that names every place looked at.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    if path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let cache = cache_folder();
    let snapshot = hub_id(path).zip(cache.as_deref()).and_then(|(id, cache)| snapshot(cache, &id));
    snapshot.ok_or_else(|| {
        let cached = match (hub_id(path), &cache) {
            (Some(id), Some(cache)) => format!(", and {} is not in the Hugging Face cache at {}", id, cache.display()),
            _ => String::new(),
        };
        Error::data(format!("{}: no such folder{cached}", path.display()))
            .help("give a folder with config.json, tokenizer.json and weights, or download the model first")
    })
}

/// `path` as a hub id: two plain words with a slash between them.
fn hub_id(path: &Path) -> Option<String> {
    let text = path.to_str()?;
    let plain = |word: &str| {
        !word.is_empty() && !word.starts_with('.') && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let (organisation, name) = text.split_once('/')?;
    (plain(organisation) && plain(name)).then(|| text.to_string())
}

/// Where huggingface_hub keeps its downloads: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub.
fn cache_folder() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

/// The snapshot that the cached model's `main` branch points to.
fn snapshot(cache: &Path, id: &str) -> Option<PathBuf> {
    let model = cache.join(format!("models--{}", id.replace('/', "--")));
    let commit = std::fs::read_to_string(model.join("refs/main")).ok()?;
    let folder = model.join("snapshots").join(commit.trim());
    folder.is_dir().then_some(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_id_is_found_through_the_main_branch() {
        let cache = tempfile::tempdir().unwrap();
        let model = cache.path().join("models--Qwen--Qwen2.5-0.5B");
        std::fs::create_dir_all(model.join("snapshots/abc")).unwrap();
        std::fs::create_dir_all(model.join("refs")).unwrap();
        std::fs::write(model.join("refs/main"), "abc\n").unwrap();
        assert_eq!(snapshot(cache.path(), "Qwen/Qwen2.5-0.5B"), Some(model.join("snapshots/abc")));
        assert_eq!(snapshot(cache.path(), "Qwen/other"), None);
    }

    #[test]
    fn only_two_plain_words_are_a_hub_id() {
        assert!(hub_id(Path::new("Qwen/Qwen2.5-32B-Instruct")).is_some());
        for path in ["models", "/models/x", "../x", "a/../b", "a/b/c", "a/"] {
            assert!(hub_id(Path::new(path)).is_none(), "{path}");
        }
    }
}
