//! The folder of a run: whose it is, what it holds already, what may be written.

use super::checkpoint::{Checkpoint, Checkpoints};
use super::tensorboard;
use crate::comm::Comm;
use crate::config::Config;
use crate::error::{Error, Result, io_error, write_error};
use crate::io::{remove_folder, write_atomic};
use crate::tensor::DType;
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What `--resume` asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// Go on where the folder stands.
    Auto,
    /// Start over.
    Never,
    /// Go on from this checkpoint.
    From(PathBuf),
}

/// Where a run begins.
#[derive(Debug)]
pub enum Start {
    /// At step 1. The checkpoints that the folder holds, if any, are of no use, for these reasons.
    Fresh { invalid: Vec<Error> },
    /// After the steps of a checkpoint; newer ones are of no use, for these reasons.
    Continue { checkpoint: Checkpoint, invalid: Vec<Error> },
    /// The run is done already.
    Finished,
}

/// What ranks need to know of a [`Start`].
#[derive(Serialize, Deserialize)]
enum Found {
    Fresh,
    Continue(Checkpoint),
    Finished,
}

impl Start {
    /// What rank 0 found, on every rank. The others believe it that checkpoints are valid.
    pub fn of_rank_0(self, comm: &dyn Comm) -> Result<Start> {
        let found = match &self {
            Start::Fresh { .. } => Found::Fresh,
            Start::Continue { checkpoint, .. } => Found::Continue(checkpoint.clone()),
            Start::Finished => Found::Finished,
        };
        let text = serde_json::to_vec(&found).map_err(|e| Error::internal(e.to_string()))?;
        let said = comm.share(&text)?;
        if comm.rank() == 0 {
            return Ok(self);
        }
        Ok(match serde_json::from_slice(&said[0]).map_err(|e| Error::internal(e.to_string()))? {
            Found::Fresh => Start::Fresh { invalid: Vec::new() },
            Found::Continue(checkpoint) => Start::Continue { checkpoint, invalid: Vec::new() },
            Found::Finished => Start::Finished,
        })
    }

    /// What the run goes on from.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        match self {
            Start::Continue { checkpoint, .. } => Some(checkpoint),
            Start::Fresh { .. } | Start::Finished => None,
        }
    }
}

pub struct RunFolder {
    pub path: PathBuf,
    /// Held from the start of a run to the end of the process.
    lock: Option<File>,
}

const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const GEMM: &str = "gemm.json";
const MODEL: &str = "model";
const CHECKPOINTS: &str = "checkpoints";
const RANKS: &str = "ranks";
/// All that a run writes.
const OURS: [&str; 6] = [CONFIG, METRICS, GEMM, MODEL, CHECKPOINTS, RANKS];
/// What an interrupted write leaves behind.
const LEFTOVERS: [&str; 5] = [".config.toml.tmp", ".metrics.jsonl.tmp", ".gemm.json.tmp", ".model.tmp", ".model.old"];
/// Locked while a run writes to the folder; the file itself stays.
const LOCK: &str = ".lock";
/// The first line of our `config.toml`, by which a folder is known as a run's.
const MARK: &str = "# The resolved configuration of a limo-engine run";
/// Begins its second line: what weights and activations are stored in, which is no key of a configuration.
const STORAGE: &str = "# --dtype ";
/// Keys that may differ between a run and its continuation.
const SAFE_KEYS: [&str; 8] = [
    "data.eval",
    "memory.",
    "output.dir",
    "samples.",
    "train.eval_every",
    "train.keep",
    "train.save_every",
    // What it would change never happened: the run would have ended there.
    "train.skip_nonfinite",
];

impl RunFolder {
    /// Looks at `output.dir` and says where a run with `storage` begins; writes nothing.
    ///
    /// Errors: usage, if the folder holds files of somebody else or something that the run reads; if it holds a run and `resume` is
    /// `Never` without `overwrite`; if what would be continued has another configuration. Checkpoint, if the one asked for is not valid.
    pub fn open(config: &Config, storage: DType, resume: &Resume, overwrite: bool) -> Result<(RunFolder, Start)> {
        Self::open_with(config, storage, resume, overwrite, &|_| {})
    }

    /// The same; `progress` hears of the files of checkpoints as they are verified.
    pub fn open_with(
        config: &Config,
        storage: DType,
        resume: &Resume,
        overwrite: bool,
        progress: &dyn Fn(&str),
    ) -> Result<(RunFolder, Start)> {
        let path = &config.output.dir;
        let folder = RunFolder { path: path.clone(), lock: None };
        if path.exists() {
            if !path.is_dir() {
                return Err(Error::usage(format!("{}: output.dir is not a folder", path.display())));
            }
            folder.refuse_foreign_files()?;
            folder.refuse_inputs(config)?;
        }
        let used = folder.config().exists() && !overwrite;
        let start = match resume {
            Resume::From(checkpoint) => folder.start_from(checkpoint, used, overwrite, config, storage, progress)?,
            Resume::Never if used => {
                return Err(Error::usage(format!("{}: output.dir holds an earlier run", path.display()))
                    .help("--overwrite deletes it and starts over; --resume auto goes on"));
            }
            Resume::Auto if used => folder.start_where_it_stands(config, storage, progress)?,
            Resume::Auto | Resume::Never => Start::Fresh { invalid: Vec::new() },
        };
        Ok((folder, start))
    }

