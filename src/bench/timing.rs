//! Timing with events: batches of launches in a row over rotating operands, the median batch counts.

use crate::device::Launcher;
use crate::error::{Error, Result};

/// Operands of one benchmark span at least this many bytes, several times any last-level cache, so that no launch finds its
/// input there.
pub const ROTATION_BYTES: usize = 180 << 20;

const WARM_UP_MS: f64 = 50.0;
/// A batch is long against the resolution of an event and the gap between launches.
const BATCH_MS: f64 = 2.0;
const BATCHES: usize = 51;
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

/// How many sets of operands of `bytes` each to rotate through.
pub fn rotation(bytes: usize) -> usize {
    ROTATION_BYTES.div_ceil(bytes.max(1)).max(2)
}

/// Times `issue(i)`, which issues the i-th launch on operand set i modulo the rotation.
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
    let mut times = (0..BATCHES).map(|_| batch(launches)).collect::<Result<Vec<f64>>>()?;
    if !times.iter().all(|&ms| ms > 0.0) {
        return Err(Error::internal("the clock of the device stood still while it was timed"));
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((BATCHES - 1) as f64 * share).round() as usize];
    Ok(Timing { median: at(0.5), spread: [at(0.1), at(0.9)], launches: BATCHES * launches })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_rotate_over_more_than_the_cache() {
        for bytes in [1, 1 << 20, 100 << 20, 1 << 30] {
            let sets = rotation(bytes);
            assert!(sets >= 2 && sets * bytes >= ROTATION_BYTES, "{sets} sets of {bytes} bytes");
        }
    }
}
