//! `limo-engine inspect checkpoint`: where a run stood when it was saved, and whether every file is still what was written.

use super::say;
use crate::error::{Error, Kind, Result};
use crate::io::TensorFiles;
use crate::tensor::format_bytes;
use crate::train::{Checkpoint, RunFolder};
use std::path::PathBuf;

/// Verify a checkpoint, or every checkpoint of a run
///
/// Every file is read and compared with its hash. A checkpoint is a model folder too: `inspect model` and `score` read it.
///
/// Example: limo-engine inspect checkpoint runs/tiny
#[derive(clap::Args)]
pub struct CheckpointArgs {
    /// The folder of a checkpoint (RUN/checkpoints/step-…), or of a run
    dir: PathBuf,
}

pub fn run(args: CheckpointArgs) -> Result<()> {
    if !args.dir.is_dir() {
        return Err(Error::usage(format!("{}: no such folder", args.dir.display()))
            .help("give the folder of a run, or one of its checkpoints: RUN/checkpoints/step-…"));
    }
    let checkpoints = RunFolder::checkpoints_of(&args.dir);
    let steps = checkpoints.steps()?;
    if steps.is_empty() {
        return describe(&Checkpoint::open(&args.dir, &|_| {})?);
    }
    let mut invalid = 0;
    for &step in &steps {
        match checkpoints.open(step, &|_| {}) {
            Ok(checkpoint) => describe(&checkpoint)?,
            Err(error) => {
                invalid += 1;
                say!("{}: NOT VALID: {}", checkpoints.path(step).display(), error.message)?;
            }
        }
    }
    match invalid {
        0 => Ok(()),
        n => Err(Error::new(Kind::Checkpoint, format!("{n} of {} checkpoints are not valid", steps.len()))
            .help("`train` goes on from the newest that is valid")),
    }
}

fn describe(checkpoint: &Checkpoint) -> Result<()> {
    let manifest = &checkpoint.manifest;
    let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
    let shown = checkpoint.path.display();
    say!("{shown}: valid, {} files, {}", manifest.files.len(), format_bytes(bytes as usize))?;
    let skipped = match manifest.step as u64 - manifest.updates.min(manifest.step as u64) {
        0 => String::new(),
        n => format!(", {n} of them skipped"),
    };
    say!("  after step {}{skipped}, written by limo-engine {}", manifest.step, manifest.version)?;
    let weights = Vec::from_iter(TensorFiles::open(&checkpoint.path)?.types()).join(", ");
    say!("  weights {weights}, optimizer {}", checkpoint.optimizer_types()?.join(", "))
}
