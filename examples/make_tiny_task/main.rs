//! Writes configs/tiny: an arithmetic data set with a held-out part, its tokenizer, and the shape of a small model.
//!
//!     cargo run --release --example make_tiny_task
//!
//! Every byte follows from the constants in `task.rs`.

mod problem;
mod random;
mod stories;
pub mod task;
mod tokenizer;

fn main() -> Result<(), task::Failure> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tiny");
    std::fs::create_dir_all(&folder)?;
    for (name, bytes) in task::files()? {
        std::fs::write(folder.join(name), &bytes)?;
        println!("{name}: {} bytes", bytes.len());
    }
    Ok(())
}
