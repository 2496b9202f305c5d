//! Files and folders that a reader sees old or new, never half: written aside, flushed to disk, then renamed.

use crate::error::{Error, Result, write_error};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Replaces the file `path`, or the one that it links to, by what `write` produces. Survives a power cut: the content is on disk before
/// the name is. A device or a pipe is written to instead.
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return write_through(path, write);
    }
    // Where there is no file yet, the path as it is.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let temporary = aside(path, "tmp")?;
    let written = write_synced(&temporary, path, write)
        .and_then(|()| fs::rename(&temporary, path).map_err(|e| write_error(path, e)))
        .and_then(|()| sync_dir(parent(path)));
    if written.is_err() {
        // The first failure is the one to report; a file that was never made cannot be removed either.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Puts the finished folder `new` where `target` is, which may exist: its old content goes away.
pub(super) fn replace_dir(new: &Path, target: &Path) -> Result<()> {
    let old = set_aside(target)?;
    fs::rename(new, target).map_err(|e| write_error(target, e))?;
    sync_dir(parent(target))?;
    remove_dir(&old)
}

/// Removes a folder and its content: in one step for who looks for it by its name. None there is fine.
pub fn remove_folder(dir: &Path) -> Result<()> {
    remove_dir(&set_aside(dir)?)
}

/// Renames a folder, if it is there, to `.NAME.old`, and returns that name.
fn set_aside(dir: &Path) -> Result<PathBuf> {
    let old = aside(dir, "old")?;
    remove_dir(&old)?;
    match fs::rename(dir, &old) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(write_error(dir, error)),
        _ => Ok(old),
    }
}

/// Makes the names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| write_error(dir, e))
}

/// Writes to what is no file: it can be neither replaced nor, in general, flushed to disk.
fn write_through(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let named = |error| write_error(path, error);
    let mut out = BufWriter::new(OpenOptions::new().write(true).open(path).map_err(named)?);
    write(&mut out)?;
    out.flush().map_err(named)
}

/// Writes the file `path`, mode 0644 less the umask, and flushes it to disk. Errors speak of `name`.
pub(super) fn write_synced(path: &Path, name: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let named = |error| write_error(name, error);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path).map_err(named)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write(&mut out)?;
    out.flush().map_err(named)?;
    out.get_ref().sync_all().map_err(named)
}

/// `.NAME.SUFFIX` beside `path`: on the same file system, so that a rename is one step.
pub(super) fn aside(path: &Path, suffix: &str) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::usage(format!("{} does not name a file or folder", path.display())))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    hidden.push(suffix);
    Ok(path.with_file_name(hidden))
}

/// Removes a folder and its content; none there is fine.
pub(super) fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(write_error(dir, error)),
        _ => Ok(()),
    }
}

pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
