//! What a command writes must not be what it reads.

use crate::error::{Error, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Refuses outputs, each with its flag, that are an input, a file in a folder that is one, by whatever name, or an output before them.
pub fn refuse_to_replace_inputs(inputs: &[(&str, &Path)], outputs: &[(&str, &Path)]) -> Result<()> {
    for (number, (flag, path)) in outputs.iter().enumerate() {
        if let Some((replaced, other)) =
            inputs.iter().chain(&outputs[..number]).find(|(_, other)| same(other, path) || holds(other, path))
        {
            let within = if holds(other, path) { "a file of " } else { "" };
            return Err(Error::usage(format!("{flag} {} would replace {within}{replaced}", path.display()))
                .help(format!("give another {flag}")));
        }
    }
    Ok(())
}

fn holds(folder: &Path, path: &Path) -> bool {
    folder.is_dir() && real(folder).is_some_and(|folder| real(path).is_some_and(|path| path.starts_with(folder)))
}

/// A new file has no real path yet, but its folder has.
fn real(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok().or_else(|| {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(folder.canonicalize().ok()?.join(path.file_name()?))
    })
}

/// Whether two paths are one file, by whatever name.
fn same(a: &Path, b: &Path) -> bool {
    let file = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    file(a).is_some_and(|found| file(b) == Some(found)) || real(a).is_some_and(|found| real(b) == Some(found))
}
