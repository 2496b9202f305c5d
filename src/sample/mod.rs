//! Generating answers, and scoring given ones.

mod greedy;
mod score;

pub use greedy::{Generated, Greedy};
pub use score::Scorer;
