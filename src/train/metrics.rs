//! metrics.jsonl: one object a step, one an evaluation, each written through as it happens; TensorBoard's file beside it has the same numbers.

use super::tensorboard::Events;
use crate::error::{Result, io_error, write_error};
use crate::io::write_atomic;
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// One optimizer step.
#[derive(Debug, Clone, Serialize)]
pub struct StepRecord {
    /// From 1.
    pub step: usize,
    /// Epochs trained after this step.
    pub epoch: f64,
    /// Before the update, normalised as configured. Absent from the row if it is not finite, which only a skipped step can have.
    #[serde(skip_serializing_if = "is_not_finite")]
    pub loss: f64,
    /// Before clipping. Absent like the loss.
    #[serde(skip_serializing_if = "is_not_finite")]
    pub grad_norm: f64,
    /// Nothing was updated, because loss or norm is not finite.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Used by this update; the first step of a warm-up has 0.
    pub lr: f64,
    pub tokens: usize,
    pub supervised_tokens: usize,
    pub tokens_per_s: f64,
    /// The share of the GPU's peak that the step's arithmetic is, recomputation not counted; on GPUs whose peak is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Bytes reserved on the device.
    pub memory: usize,
    /// Duration of the step.
    pub seconds: f64,
}

/// JSON has no NaN.
fn is_not_finite(value: &f64) -> bool {
    !value.is_finite()
}

/// One pass over the evaluation rows.
#[derive(Debug, Clone, Serialize)]
pub struct EvalRecord {
    /// Updates done before.
    pub step: usize,
    pub epoch: f64,
    /// Mean over all supervised tokens.
    pub eval_loss: f64,
    pub tokens: usize,
    pub supervised_tokens: usize,
}

pub struct Metrics {
    path: PathBuf,
    file: File,
    events: Events,
    /// The step of the newest evaluation.
    evaluated: Option<usize>,
}

impl Metrics {
    /// Goes on after `step` steps: rows of later ones, which are trained again, and a torn last line are cut off.
    pub fn create(path: &Path, step: usize) -> Result<Self> {
        #[derive(Deserialize)]
        struct Row {
            step: usize,
            eval_loss: Option<f64>,
        }
        let mut kept = String::new();
        let mut evaluated = None;
        if step > 0 && path.exists() {
            let text = std::fs::read(path).map_err(|e| io_error(path, e))?;
            for line in String::from_utf8_lossy(&text).lines() {
                if let Ok(row) = serde_json::from_str::<Row>(line)
                    && row.step <= step
                {
                    evaluated = row.eval_loss.map(|_| row.step).or(evaluated);
                    kept.push_str(line);
                    kept.push('\n');
                }
            }
        }
        write_atomic(path, |out| out.write_all(kept.as_bytes()).map_err(|e| write_error(path, e)))?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| write_error(path, e))?;
        let events = Events::create(path.parent().unwrap_or(Path::new(".")), step + 1)?;
        Ok(Metrics { path: path.to_path_buf(), file, events, evaluated })
    }

    pub fn step(&mut self, record: &StepRecord) -> Result<()> {
        self.events.step(record)?;
        self.write(record)
    }

    pub fn evaluation(&mut self, record: &EvalRecord) -> Result<()> {
        self.evaluated = Some(record.step);
        self.events.evaluation(record)?;
        self.write(record)
    }

    /// Whether the newest evaluation is that after `step` steps.
    pub fn evaluated(&self, step: usize) -> bool {
        self.evaluated == Some(step)
    }

    /// Waits until all rows are on disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|e| write_error(&self.path, e))
    }

    fn write(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(record).map_err(|e| write_error(&self.path, e.into()))?;
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(|e| write_error(&self.path, e))
    }
}
