//! How far a phase has come and how long it will still take. Arithmetic only: no clock, no terminal.

use std::collections::VecDeque;
use std::time::Duration;

/// Counts the units of a phase. Its rate is that of the later half of the time spent, so that units which were already
/// done at the start (a resumed scan) and a slow beginning (cold files) soon stop counting.
#[derive(Debug)]
pub(crate) struct Meter {
    total: u64,
    done: u64,
    /// (time since the phase began, units done then); the first is the start of the stretch the rate is taken over.
    samples: VecDeque<(Duration, u64)>,
    last: Duration,
    /// Time between the last two advances: how long the next one may stay away before the estimate gives way.
    gap: Duration,
}

impl Meter {
    /// `total` may be 0 for unknown.
    pub(crate) fn new(total: u64) -> Self {
        Self { total, done: 0, samples: VecDeque::from([(Duration::ZERO, 0)]), last: Duration::ZERO, gap: Duration::ZERO }
    }

    pub(crate) fn advance(&mut self, now: Duration, units: u64) {
        self.done = self.done.saturating_add(units);
        self.gap = now.saturating_sub(self.last);
        self.last = now;
        // Samples closer than a 64th of the time so far add nothing; this bounds their number.
        if self.samples.back().is_none_or(|&(at, _)| now.saturating_sub(at) > now / 64) {
            self.samples.push_back((now, self.done));
        }
        while self.samples.get(1).is_some_and(|&(at, _)| at < now / 2) {
            self.samples.pop_front();
        }
    }

    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Share done, 0 to 100; `None` where the total is unknown.
    pub(crate) fn percent(&self) -> Option<u64> {
        (self.total > 0)
            .then(|| u64::try_from(u128::from(self.done.min(self.total)) * 100 / u128::from(self.total)).unwrap_or(100))
    }

    /// Units a second; `None` before there is anything to tell it from.
    pub(crate) fn rate(&self) -> Option<f64> {
        let &(start, before) = self.samples.front()?;
        let seconds = self.last.saturating_sub(start).as_secs_f64();
        let units = self.done - before;
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        (units > 0 && seconds > 0.0).then(|| units as f64 / seconds)
    }

    /// Time the rest will take, seen at `now`.
    pub(crate) fn left(&self, now: Duration) -> Option<Duration> {
        let rate = self.rate()?;
        let rest = self.total.checked_sub(self.done).filter(|_| self.total > 0)?;
        // Counts down while the next advance is being worked on, but not beyond what the last one took.
        let waited = now.saturating_sub(self.last).min(self.gap);
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let whole = Duration::try_from_secs_f64(rest as f64 / rate).ok()?;
        Some(whole.saturating_sub(waited))
    }
}

/// `12s`, `3m 05s`, `1h 02m`.
pub(crate) fn human(duration: Duration) -> String {
    let seconds = (duration + Duration::from_millis(500)).as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m {s:02}s"),
        (h, m, _) => format!("{h}h {m:02}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn steady_work_is_predicted_exactly() {
        let mut meter = Meter::new(100);
        for second in 1..=25 {
            meter.advance(at(second), 1);
        }
        assert_eq!(meter.percent(), Some(25));
        assert_eq!(meter.left(at(25)), Some(at(75)));
    }

    #[test]
    fn units_done_before_a_resume_do_not_flatter_the_rate() {
        let mut meter = Meter::new(100);
        meter.advance(Duration::ZERO, 80);
        for second in 1..=10 {
            meter.advance(at(second), 1);
        }
        assert_eq!(meter.left(at(10)), Some(at(10)), "10 units at 1 a second");
    }

    #[test]
    fn counts_down_between_advances_but_only_as_long_as_one_took() {
        let mut meter = Meter::new(4);
        meter.advance(at(10), 1);
        assert_eq!(meter.left(at(14)), Some(at(26)));
        assert_eq!(meter.left(at(100)), Some(at(20)));
    }

    #[test]
    fn nothing_is_claimed_before_the_first_unit_or_without_a_total() {
        assert_eq!(Meter::new(10).left(at(5)), None);
        let mut unknown = Meter::new(0);
        unknown.advance(at(1), 5);
        assert_eq!((unknown.left(at(2)), unknown.percent()), (None, None));
    }

    #[test]
    fn more_units_than_announced_are_harmless() {
        let mut meter = Meter::new(10);
        meter.advance(at(1), 11);
        assert_eq!((meter.percent(), meter.left(at(1))), (Some(100), None));
    }

    #[test]
    fn many_advances_keep_few_samples() {
        let mut meter = Meter::new(1_000_000);
        for step in 1..=1_000_000_u64 {
            meter.advance(Duration::from_millis(step), 1);
        }
        assert!(meter.samples.len() < 100, "{}", meter.samples.len());
        assert!((meter.rate().unwrap() - 1000.0).abs() < 1.0);
    }

    #[test]
    fn durations_read_well() {
        assert_eq!([0, 59, 65, 3599, 3720].map(|s| human(at(s))), ["0s", "59s", "1m 05s", "59m 59s", "1h 02m"]);
        assert_eq!(human(Duration::from_millis(59_600)), "1m 00s");
    }
}
