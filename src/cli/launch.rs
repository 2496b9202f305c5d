//! Which ranks a command has.

use crate::comm::launch::{self, Starter};
use crate::error::{Error, Result};

/// Where the ranks of a run are.
pub enum Ranks {
    /// All in this process.
    Threads(usize),
}

impl Ranks {
    /// Under a launcher it decides; else `--ranks`.
    pub fn detect(ranks: Option<u32>) -> Result<Ranks> {
        require_single_process()?;
        Ok(Ranks::Threads(ranks.unwrap_or(1) as usize))
    }
}

/// Refuses to be one of several processes, which would all do the same work and write the same files.
pub fn require_single_process() -> Result<()> {
    let launch = launch::detect(|name| std::env::var(name).ok())?;
    if launch.starter == Starter::Plain || launch.world == 1 {
        return Ok(());
    }
    let what = format!("{} started this process as rank {} of {}", launch.starter, launch.rank, launch.world);
    Err(Error::usage(format!("{what}, but this command runs in one process")).help("start one process"))
}
