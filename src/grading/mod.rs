//! Judging answers: where the answer of a response is, whether it equals the gold answer, and statistics over samples.

mod extract;
mod gold;
pub mod limo;
mod statistics;
pub mod strict;

pub use extract::{Extraction, boxed_answer, extract};
pub use gold::{Answer, Gold, Mode, same_answer};
pub use statistics::{Estimate, Votes, majority_at_k, mean_with_interval, pass_at_k, votes};
