//! Outputs are kept while nothing they depend on has changed: the command, the source and every header that it includes.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

/// Runs `make`, whose result is a text to keep beside `output`, unless the one for this `command` and these `sources` is still there.
pub fn cached(output: &Path, command: &str, sources: &[&Path], includes: &[&Path], make: impl FnOnce() -> String) -> String {
    let key_file = output.with_extension("key");
    let text_file = output.with_extension("txt");
    let key = key(command, sources, includes);
    if output.is_file()
        && std::fs::read_to_string(&key_file).is_ok_and(|kept| kept == key)
        && let Ok(text) = std::fs::read_to_string(&text_file)
    {
        return text;
    }
    let text = make();
    std::fs::write(text_file, &text).expect("OUT_DIR is writable");
    std::fs::write(key_file, key).expect("OUT_DIR is writable");
    text
}

fn key(command: &str, sources: &[&Path], includes: &[&Path]) -> String {
    let mut hasher = DefaultHasher::new();
    command.hash(&mut hasher);
    let mut seen = BTreeSet::new();
    let mut open = sources.iter().map(|source| source.to_path_buf()).collect::<Vec<_>>();
    while let Some(path) = open.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path.hash(&mut hasher);
        text.hash(&mut hasher);
        open.extend(text.lines().filter_map(included).filter_map(|name| find(name, &path, includes)));
    }
    format!("{:016x}", hasher.finish())
}

/// The name in `#include "name"`.
fn included(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("#include \"")?.split('"').next()
}

fn find(name: &str, from: &Path, includes: &[&Path]) -> Option<PathBuf> {
    let folders = from.parent().into_iter().chain(includes.iter().copied());
    folders.map(|folder| folder.join(name)).find(|path| path.is_file())
}
