//! Dtypes, shapes, memory, and tensors cut from an arena that keeps a ledger by name.

mod arena;
mod dtype;
mod memory;
mod shape;
mod view;

pub use arena::{Arena, Arenas, Ledger, LedgerEntry, Ledgers};
pub use dtype::DType;
pub use memory::{Allocator, HostAllocator, LazyAllocator, PinnedAllocator, Region, Space};
pub use shape::Shape;
pub use view::{Tensor, View, ViewMut};

/// A byte count for people: "12.3 MiB".
pub fn format_bytes(bytes: usize) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