    /// The folder as a rank knows it that does not write to it on its own.
    pub fn of_another_rank(path: PathBuf) -> RunFolder {
        RunFolder { path, lock: None }
    }

    fn start_where_it_stands(&self, config: &Config, storage: DType, progress: &dyn Fn(&str)) -> Result<Start> {
        let continued = |error: Error| {
            let help = "choose another output.dir, or pass --overwrite to delete that run";
            error.context(format!("{}: output.dir holds a run of another configuration", self.path.display())).help(help)
        };
        // The export puts a complete model in place or none.
        if self.model().exists() {
            let text = std::fs::read_to_string(self.config()).map_err(|e| io_error(self.config(), e))?;
            refuse_differences(&text, &self.config(), config, storage).map_err(continued)?;
            return Ok(Start::Finished);
        }
        let (newest, invalid) = self.checkpoints().newest(progress)?;
        let Some(checkpoint) = newest else { return Ok(Start::Fresh { invalid }) };
        refuse_differences(&checkpoint.config()?, &checkpoint.path, config, storage).map_err(continued)?;
        Ok(Start::Continue { checkpoint, invalid })
    }

    fn start_from(
        &self,
        path: &Path,
        used: bool,
        overwrite: bool,
        config: &Config,
        storage: DType,
        progress: &dyn Fn(&str),
    ) -> Result<Start> {
        let shown = path.display();
        if !path.is_dir() {
            return Err(Error::usage(format!("--resume {shown}: no such folder"))
                .help("give auto, never, or the folder of a checkpoint: RUN/checkpoints/step-…"));
        }
        let inside = self.owns(path);
        if inside && overwrite {
            return Err(Error::usage(format!("--overwrite would delete {shown}, which --resume names"))
                .help("leave --overwrite out, or choose another output.dir"));
        }
        let checkpoint = Checkpoint::open(path, progress)?;
        if used && !inside {
            return Err(Error::usage(format!("{}: output.dir holds another run than --resume {shown}", self.path.display()))
                .help("choose a new output.dir; --overwrite deletes that run"));
        }
        refuse_differences(&checkpoint.config()?, path, config, storage).map_err(|error| {
            error
                .context(format!("--resume {shown} has another configuration"))
                .help("continue with the configuration of the checkpoint: its config.toml")
        })?;
        Ok(Start::Continue { checkpoint, invalid: Vec::new() })
    }

    /// Whether `path` is one of this run's checkpoints.
    fn owns(&self, path: &Path) -> bool {
        match (path.canonicalize(), self.path.join(CHECKPOINTS).canonicalize()) {
            (Ok(path), Ok(folder)) => path.parent() == Some(&folder),
            _ => false,
        }
    }

