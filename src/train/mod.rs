//! Training: the engine of one optimizer step, schedules, the run over epochs, its folder.

mod checkpoint;
mod engine;
mod metrics;
mod plan;
mod run;
mod run_folder;
mod schedule;
mod tensorboard;

pub use checkpoint::{Checkpoint, Checkpoints, Manifest, bytes as checkpoint_bytes, digest};
pub use engine::{Apply, Engine, Loss, Sizes, State};
pub use metrics::{EvalRecord, StepRecord};
pub use plan::{Budget, Demand, Plan, RECOMPUTE};
pub use run::{Job, Observer, Outcome, train};
pub use run_folder::{Resume, RunFolder, Start};
pub use schedule::Steps;
