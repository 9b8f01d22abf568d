//! What the machine says of itself: memory, for budgets and reports. Zero or `None` where the system does not tell.

/// Highest resident memory of this process so far, in bytes (Linux: `VmHWM`); 0 where unknown.
#[must_use]
pub fn peak_memory_bytes() -> u64 {
    kibibytes("/proc/self/status", "VmHWM:").unwrap_or(0)
}

/// Memory that can be had without swapping, in bytes (Linux: `MemAvailable`).
#[must_use]
pub fn available_memory_bytes() -> Option<u64> {
    kibibytes("/proc/meminfo", "MemAvailable:")
}

fn kibibytes(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
