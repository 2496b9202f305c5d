//! What a run is configured by: a TOML file with `-s key=value` on top, and the `config.json` of the model it trains.
//!
//! `schema` holds every key with its default and its range, `reader` is the strict reader behind it, `model` the architecture,
//! `hub` the local Hugging Face cache. docs/config.md is the reference for users.

mod hub;
mod model;
mod reader;
mod schema;

pub use hub::resolve as resolve_model;
pub use model::{ModelConfig, read_json};
pub use schema::{
    Config, DataConfig, Every, FieldNames, GradientDtype, MasterWeights, MemoryConfig, ModelSource, Normalize, Offload,
    OptimizerConfig, OutputConfig, OutputDtype, Overlong, Recompute, SamplesConfig, Schedule, StateDtype, TrainConfig,
};
