//! A folder that appears whole or not at all, and can prove later that it is still what was written.

use super::atomic::{aside, parent, remove_dir, replace_dir, sync_dir, write_synced};
use super::tensors::{TensorSpec, write_tensors};
use crate::error::{Error, Result, io_error, write_error};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

/// Bytes that are hashed at once, by all threads.
const CHUNK: usize = 1 << 20;

/// One file of a folder: what was meant to be in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    pub name: String,
    pub bytes: u64,
    /// BLAKE3, hexadecimal.
    pub blake3: String,
}

/// A folder under construction, `.NAME.tmp` beside its place. Dropped unfinished by who created it, it is removed.
pub struct NewFolder {
    target: PathBuf,
    new: PathBuf,
    files: Vec<FileRecord>,
    created: bool,
}

impl NewFolder {
    /// Begins a folder that is to be `target`.
    pub fn create(target: &Path) -> Result<NewFolder> {
        let new = aside(target, "tmp")?;
        let home = parent(target);
        if !home.exists() {
            fs::create_dir_all(home).map_err(|e| write_error(home, e))?;
            sync_dir(parent(home))?;
        }
        remove_dir(&new)?;
        fs::create_dir(&new).map_err(|e| write_error(&new, e))?;
        Ok(NewFolder { target: target.to_path_buf(), new, files: Vec::new(), created: true })
    }

    /// A folder that another process began, and will finish: files are added to it.
    pub fn join(target: &Path) -> Result<NewFolder> {
        Ok(NewFolder { target: target.to_path_buf(), new: aside(target, "tmp")?, files: Vec::new(), created: false })
    }

    /// Counts files that others added.
    pub fn add(&mut self, files: Vec<FileRecord>) {
        self.files.extend(files);
    }

    /// Where the files are while the folder is built.
    pub fn path(&self) -> &Path {
        &self.new
    }

    /// The files so far.
    pub fn files(&self) -> &[FileRecord] {
        &self.files
    }

    /// Writes a file and flushes it to disk.
    pub fn write(&mut self, name: &str, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
        let path = self.new.join(name);
        let (mut bytes, mut hash) = (0, blake3::Hasher::new());
        write_synced(&path, &path, |out| write(&mut Hashing { out, hash: &mut hash, bytes: &mut bytes }))?;
        self.files.push(FileRecord { name: name.to_string(), bytes, blake3: hash.finalize().to_string() });
        Ok(())
    }

    /// Writes a safetensors file, as [`write_tensors`] does.
    pub fn write_tensors(
        &mut self,
        name: &str,
        tensors: &[TensorSpec],
        read: impl FnMut(&TensorSpec, Range<usize>, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let path = self.new.join(name);
        self.write(name, |out| write_tensors(out, &path, tensors, read))
    }

    /// Writes a file of known content.
    pub fn write_bytes(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.new.join(name);
        self.write(name, |out| out.write_all(content).map_err(|e| write_error(path, e)))
    }

    /// Reads every file back, compares it with what was meant, and puts the folder in its place, whose old content goes away.
    ///
    /// `progress` hears of every file, since reading takes long.
    pub fn finish(self, progress: &dyn Fn(&str)) -> Result<()> {
        sync_dir(&self.new)?;
        verify_files(&self.new, &self.files, progress)
            .map_err(|e| e.help("the disk or its file system lost data: check it, then run the command again"))?;
        replace_dir(&self.new, &self.target)
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if self.created {
            // After `finish` nothing is there; else the failure that led here is the one to report.
            let _ = remove_dir(&self.new);
        }
    }
}

struct Hashing<'a, W: Write> {
    out: &'a mut W,
    hash: &'a mut blake3::Hasher,
    bytes: &'a mut u64,
}

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(buffer)?;
        self.hash.update_rayon(&buffer[..written]);
        *self.bytes += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Compares the files of `dir` with what was once written there. `progress` hears of each before it is read.
///
/// Errors: data errors that name the first file that is missing, of another size, or of other content.
pub fn verify_files(dir: &Path, files: &[FileRecord], progress: &dyn Fn(&str)) -> Result<()> {
    let mut buffer = vec![0; CHUNK.min(files.iter().map(|file| file.bytes).max().unwrap_or_default().max(1) as usize)];
    for FileRecord { name, bytes, blake3: expected } in files {
        progress(name);
        if !matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(plain)] if plain == name.as_str())
        {
            return Err(Error::data(format!("{}: {name:?} is not the name of a file in this folder", dir.display())));
        }
        let path = dir.join(name);
        let mut file = File::open(&path).map_err(|e| io_error(&path, e))?;
        let found = file.metadata().map_err(|e| io_error(&path, e))?.len();
        if found != *bytes {
            return Err(Error::data(format!("{} has {found} bytes, {bytes} were written", path.display())));
        }
        let mut hash = blake3::Hasher::new();
        loop {
            match file.read(&mut buffer).map_err(|e| io_error(&path, e))? {
                0 => break,
                n => hash.update_rayon(&buffer[..n]),
            };
        }
        if hash.finalize().to_string() != *expected {
            return Err(Error::data(format!("{} is damaged: its content is not what was written", path.display())));
        }
    }
    Ok(())
}

/// Bytes that a user may still write to the file system of `path`, or of its nearest parent that exists; none where that is not known.
pub fn free_space(path: &Path) -> Option<u64> {
    let existing = path.ancestors().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p }).find(|p| p.exists())?;
    let found = rustix::fs::statvfs(existing).ok()?;
    // File systems without a size (some network and virtual ones) state 0 blocks.
    (found.f_blocks > 0).then(|| found.f_bavail.saturating_mul(found.f_frsize))
}
