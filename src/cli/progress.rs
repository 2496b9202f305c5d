//! Progress of a run: a bar on a terminal, a line a step where the output goes elsewhere.

use super::say;
use crate::error::Result;
use crate::tensor::format_bytes;
use crate::train::{EvalRecord, StepRecord, Steps};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

pub struct Progress {
    bar: Option<ProgressBar>,
    /// Steps of this process, and seconds in them.
    steps: usize,
    spent: f64,
}

impl Progress {
    pub fn new(steps: Steps) -> Self {
        let terminal = std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        let bar = terminal.then(|| {
            let style = ProgressStyle::with_template("{bar:24} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(steps.total as u64).with_style(style)
        });
        Progress { bar, steps: 0, spent: 0.0 }
    }

    pub fn step(&mut self, record: &StepRecord, steps: Steps) -> Result<()> {
        self.steps += 1;
        self.spent += record.seconds;
        let left = self.spent / self.steps as f64 * (steps.total - record.step) as f64;
        let line = format!(
            "step {}/{} epoch {:.2} loss {:.4} norm {:.3} lr {:.2e} {:.0} tokens/s{} {} ETA {}",
            record.step,
            steps.total,
            record.epoch,
            record.loss,
            record.grad_norm,
            record.lr,
            record.tokens_per_s,
            record.mfu.map_or(String::new(), |mfu| format!(" {:.0} % MFU", 100.0 * mfu)),
            format_bytes(record.memory),
            clock(left)
        );
        match &self.bar {
            None => say!("{line}"),
            Some(bar) => {
                bar.set_message(line);
                bar.set_position(record.step as u64);
                Ok(())
            }
        }
    }

    pub fn evaluation(&self, record: &EvalRecord) -> Result<()> {
        self.line(&format!("step {} eval loss {:.4} over {} tokens", record.step, record.eval_loss, record.supervised_tokens))
    }

    /// Prints above the bar.
    pub fn line(&self, line: &str) -> Result<()> {
        match &self.bar {
            None => say!("{line}"),
            Some(bar) => bar.suspend(|| say!("{line}")),
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }
}

/// "1:02:03" or "2:03".
pub fn clock(seconds: f64) -> String {
    let seconds = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}
