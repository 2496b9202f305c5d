//! What a command writes must not be what it reads.

use crate::error::{Error, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Refuses outputs, each with its flag, that are the input, a file of the model, by whatever name, or an output before them.
pub fn refuse_to_replace_inputs(input: &Path, model: &Path, outputs: &[(&str, &Path)]) -> Result<()> {
    let model = real(model);
    for (number, (flag, path)) in outputs.iter().enumerate() {
        let earlier = outputs[..number].iter().find(|(_, other)| same(other, path));
        let replaced = if same(input, path) {
            "--input"
        } else if model.as_ref().is_some_and(|model| real(path).is_some_and(|path| path.starts_with(model))) {
            "a file of --model"
        } else if let Some((other, _)) = earlier {
            other
        } else {
            continue;
        };
        return Err(
            Error::usage(format!("{flag} {} would replace {replaced}", path.display())).help(format!("give another {flag}"))
        );
    }
    Ok(())
}

/// A new file has no real path yet, but its folder has.
fn real(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok().or_else(|| {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(folder.canonicalize().ok()?.join(path.file_name()?))
    })
}

/// Whether two paths are one file, by whatever name.
pub(super) fn same(a: &Path, b: &Path) -> bool {
    let file = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    file(a).is_some_and(|found| file(b) == Some(found)) || real(a).is_some_and(|found| real(b) == Some(found))
}
