//! Sampling answers, and scoring given ones.
//!
//! `scheduler` decides which tokens a step computes, in which pages (`blocks`) of the cache; `runner` runs steps in their `buffers`; `engine` has both, and `stop` ends samples. `sampler` is a model
//! with its engine. `requests` makes an engine's work of rows of a file, `output` keeps what it finishes, `record` says which job that was.

mod blocks;
mod buffers;
mod engine;
mod inputs;
mod output;
mod record;
mod requests;
mod runner;
mod sampler;
pub mod scheduler;
mod score;
mod sequence;
mod stop;
mod stop_texts;

pub use buffers::Capacity;
pub use engine::{Engine, Finished, Request};
pub use output::{Done, Output, SampleRow};
pub use record::{Fingerprint, JobRecord};
pub use requests::{Asked, Counts, Requests, Shard, sample_key};
pub use runner::{LoadedModel, Settings, StepTimes, Times};
pub use sampler::{Memory, Sampler, Wishes};
pub use scheduler::Stats;
pub use score::Scorer;
pub use stop::{FinishReason, StopRules, repeats};
pub use stop_texts::StopTexts;
