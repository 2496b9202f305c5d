//! Sampling answers, and scoring given ones.
//!
//! `scheduler` decides which tokens a step computes, in which pages (`blocks`) of the cache; `engine` runs the steps; `stop` ends samples. `sampler` is a model
//! with its engine. `requests` makes an engine's work of rows of a file, `output` keeps what it finishes, `record` says which job that was.

mod blocks;
mod engine;
mod inputs;
mod output;
mod record;
mod requests;
mod sampler;
pub mod scheduler;
mod score;
mod sequence;
mod stop;
mod stop_texts;

pub use engine::{Capacity, Engine, Finished, Request, Settings};
pub use output::{Done, Output, SampleRow};
pub use record::{Fingerprint, JobRecord};
pub use requests::{Asked, Counts, Requests, Shard, sample_key};
pub use sampler::{Memory, Sampler, Wishes};
pub use scheduler::Stats;
pub use score::Scorer;
pub use stop::{FinishReason, StopRules, repeats};
pub use stop_texts::StopTexts;
