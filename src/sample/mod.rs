//! Generating answers, and scoring given ones.

mod blocks;
mod greedy;
pub mod scheduler;
mod score;
mod sequence;

pub use greedy::{Generated, Greedy, Limits};
pub use score::Scorer;
