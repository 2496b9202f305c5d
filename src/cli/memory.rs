//! Whether a job fits, before it reserves anything.

use crate::error::{Error, Result};
use crate::ops::Ops;
use crate::tensor::format_bytes;
use crate::train::Budget;

/// glibc would keep what was freed in up to eight heaps a core, which no plan knows of; the large buffers are not in them anyway.
pub fn keep_few_arenas() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: a setting of the allocator, made before there are threads.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// What each of the ranks may reserve that share this machine and this device.
pub fn budget(ops: &dyn Ops, on_machine: usize, on_device: usize) -> Result<Budget> {
    let host = available_host_memory().map_or(usize::MAX, |bytes| bytes / on_machine);
    Ok(match ops.free_memory()? {
        Some(device) => Budget::Two { device: device / on_device, host },
        None => Budget::One(host),
    })
}

/// Bytes that the tensors of a backend may take; none where that is not known.
pub fn available_memory(ops: &dyn Ops) -> Result<Option<usize>> {
    Ok(ops.free_memory()?.or_else(available_host_memory))
}

/// Bytes of this process that are in memory now, and the most that ever were; none where the system does not tell.
pub fn resident() -> Option<(usize, usize)> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kib| kib << 10)
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

/// The error of a job that needs more.
pub fn does_not_fit(ops: &dyn Ops, needed: usize, available: usize) -> Error {
    let [wanted, there] = [needed, available].map(format_bytes);
    Error::does_not_fit(format!("this needs {wanted} of memory ({needed} bytes), {there} are available on {}", ops.device()))
}

/// Bytes that this process can still allocate without swapping: what the kernel estimates for the machine, or what is left of the
/// container's limit, whichever is less. None where neither is known.
fn available_host_memory() -> Option<usize> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok().map(|kib| kib << 10)
    });
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<usize>().ok();
    let container = read("memory.max").zip(read("memory.current")).map(|(most, used)| most.saturating_sub(used));
    machine.into_iter().chain(container).min()
}

/// "139GiB", "64 MiB", "1e9", "512": a number with a unit of 1024 steps (KiB …) or 1000 steps (KB …).
pub fn bytes(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic() && c != 'e' && c != 'E').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim() {
        "" | "B" => 1.0,
        "KiB" => 1024.0,
        "MiB" => 1048576.0,
        "GiB" => 1073741824.0,
        "TiB" => 1099511627776.0,
        "KB" | "kB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        other => return Err(format!("unit {other:?}: known are B, KiB, MiB, GiB, TiB, KB, MB, GB, TB")),
    };
    let number: f64 = number.trim().parse().map_err(|_| format!("{text:?} is not a number of bytes, as 139GiB is"))?;
    let bytes = number * factor;
    if !(1.0..=isize::MAX as f64).contains(&bytes) {
        return Err(format!("{text:?} is not between 1 byte and the address space"));
    }
    Ok(bytes as usize)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_with_units() {
        for (text, expected) in
            [("139GiB", 139 << 30), ("64 MiB", 64 << 20), ("1.5KiB", 1536), ("2GB", 2_000_000_000), ("512", 512)]
        {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "GiB", "-1GiB", "0", "12 XB", "nan", "inf", "1e40", "1 2 GiB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
