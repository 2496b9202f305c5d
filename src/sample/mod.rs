//! Generating answers, and scoring given ones.

mod greedy;
mod score;

pub use greedy::{Generated, Greedy, Limits};
pub use score::Scorer;
