//! The rows of a sampling job: appended as samples finish, and read again by the job that goes on.

use super::FinishReason;
use super::record::JobRecord;
use crate::error::{Error, Result, io_error, write_error};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// A finished sample.
#[derive(Debug, Clone, Serialize)]
pub struct SampleRow {
    pub id: Value,
    /// From 0.
    pub sample: u32,
    /// Without the stop token, and up to a stop text.
    pub text: String,
    /// How many there are, the stop token included.
    pub tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<i32>>,
    /// Natural logarithms, one a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<f32>>,
    pub finish_reason: FinishReason,
    /// Of the prompt's token ids: 16 hexadecimal digits.
    pub prompt_hash: String,
}

/// What a hash table keeps of an id, for a few bytes a row.
pub fn id_hash(id: &Value) -> u64 {
    first_word(&blake3::hash(id.to_string().as_bytes()))
}

/// The first 16 hexadecimal digits as a number.
pub(super) fn first_word(hash: &blake3::Hash) -> u64 {
    hash.as_bytes()[..8].iter().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

/// The samples that an output holds already.
#[derive(Debug, Default)]
pub struct Done {
    /// Of each id and 64 samples of it: the prompt's hash, and a bit a sample.
    samples: HashMap<(u64, u32), (u64, u64)>,
    pub rows: usize,
}

impl Done {
    fn insert(&mut self, id: &Value, sample: u32, prompt: u64) {
        let entry = self.samples.entry((id_hash(id), sample / 64)).or_insert((prompt, 0));
        entry.1 |= 1 << (sample % 64);
        self.rows += 1;
    }

    /// The samples from 0 to `count` that are missing of a prompt. None where the id has samples of another prompt.
    pub fn missing(&self, id: u64, prompt: u64, count: u32) -> Option<Vec<u32>> {
        let mut missing = Vec::new();
        for block in 0..count.div_ceil(64) {
            let (of, bits) = self.samples.get(&(id, block)).copied().unwrap_or((prompt, 0));
            if of != prompt {
                return None;
            }
            missing.extend((block * 64..count.min(block * 64 + 64)).filter(|sample| bits >> (sample % 64) & 1 == 0));
        }
        Some(missing)
    }
}

/// The file that rows are appended to. It is locked until it is dropped.
pub struct Output {
    path: PathBuf,
    file: Option<File>,
    /// Bytes of its whole rows: what is kept.
    length: u64,
    /// Bytes after the last whole row, which an interrupted write left.
    torn: u64,
    /// It holds rows that do not stay.
    replaces: bool,
    /// The program that began it, where that is another one.
    begun_by: Option<String>,
}

impl Output {
    /// Looks at what `path` holds; writes nothing. `resume`: go on where it holds rows of this job; `overwrite`: start over, whatever it holds.
    ///
    /// Errors: usage, if it is no file, if another process writes to it, or if it holds rows and this job may not go on with them.
    pub fn open(path: &Path, record: &JobRecord, resume: bool, overwrite: bool) -> Result<(Output, Done)> {
        let name = path.display();
        let mut output = Output { path: path.to_path_buf(), file: None, length: 0, torn: 0, replaces: false, begun_by: None };
        match std::fs::metadata(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                JobRecord::read(&JobRecord::path(path))?;
                return Ok((output, Done::default()));
            }
            Err(error) => return Err(write_error(path, error)),
            Ok(found) if !found.is_file() => {
                return Err(Error::usage(format!("--output {name} is not a file"))
                    .help("give the name of a file: the job goes on from it"));
            }
            Ok(_) => {}
        }
        let file = OpenOptions::new().read(true).append(true).open(path).map_err(|e| write_error(path, e))?;
        // Only who holds the lock knows what the file and its record are.
        lock(&file, path)?;
        let before = JobRecord::read(&JobRecord::path(path))?;
        let length = file.metadata().map_err(|e| io_error(path, e))?.len();
        output.file = Some(file);
        if overwrite || length == 0 {
            output.replaces = length > 0;
            return Ok((output, Done::default()));
        }
        let start_over = "choose another --output, or pass --overwrite to start over";
        if !resume {
            return Err(Error::usage(format!("--resume never: {name} holds rows")).help(start_over));
        }
        let Some(before) = before else {
            let record = JobRecord::path(path);
            return Err(Error::usage(format!("{name} is not the output of a sampling job: {} is not there", record.display()))
                .help(start_over));
        };
        if let Some(difference) = record.difference(&before)? {
            return Err(Error::usage(format!("{name} is the output of another job: {difference}")).help(start_over));
        }
        let program = before.get("program").and_then(Value::as_str);
        output.begun_by = program.filter(|program| *program != record.program).map(str::to_string);
        let done = output.read()?;
        Ok((output, done))
    }

    /// The name and version of the program that began the output, where it is another one.
    pub fn begun_by(&self) -> Option<&str> {
        self.begun_by.as_deref()
    }

    /// Whether [`Output::begin`] takes rows away that are there.
    pub fn replaces(&self) -> bool {
        self.replaces
    }

    /// Bytes of a last row that was cut off, which [`Output::begin`] removes.
    pub fn torn(&self) -> u64 {
        self.torn
    }

    /// Reads the rows of an earlier run.
    fn read(&mut self) -> Result<Done> {
        #[derive(Deserialize)]
        struct Known {
            id: Value,
            sample: u32,
            prompt_hash: String,
        }
        let mut done = Done::default();
        let mut lines = BufReader::with_capacity(1 << 20, File::open(&self.path).map_err(|e| io_error(&self.path, e))?);
        let mut line = Vec::new();
        loop {
            line.clear();
            let bytes = lines.read_until(b'\n', &mut line).map_err(|e| io_error(&self.path, e))? as u64;
            if line.last() != Some(&b'\n') {
                self.torn = bytes;
                return Ok(done);
            }
            let known =
                serde_json::from_slice::<Known>(&line).map_err(|error| error.to_string().split(" at line ").take(1).collect());
            let known = known.and_then(|known| match u64::from_str_radix(&known.prompt_hash, 16) {
                Ok(prompt) => Ok((known.id, known.sample, prompt)),
                Err(_) => Err("`prompt_hash` is not hexadecimal".to_string()),
            });
            let (id, sample, prompt) = known.map_err(|what| {
                Error::usage(format!("{}:{}: not a row of this job: {what}", self.path.display(), done.rows + 1))
                    .help("remove that line, or pass --overwrite to start over")
            })?;
            done.insert(&id, sample, prompt);
            self.length += bytes;
        }
    }

    /// Makes the file, or cuts off what is not kept, and writes the job's record beside it.
    ///
    /// Errors: usage, if either cannot be written, or if another process was faster.
    pub fn begin(&mut self, record: &JobRecord) -> Result<()> {
        // A record must never describe rows of another job: these go first.
        match &self.file {
            Some(file) => {
                file.set_len(self.length).map_err(|e| write_error(&self.path, e))?;
                self.replaces = false;
            }
            None => {
                let new = OpenOptions::new().append(true).create_new(true).open(&self.path);
                let file = match new {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists && self.path.is_symlink() => {
                        return Err(Error::usage(format!(
                            "--output {} is a link to a file that is not there",
                            self.path.display()
                        ))
                        .help("remove the link, or make the file"));
                    }
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(in_use(&self.path)),
                    new => new.map_err(|e| write_error(&self.path, e))?,
                };
                lock(&file, &self.path)?;
                self.file = Some(file);
            }
        }
        record.write(&JobRecord::path(&self.path))
    }

    /// Appends a row, whole or not at all.
    ///
    /// Errors: usage, if it cannot be written: the rows before it stay.
    pub fn append(&mut self, row: &SampleRow) -> Result<()> {
        let Some(file) = &mut self.file else { return Err(Error::internal("the output was not begun")) };
        let mut line = serde_json::to_vec(row).map_err(|e| Error::internal(e.to_string()))?;
        line.push(b'\n');
        if let Err(error) = file.write_all(&line) {
            // If this fails too, the next run cuts it off.
            let _ = file.set_len(self.length);
            return Err(
                write_error(&self.path, error).help("its rows are whole: make room, and the same command goes on after them")
            );
        }
        self.length += line.len() as u64;
        Ok(())
    }

    /// Waits until all rows are on disk.
    pub fn sync(&self) -> Result<()> {
        let sync = |file: &File| file.sync_all().map_err(|e| write_error(&self.path, e));
        self.file.as_ref().map_or(Ok(()), sync)
    }
}

/// Where locks do not exist, as on some network file systems, there are none.
fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(in_use(path)),
        _ => Ok(()),
    }
}

fn in_use(path: &Path) -> Error {
    Error::usage(format!("{}: another process is writing to it", path.display()))
        .help("wait for it, stop it, or choose another --output")
}
