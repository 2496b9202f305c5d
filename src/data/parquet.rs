//! Rows of parquet files as JSON objects, nested columns included.

use super::row_file::{Fault, Object};
use super::tokenizer::contain;
use parquet::file::reader::{FileReader, SerializedFileReader};
use serde_json::Value;
use std::fs::File;
use std::path::Path;

/// Reads every row. A damaged file is an error, where the crate panics too.
pub(super) fn objects(path: &Path) -> Result<Vec<Object>, Fault> {
    let read = || {
        let broken = |row: usize, error: String| (row, format!("broken parquet: {error}"));
        let file = File::open(path).map_err(|error| broken(1, error.to_string()))?;
        let reader = SerializedFileReader::new(file).map_err(|error| broken(1, error.to_string()))?;
        let rows = reader.get_row_iter(None).map_err(|error| broken(1, error.to_string()))?;
        let mut objects = Vec::new();
        for (index, row) in rows.enumerate() {
            match row.map_err(|error| broken(index + 1, error.to_string()))?.to_json_value() {
                Value::Object(object) => objects.push((index + 1, object)),
                _ => return Err(broken(index + 1, "a row is no object".into())),
            }
        }
        match objects.is_empty() {
            true => Err((1, "the file has no rows".to_string())),
            false => Ok(objects),
        }
    };
    contain(|| Ok(read())).unwrap_or_else(|panic| Err((1, format!("broken parquet: {panic}"))))
}
