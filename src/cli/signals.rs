//! SIGINT and SIGTERM: the first asks the command to stop in good order, a second one ends it at once.

use crate::error::{Error, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The signals received since [`Signals::catch`].
pub struct Signals {
    /// The last signal's number; 0 before the first.
    received: Arc<AtomicUsize>,
}

impl Signals {
    /// From now on the first signal no longer ends the process; [`Signals::check`] tells of it.
    pub fn catch() -> Result<Signals> {
        let (received, again) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let register = |signal: i32| {
            // Handlers run in this order: the first signal passes the exit and arms it for the second.
            flag::register_conditional_shutdown(signal, 128 + signal, again.clone())?;
            flag::register(signal, again.clone())?;
            flag::register_usize(signal, received.clone(), signal as usize)
        };
        for signal in [SIGINT, SIGTERM] {
            register(signal).map_err(|e| Error::internal(format!("signal {signal} cannot be caught: {e}")))?;
        }
        Ok(Signals { received })
    }

    /// An error of kind `Stopped` once a signal came.
    pub fn check(&self) -> Result<()> {
        match self.received.load(Ordering::Relaxed) as i32 {
            0 => Ok(()),
            SIGINT => Err(Error::stopped("stopped by SIGINT")),
            _ => Err(Error::stopped("stopped by SIGTERM")),
        }
    }
}
