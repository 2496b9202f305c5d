//! Generating answers.

mod greedy;

pub use greedy::{Generated, Greedy};
