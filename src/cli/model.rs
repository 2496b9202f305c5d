//! Opening model folders for commands that do not train.

use crate::config::read_json;
use crate::error::{Error, Result};
use std::path::Path;

/// The system prompt that a model of ours was trained with. None for other models, and where training used none of its own.
pub fn trained_system(folder: &Path) -> Result<Option<String>> {
    let path = folder.join("limo.json");
    if !path.exists() {
        return Ok(None);
    }
    match read_json(&path)?.get("system") {
        None | Some(serde_json::Value::Null) => Ok(None),
        Some(serde_json::Value::String(system)) => Ok(Some(system.clone())),
        Some(other) => Err(Error::data(format!("{}: `system` must be text or null, not {other}", path.display()))),
    }
}
