//! Timing with events: batches of launches in a row over rotating operands, the median batch counts.

use crate::device::Launcher;
use crate::error::{Error, Result};

const WARM_UP_MS: f64 = 50.0;
/// A batch is long against the resolution of an event and the gap between launches.
const BATCH_MS: f64 = 2.0;
const BATCHES: usize = 51;
/// All batches together, at most: a naive kernel may take seconds a launch, and is then timed once.
const BUDGET_MS: f64 = 1000.0;
const MOST_LAUNCHES: usize = 1000;

/// Milliseconds of one launch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    pub median: f64,
    /// The 10th and 90th percentile of the batches.
    pub spread: [f64; 2],
    /// Launches timed.
    pub launches: usize,
}

/// Times `issue(i)`, which issues the i-th launch.
pub fn time(launcher: &dyn Launcher, mut issue: impl FnMut(usize) -> Result<()>) -> Result<Timing> {
    let mut issued = 0;
    let mut batch = |launches: usize| -> Result<f64> {
        let start = launcher.mark()?;
        for _ in 0..launches {
            issue(issued)?;
            issued += 1;
        }
        launcher.mark()?.milliseconds_since(&*start).map(|ms| ms / launches as f64)
    };
    // Doubling batches until one fills the warm-up; its rate sets the size of those that count.
    let mut launches = 1;
    let estimate = loop {
        let each = batch(launches)?;
        if each * launches as f64 >= WARM_UP_MS || launches >= MOST_LAUNCHES * 16 {
            break each;
        }
        launches *= 2;
    };
    let launches = ((BATCH_MS / estimate.max(1e-6)).ceil() as usize).clamp(1, MOST_LAUNCHES);
    let batches = ((BUDGET_MS / (estimate * launches as f64)) as usize).clamp(1, BATCHES);
    let mut times = (0..batches).map(|_| batch(launches)).collect::<Result<Vec<f64>>>()?;
    if !times.iter().all(|&ms| ms > 0.0) {
        return Err(Error::internal("the clock of the device stood still while it was timed"));
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((batches - 1) as f64 * share).round() as usize];
    Ok(Timing { median: at(0.5), spread: [at(0.1), at(0.9)], launches: batches * launches })
}
