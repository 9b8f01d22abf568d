//! Progress on standard error: a bar on a terminal, a plain line now and then elsewhere, nothing with --quiet.
//! What standard output is does not matter here: a result may go down a pipe while the bar is watched.

use super::meter::{Meter, human};
use super::style::{NOTE, label};
use crate::progress::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Redraw of the bar while no unit completes, so that the time left counts down.
const TICK: Duration = Duration::from_millis(250);

/// The receiver of progress that the command line hands to the tasks.
#[derive(Debug)]
pub(crate) struct Reporter {
    quiet: bool,
    bars: bool,
    phase: Mutex<Option<Phase>>,
    stopped: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Phase {
    what: String,
    started: Instant,
    meter: Arc<Mutex<Meter>>,
    bar: Option<ProgressBar>,
    /// When the last line was written, since `started`.
    last_line: Duration,
    status: String,
}

impl Reporter {
    /// `stopped` is raised by the signal handler.
    pub(crate) fn new(quiet: bool, stopped: Arc<AtomicBool>) -> Self {
        let bars = std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { quiet, bars, phase: Mutex::new(None), stopped }
    }

    /// Runs `write` while no bar is on the screen.
    pub(crate) fn suspend<R>(&self, write: impl FnOnce() -> R) -> R {
        match hold(&self.phase).as_ref().and_then(|phase| phase.bar.as_ref()) {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// A line that even --quiet shows.
    pub(crate) fn line(&self, text: &str) {
        self.suspend(|| {
            let _ = writeln!(anstream::stderr().lock(), "{text}");
        });
    }
}

impl Progress for Reporter {
    fn begin(&self, what: &str, total: u64) {
        self.end();
        if self.quiet {
            return;
        }
        let meter = Arc::new(Mutex::new(Meter::new(total)));
        let started = Instant::now();
        let bar = self.bars.then(|| new_bar(what, total, started, &meter));
        *hold(&self.phase) =
            Some(Phase { what: what.to_owned(), started, meter, bar, last_line: Duration::ZERO, status: String::new() });
    }

    fn advance(&self, units: u64) {
        let mut phase = hold(&self.phase);
        let Some(phase) = phase.as_mut() else { return };
        let now = phase.started.elapsed();
        hold(&phase.meter).advance(now, units);
        match &phase.bar {
            Some(bar) => bar.inc(units),
            None if now.saturating_sub(phase.last_line) >= LINE_EVERY => {
                phase.last_line = now;
                let beside = if phase.status.is_empty() { String::new() } else { format!(", {}", phase.status) };
                let line = format!("{}: {}{beside}", phase.what, Standing { meter: &hold(&phase.meter), now });
                let _ = writeln!(std::io::stderr().lock(), "{line}");
            }
            None => {}
        }
    }

    fn status(&self, text: &str) {
        let mut phase = hold(&self.phase);
        let Some(phase) = phase.as_mut() else { return };
        text.clone_into(&mut phase.status);
        if let Some(bar) = &phase.bar {
            bar.set_message(format!("{}, {text}", phase.what));
        }
    }

    fn end(&self) {
        let Some(phase) = hold(&self.phase).take() else { return };
        match phase.bar {
            Some(bar) => bar.finish_and_clear(),
            // A phase that wrote lines also says that it is over.
            None if phase.last_line > Duration::ZERO => {
                let _ = writeln!(std::io::stderr().lock(), "{}: ended after {}", phase.what, human(phase.started.elapsed()));
            }
            None => {}
        }
    }

    fn note(&self, line: &str) {
        if !self.quiet {
            self.line(&format!("{} {line}", label(NOTE, "note:")));
        }
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }
}

/// `37 % (12/30), 3.1/s, 1m 20s left`, as far as it is known.
struct Standing<'a> {
    meter: &'a Meter,
    now: Duration,
}

impl fmt::Display for Standing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meter.percent() {
            Some(percent) => write!(f, "{percent} % ({}/{})", self.meter.done(), self.meter.total())?,
            None => write!(f, "{} done in {}", self.meter.done(), human(self.now))?,
        }
        if let Some(rate) = self.meter.rate() {
            write!(f, ", {}", Rate(rate))?;
        }
        match self.meter.left(self.now) {
            Some(left) => write!(f, ", {} left", human(left)),
            None => Ok(()),
        }
    }
}

/// Three figures that mean something at any size: `0.25/s`, `31/s`, `12.4k/s`.
struct Rate(f64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            r if r >= 1e9 => write!(f, "{:.1}G/s", r / 1e9),
            r if r >= 1e6 => write!(f, "{:.1}M/s", r / 1e6),
            r if r >= 1e3 => write!(f, "{:.1}k/s", r / 1e3),
            r if r >= 10.0 => write!(f, "{r:.0}/s"),
            r => write!(f, "{r:.2}/s"),
        }
    }
}

fn new_bar(what: &str, total: u64, started: Instant, meter: &Arc<Mutex<Meter>>) -> ProgressBar {
    let meter = Arc::clone(meter);
    let standing = move |_: &ProgressState, out: &mut dyn fmt::Write| {
        let _ = write!(out, "{}", Standing { meter: &hold(&meter), now: started.elapsed() });
    };
    // Plain ASCII: any terminal and any locale shows it.
    let template = if total > 0 { "{msg} [{bar:30}] {standing}" } else { "{msg} {spinner} {standing}" };
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .with_key("standing", standing)
        .tick_chars("|/-\\ ")
        .progress_chars("=> ");
    let bar = ProgressBar::with_draw_target((total > 0).then_some(total), ProgressDrawTarget::stderr());
    bar.set_style(style);
    bar.set_message(what.to_owned());
    bar.enable_steady_tick(TICK);
    bar
}

/// A lock whose content stays usable after a panic elsewhere: it is only ever text on a screen.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_share_rate_and_time_left() {
        let mut meter = Meter::new(30);
        meter.advance(Duration::from_secs(24), 12);
        let line = Standing { meter: &meter, now: Duration::from_secs(24) }.to_string();
        assert_eq!(line, "40 % (12/30), 0.50/s, 36s left");
    }

    #[test]
    fn rates_have_three_figures() {
        assert_eq!([0.25, 31.4, 12_400.0, 3.2e7].map(|r| Rate(r).to_string()), ["0.25/s", "31/s", "12.4k/s", "32.0M/s"]);
    }

    #[test]
    fn progress_without_a_phase_is_ignored() {
        let reporter = Reporter::new(false, Arc::default());
        reporter.advance(3);
        reporter.end();
    }

    #[test]
    fn the_flag_of_the_signal_handler_is_seen() {
        let flag = Arc::new(AtomicBool::new(false));
        let reporter = Reporter::new(true, Arc::clone(&flag));
        assert!(!reporter.stopped());
        flag.store(true, Ordering::Relaxed);
        assert!(reporter.check("two rounds").is_err());
    }
}
