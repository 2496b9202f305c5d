//! Whether a job fits, before it reserves anything.

use crate::error::{Error, Result};
use crate::tensor::format_bytes;

/// Refuses a job that needs more host memory than there is; `help` says what would make it smaller.
pub fn require_host_memory(needed: usize, help: &str) -> Result<()> {
    match available_host_memory() {
        Some(available) if needed > available => Err(Error::does_not_fit(format!(
            "this needs {} of memory, {} are available",
            format_bytes(needed),
            format_bytes(available)
        ))
        .help(help)),
        _ => Ok(()),
    }
}

/// Bytes that this process can still allocate without swapping: what the kernel estimates for the machine, or what is left of the
/// container's limit, whichever is less. None where neither is known.
pub fn available_host_memory() -> Option<usize> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kib| kib << 10)
    });
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<usize>().ok();
    let container = read("memory.max").zip(read("memory.current")).map(|(most, used)| most.saturating_sub(used));
    machine.into_iter().chain(container).min()
}
