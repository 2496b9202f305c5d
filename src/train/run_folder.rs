//! The folder of a run: whose it is, what it holds already, what may be written.

use crate::error::{Error, Result, io_error};
use std::path::{Path, PathBuf};

/// What `--resume` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Go on where the folder stands.
    Auto,
    /// Start over.
    Never,
}

/// Where a run begins.
#[derive(Debug, PartialEq, Eq)]
pub enum Start {
    /// At step 1.
    Fresh,
    /// The run is done already.
    Finished,
}

pub struct RunFolder {
    pub path: PathBuf,
}

/// The resolved configuration, which marks a folder as a run's.
const CONFIG: &str = "config.toml";
const METRICS: &str = "metrics.jsonl";
const MODEL: &str = "model";
const OURS: [&str; 3] = [CONFIG, METRICS, MODEL];

impl RunFolder {
    /// Makes the folder, or takes over the one that is there.
    ///
    /// Errors: usage, if it holds files of somebody else, or a used run and neither `--resume auto` nor `--overwrite`.
    pub fn open(path: &Path, resume: Resume, overwrite: bool) -> Result<(RunFolder, Start)> {
        let folder = RunFolder { path: path.to_path_buf() };
        if path.exists() && !path.is_dir() {
            return Err(Error::usage(format!("{}: output.dir is not a folder", path.display())));
        }
        std::fs::create_dir_all(path).map_err(|e| cannot_write(path, e))?;
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path).map_err(|e| io_error(path, e))? {
            names.push(entry.map_err(|e| io_error(path, e))?.file_name().to_string_lossy().into_owned());
        }
        // What an interrupted export left behind is ours too.
        let ours = |name: &str| OURS.contains(&name) || name.starts_with(".model.") || name.starts_with("model.");
        if let Some(foreign) = names.iter().find(|name| !ours(name)) {
            return Err(Error::usage(format!(
                "{}: output.dir holds {foreign}, which no run of limo-engine wrote",
                path.display()
            ))
            .help("choose an empty or new folder"));
        }
        if names.is_empty() {
            return Ok((folder, Start::Fresh));
        }
        if !names.iter().any(|name| name == CONFIG) {
            return Err(Error::usage(format!("{}: output.dir holds {} but no {CONFIG}", path.display(), names.join(", ")))
                .help("choose an empty or new folder"));
        }
        if overwrite {
            folder.clear()?;
            return Ok((folder, Start::Fresh));
        }
        match resume {
            Resume::Never => Err(Error::usage(format!("{}: output.dir holds an earlier run", path.display()))
                .help("--overwrite deletes it and starts over; --resume auto goes on")),
            Resume::Auto if folder.model().join("limo.json").exists() => Ok((folder, Start::Finished)),
            Resume::Auto => Ok((folder, Start::Fresh)),
        }
    }

    fn clear(&self) -> Result<()> {
        for path in [self.model(), self.metrics(), self.config()] {
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(cannot_write(&path, error)),
                _ => {}
            }
        }
        Ok(())
    }

    pub fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }
    pub fn metrics(&self) -> PathBuf {
        self.path.join(METRICS)
    }
    /// The final model.
    pub fn model(&self) -> PathBuf {
        self.path.join(MODEL)
    }
}

fn cannot_write(path: &Path, error: std::io::Error) -> Error {
    Error::usage(format!("{}: cannot be written: {error}", path.display()))
        .help("set output.dir to a folder that you can write to")
}
