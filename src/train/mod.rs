//! Training: the engine of one optimizer step, schedules, the run over epochs, its folder.

mod checkpoint;
mod engine;
mod estimate;
mod metrics;
mod plan;
mod run;
mod run_folder;
mod schedule;
mod tensorboard;

pub use checkpoint::{Checkpoint, Checkpoints, Manifest, digest};
pub use engine::{Apply, Engine, Loss, Sizes, State};
pub use estimate::{Times, Work, times};
pub use metrics::{EvalRecord, StepRecord};
pub use plan::{Budget, Candidate, Demand, Plan, RECOMPUTE, most_packed};
pub use run::{Job, Observer, Outcome, measure, train};
pub use run_folder::{Resume, RunFolder, Start};
pub use schedule::Steps;