    /// What the folder holds, in no order.
    fn names(&self) -> Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.path).map_err(|e| io_error(&self.path, e))?;
        let name = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.map(|entry| entry.file_name().to_string_lossy().into_owned()).map_err(|e| io_error(&self.path, e))
        };
        entries.map(name).collect()
    }

    fn refuse_foreign_files(&self) -> Result<()> {
        let path = self.path.display();
        let choose = "choose an empty or new folder";
        let names = self.names()?;
        if let Some(foreign) = names.iter().find(|name| !is_ours(name) && *name != LOCK) {
            let what = format!("{path}: output.dir holds {foreign}, which no run of limo-engine wrote");
            return Err(Error::usage(what).help(choose));
        }
        let marked = std::fs::read(self.config()).is_ok_and(|text| text.starts_with(MARK.as_bytes()));
        let kept = names.iter().find(|name| !name.starts_with('.'));
        match kept {
            Some(name) if !marked => {
                let what = format!("{path}: output.dir holds {name}, but no {CONFIG} that a run of limo-engine wrote");
                Err(Error::usage(what).help(choose))
            }
            _ => Ok(()),
        }
    }

    /// A run must not replace what it reads.
    fn refuse_inputs(&self, config: &Config) -> Result<()> {
        let inside = |path: &Path| match (path.canonicalize(), self.path.canonicalize()) {
            (Ok(path), Ok(folder)) => [METRICS, MODEL, CHECKPOINTS].iter().any(|name| path.starts_with(folder.join(name))),
            _ => false,
        };
        let model = &config.model;
        let model_keys = [
            ("model.path", &model.path),
            ("model.config", &model.config),
            ("model.tokenizer", &model.tokenizer),
            ("model.chat_template", &model.chat_template),
            ("samples.file", &config.samples.file),
        ];
        let single = model_keys.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?)));
        let data = [("data.train", &config.data.train), ("data.eval", &config.data.eval)];
        let listed = data.into_iter().flat_map(|(key, paths)| paths.iter().map(move |path| (key, path)));
        match single.chain(listed).find(|(_, path)| inside(path)) {
            Some((key, path)) => Err(Error::usage(format!(
                "{key} = {} lies in output.dir ({}), which this run writes to",
                path.display(),
                self.path.display()
            ))
            .help("set output.dir to another folder")),
            None => Ok(()),
        }
    }

    /// Makes the folder, removes what an earlier run left there, as far as this one does not go on from it, and writes the resolved
    /// configuration.
    ///
    /// Errors: usage, if the folder cannot be written to, or another run writes to it now.
    pub fn begin(&mut self, config: &Config, storage: DType, start: &Start) -> Result<()> {
        std::fs::create_dir_all(&self.path).map_err(|e| write_error(&self.path, e).context("output.dir"))?;
        let path = self.path.join(LOCK);
        let lock = File::create(&path).map_err(|e| write_error(&path, e).context("output.dir"))?;
        if let Err(TryLockError::WouldBlock) = lock.try_lock() {
            return Err(Error::usage(format!("{}: another run is writing to output.dir", self.path.display()))
                .help("wait for it, stop it, or choose another output.dir"));
        }
        self.lock = Some(lock);
        LEFTOVERS.iter().try_for_each(|name| remove(&self.path.join(name)))?;
        match start {
            Start::Continue { checkpoint, .. } if self.owns(&checkpoint.path) => {
                remove_folder(&self.model())?;
                self.checkpoints().keep_up_to(checkpoint.manifest.step)?;
            }
            // The mark of whose folder it is stays until the new one replaces it.
            _ => {
                let mut old = self.names()?.into_iter().filter(|name| is_ours(name) && name != CONFIG);
                old.try_for_each(|name| remove(&self.path.join(name)))?;
            }
        }
        let text = Self::config_text(config, storage);
        write_atomic(&self.config(), |out| out.write_all(text.as_bytes()).map_err(|e| write_error(self.config(), e)))
    }

    /// What the run's config.toml holds.
    pub fn config_text(config: &Config, storage: DType) -> String {
        format!("{MARK}.\n{STORAGE}{storage}\n\n{}", config.to_toml())
    }

    fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }
    pub fn checkpoints(&self) -> Checkpoints {
        Self::checkpoints_of(&self.path)
    }
    /// The checkpoints of the run in `folder`.
    pub fn checkpoints_of(folder: &Path) -> Checkpoints {
        Checkpoints::new(folder.join(CHECKPOINTS))
    }
    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS)
    }
    /// Records what cuBLASLt chose for each product, as a line a product.
    pub fn write_algorithms(&self, algorithms: &[serde_json::Value]) -> Result<()> {
        let path = self.path.join(GEMM);
        let lines: Vec<String> = algorithms.iter().map(|row| format!("  {row}")).collect();
        let text = format!("[\n{}\n]\n", lines.join(",\n"));
        write_atomic(&path, |out| out.write_all(text.as_bytes()).map_err(|e| write_error(&path, e)))
    }
    /// The final model.
    pub fn model(&self) -> PathBuf {
        self.path.join(MODEL)
    }
}

/// Whether a run writes files of that name.
fn is_ours(name: &str) -> bool {
    OURS.contains(&name) || LEFTOVERS.contains(&name) || name.starts_with(tensorboard::PREFIX)
}

/// A run goes on with its own configuration, but for keys that do not matter to it. `text` is that of the config.toml that it had.
fn refuse_differences(text: &str, path: &Path, config: &Config, storage: DType) -> Result<()> {
    let read = |text: &str| text.parse::<toml::Table>().map(|table| flatten("", &table));
    let before = read(text).map_err(|e| Error::usage(format!("{}: {e}", path.display())))?;
    let now = read(&config.to_toml()).map_err(|e| Error::internal(e.to_string()))?;
    let value = |of: &[(String, String)], key: &str| of.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let keys: std::collections::BTreeSet<&String> = before.iter().chain(&now).map(|(key, _)| key).collect();
    let mut differences = Vec::new();
    let stored = text.lines().find_map(|line| line.strip_prefix(STORAGE));
    if let Some(stored) = stored.filter(|stored| *stored != storage.to_string()) {
        differences.push(format!("--dtype was {stored}, is {storage}"));
    }
    for key in keys.into_iter().filter(|key| !SAFE_KEYS.iter().any(|safe| key.starts_with(safe))) {
        let [was, is] = [&before, &now].map(|of| value(of, key).unwrap_or_else(|| "unset".into()));
        if was != is {
            differences.push(format!("{key} was {was}, is {is}"));
        }
    }
    if differences.is_empty() { Ok(()) } else { Err(Error::usage(differences.join("; "))) }
}

/// Removes a file or a folder; none there is fine.
fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(write_error(path, error)),
        _ => Ok(()),
    }
}

/// Every leaf of a table as (dotted key, value).
fn flatten(prefix: &str, table: &toml::Table) -> Vec<(String, String)> {
    let leaf = |(key, value): (&String, &toml::Value)| match value {
        toml::Value::Table(inner) => flatten(&format!("{prefix}{key}."), inner),
        value => vec![(format!("{prefix}{key}"), value.to_string())],
    };
    table.iter().flat_map(leaf).collect()
}
