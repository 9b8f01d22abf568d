//! The learning rate over the updates, equal to transformers' `get_*_schedule_with_warmup`.

use serde::Serialize;
use std::f64::consts::PI;

/// Course of the learning rate after its warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Half a cosine, down to 0.
    Cosine,
    /// A straight line, down to 0.
    Linear,
    /// As it is.
    Constant,
}

impl Schedule {
    /// Factor on the peak rate for the update after `done` updates, of `total`; it rises from 0 during the first `warmup`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of updates are far below 2^52")]
    pub fn factor(self, done: u64, warmup: u64, total: u64) -> f64 {
        if done < warmup {
            return done as f64 / warmup as f64;
        }
        let rest = total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Cosine => (0.5 * (1.0 + (PI * (done - warmup) as f64 / rest).cos())).max(0.0),
            Self::Linear => total.saturating_sub(done) as f64 / rest,
            Self::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;
    use serde_json::Value;

    #[test]
    fn rates_are_those_of_transformers() {
        let recorded: Value = serde_json::from_str(include_str!("../../../tests/fixtures/optimiser.json")).unwrap();
        let cases = recorded["schedules"].as_array().unwrap();
        assert_eq!(cases.len(), 12);
        for case in cases {
            let schedule = match case["schedule"].as_str().unwrap() {
                "cosine" => Schedule::Cosine,
                "linear" => Schedule::Linear,
                _ => Schedule::Constant,
            };
            let (warmup, total) = (case["warmup"].as_u64().unwrap(), case["steps"].as_u64().unwrap());
            for (done, rate) in (0..).zip(case["rates"].as_array().unwrap()) {
                let (found, expected) = (schedule.factor(done, warmup, total), rate.as_f64().unwrap());
                assert!((found - expected).abs() < 1e-15, "{case} at {done}: {found}");
            }
        }
    }
}
