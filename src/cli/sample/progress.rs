//! Progress of a sampling job: a bar on a terminal, a line every few seconds where the output goes elsewhere.

use crate::cli::progress::clock;
use crate::cli::say;
use crate::cli::terminal::visible;
use crate::error::Result;
use crate::sample::{Counts, Shard, Stats};
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

pub struct Progress {
    bar: Option<ProgressBar>,
    shard: Shard,
    began: Instant,
    shown: Instant,
    /// Tokens when `shown`.
    tokens: u64,
    reported: Cell<usize>,
}

impl Progress {
    pub fn new(shard: Shard) -> Progress {
        let terminal = std::io::stderr().is_terminal() && std::io::stdout().is_terminal();
        let bar = terminal.then(|| {
            let style = ProgressStyle::with_template("{bar:24} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(0).with_style(style)
        });
        let now = Instant::now();
        Progress { bar, shard, began: now, shown: now, tokens: 0, reported: Cell::new(0) }
    }

    /// From here on time and tokens are counted.
    pub fn begin(&mut self) {
        (self.began, self.shown) = (Instant::now(), Instant::now());
    }

    /// How far the engine is. `total`: samples of the whole job, where that is known.
    pub fn show(&mut self, stats: &Stats, counts: &Counts, total: Option<usize>) -> Result<()> {
        const LINES: Duration = Duration::from_secs(10);
        const BAR: Duration = Duration::from_millis(500);
        let since = self.shown.elapsed();
        if since < if self.bar.is_some() { BAR } else { LINES } {
            return Ok(());
        }
        let rate = (stats.drawn - self.tokens) as f64 / since.as_secs_f64();
        (self.shown, self.tokens) = (Instant::now(), stats.drawn);
        let done = counts.kept + counts.finished;
        let left = total.filter(|_| counts.finished > 0).map(|total| {
            let each = self.began.elapsed().as_secs_f64() / counts.finished as f64;
            format!(", ETA {}", clock(each * total.saturating_sub(done) as f64))
        });
        let line = format!(
            "{done}/{} samples, {rate:.0} tokens/s, {} running, {} waiting, KV {:.0} %, {} preemptions{}",
            total.map_or("?".to_string(), |total| total.to_string()),
            stats.running,
            stats.preempted + stats.waiting,
            100.0 * stats.used as f64 / stats.pages as f64,
            stats.preemptions,
            left.unwrap_or_default()
        );
        match &self.bar {
            None => self.line(&line),
            Some(bar) => {
                bar.set_length(total.unwrap_or(done) as u64);
                bar.set_position(done as u64);
                bar.set_message(line);
                Ok(())
            }
        }
    }

    /// To standard output; of one of several processes with its shard.
    pub fn line(&self, line: &str) -> Result<()> {
        match self.shard {
            Shard::ALL => say!("{}", visible(line)),
            shard => say!("shard {shard}: {}", visible(line)),
        }
    }

    /// To standard error, above the bar. That it is closed stops nothing. A file that has no rows at all must not flood it.
    pub fn report(&self, line: &str) {
        const MOST: usize = 1000;
        let reported = self.reported.replace(self.reported.get() + 1);
        let more = (reported == MOST).then_some("more rows are left out, and counted, but no longer told");
        let Some(line) = more.or((reported < MOST).then_some(line)) else { return };
        let write = || {
            let _ = writeln!(std::io::stderr(), "{}", visible(line));
        };
        match &self.bar {
            None => write(),
            Some(bar) => bar.suspend(write),
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish();
        }
    }

    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}
