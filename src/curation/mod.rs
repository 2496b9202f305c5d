//! From a pool of problems to the few hundred that are trained on: pure functions over rows and texts, behind the companion tools.

pub mod decontaminate;
pub mod dedupe;
pub mod difficulty;
pub mod normalise;
pub mod pool;
