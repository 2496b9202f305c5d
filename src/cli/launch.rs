//! Launchers of several processes, which this version does not serve.

use crate::comm::launch::{self, Starter};
use crate::error::{Error, Result};

/// Refuses to be one of several processes, which would all do the same work and write the same files, and a `--ranks` that a
/// launcher or this version leaves no choice about.
pub fn require_single_process(ranks: Option<u32>) -> Result<()> {
    let launch = launch::detect(|name| std::env::var(name).ok())?;
    if launch.starter != Starter::Plain && (ranks.is_some() || launch.world > 1) {
        let what = format!("{} started this process as rank {} of {}", launch.starter, launch.rank, launch.world);
        return Err(
            Error::usage(format!("{what}, but this version runs on one rank")).help("start one process, without --ranks")
        );
    }
    match ranks {
        None | Some(1) => Ok(()),
        Some(ranks) => Err(Error::usage(format!("--ranks {ranks}: this version runs on one rank")).help("leave --ranks out")),
    }
}
