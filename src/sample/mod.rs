//! Sampling answers, and scoring given ones.
//!
//! `scheduler` decides which tokens a step computes, in which pages (`blocks`) of the cache; `engine` runs the steps; `stop` ends samples.

mod blocks;
mod engine;
mod inputs;
pub mod scheduler;
mod score;
mod sequence;
mod stop;

pub use engine::{Capacity, Engine, Finished, Request, Settings};
pub use scheduler::Stats;
pub use score::Scorer;
pub use stop::{FinishReason, StopRules, repeats};
