//! From a pool of problems to the few hundred chains that are trained on: pure functions over rows and texts, behind the companion tools.

pub mod chain_score;
mod choice;
pub mod decontaminate;
pub mod dedupe;
pub mod difficulty;
pub mod fields;
pub mod normalise;
pub mod pool;
pub mod ranks;
pub mod rubric;
pub mod selection;
mod stretch;
mod words;
