//! Ctrl-C and SIGTERM. The first raises a flag that tasks look at between units of work; a second one ends the process at
//! once with code 130.
//!
//! A signal that the parent had ignored stays ignored: a shell script's background job is not stopped by the Ctrl-C meant
//! for another. SIGHUP is left alone, so `nohup` works.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Installs the handlers; `first` is called once, on a thread of its own, after the first signal.
/// Where the system refuses, signals keep their usual effect.
#[cfg(unix)]
pub(crate) fn install(first: impl FnOnce() + Send + 'static) -> Arc<AtomicBool> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let stopped = Arc::new(AtomicBool::new(false));
    let ignored = ignored_mask();
    let heeded: Vec<i32> = [SIGINT, SIGTERM].into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0).collect();
    for &signal in &heeded {
        // In this order: the second signal finds the flag that the first one raised.
        let _ = signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stopped));
        let _ = signal_hook::flag::register(signal, Arc::clone(&stopped));
    }
    if let Ok(mut signals) = signal_hook::iterator::Signals::new(heeded) {
        let wait = move || {
            if signals.forever().next().is_some() {
                first();
            }
        };
        let _ = std::thread::Builder::new().name("signals".into()).spawn(wait);
    }
    stopped
}

/// Elsewhere an interruption ends the process as the system does it; files are written atomically anyway.
#[cfg(not(unix))]
pub(crate) fn install(_first: impl FnOnce() + Send + 'static) -> Arc<AtomicBool> {
    Arc::default()
}

/// Signals ignored since before the program started, bit n - 1 for signal n. Zero where the system does not tell.
#[cfg(unix)]
fn ignored_mask() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    parse_ignored(&status)
}

#[cfg(unix)]
fn parse_ignored(status: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(all(test, unix))]
mod tests {
    #[test]
    fn reads_the_mask_of_ignored_signals() {
        assert_eq!(super::parse_ignored("Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001002\n"), 0x1002);
        assert_eq!(super::parse_ignored("Name:\tx\n"), 0);
    }
}
