//! Writes configs/tiny: an arithmetic data set with a held-out part, its tokenizer, and the shape of a small model.
//!
//!     cargo run --release --example make_tiny_task
//!
//! Every byte follows from the seed in `task.rs`.

mod problems;
mod task;

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/tiny");
    std::fs::create_dir_all(&folder)?;
    for (name, bytes) in task::files()? {
        std::fs::write(folder.join(name), &bytes)?;
        println!("{name}: {} bytes", bytes.len());
    }
    Ok(())
}
