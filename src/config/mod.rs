//! What a run is configured by.

mod model;

pub use model::ModelConfig;
