//! From pools of problems to a few hundred reasoning chains.

pub mod chain_score;
pub mod levels;
pub mod rubric;
pub mod selection;
mod words;
