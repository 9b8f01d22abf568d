//! Small line charts of one quantity against the number of layers, side by side: quality, size, speed.

use super::heatmap::count;
use super::text::escape;
use std::fmt::Write;

/// One chart.
pub(super) struct Chart<'a> {
    /// Unique within the page; a word.
    pub(super) id: &'a str,
    /// What is drawn, with its unit.
    pub(super) title: String,
    /// Layers and value, from the deepest model to the shallowest.
    pub(super) points: Vec<(usize, f64)>,
    /// Whether the axis starts at 0, as it must where amounts are compared.
    pub(super) from_zero: bool,
    /// A value as a title and an axis show it.
    pub(super) label: &'a dyn Fn(f64) -> String,
}

const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;

impl Chart<'_> {
    /// The chart as a figure of HTML; nothing where there are fewer than two points.
    pub(super) fn render(&self) -> String {
        let points: Vec<(usize, f64)> = self.points.iter().copied().filter(|point| point.1.is_finite()).collect();
        let (Some(&(deepest, _)), Some(&(shallowest, _))) = (points.first(), points.last()) else { return String::new() };
        if points.len() < 2 || deepest == shallowest {
            return String::new();
        }
        let low = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
        let high = points.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
        let ticks = ticks(if self.from_zero { 0.0 } else { low }, high);
        let (bottom, top) = (ticks[0], ticks[ticks.len() - 1]);
        let x = |layers: usize| {
            LEFT + (WIDTH - LEFT - RIGHT) * (count(deepest) - count(layers)) / (count(deepest) - count(shallowest))
        };
        let y = |value: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - (value - bottom) / (top - bottom));

        let mut out = String::new();
        let spoken: Vec<String> = points.iter().map(|&(n, value)| format!("{n} layers: {}", (self.label)(value))).collect();
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "<figure class=\"chart\"><figcaption id=\"{0}\">{1}</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"{0} {0}-desc\"><desc id=\"{0}-desc\">{2}</desc>\n",
            self.id,
            escape(&self.title),
            escape(&spoken.join("; "))
        );
        for &tick in &ticks {
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {0:.1}H{1}\"/><text class=\"axis e\" x=\"{2}\" y=\"{3:.1}\">{4}</text>",
                y(tick),
                WIDTH - RIGHT,
                LEFT - 8.0,
                y(tick) + 4.0,
                escape(&(self.label)(tick))
            );
        }
        // At most about eight labels below the axis.
        let step = (deepest.abs_diff(shallowest)).div_ceil(8).max(1);
        for &(layers, _) in points.iter().filter(|point| deepest.abs_diff(point.0).is_multiple_of(step)) {
            let _ =
                writeln!(out, "<text class=\"axis m\" x=\"{:.1}\" y=\"{}\">{layers}</text>", x(layers), HEIGHT - BOTTOM + 18.0);
        }
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        let _ = writeln!(out, "<text class=\"axis m\" x=\"{middle}\" y=\"{}\">layers left</text>", HEIGHT - 6.0);
        let path: Vec<String> = points.iter().map(|&(n, value)| format!("{:.1} {:.1}", x(n), y(value))).collect();
        let _ = writeln!(out, "<path class=\"curve\" d=\"M{}\"/>", path.join("L"));
        for &(layers, value) in &points {
            let _ = writeln!(
                out,
                "<circle class=\"point\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\"><title>{layers} layers: {}</title></circle>",
                x(layers),
                y(value),
                escape(&(self.label)(value))
            );
        }
        out.push_str("</svg></figure>\n");
        out
    }
}

/// Four to eight round values that cover `low..=high`, evenly spaced.
pub(super) fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = if high > low { high - low } else { high.abs().max(1.0) };
    let magnitude = 10f64.powf((span / 4.0).log10().floor());
    let step = [1.0, 2.0, 5.0].map(|factor| factor * magnitude).into_iter().find(|step| span / step <= 5.0);
    let step = step.unwrap_or(10.0 * magnitude);
    let first = (low / step).floor();
    let last = (high / step).ceil().max(first + 1.0);
    let mut ticks = Vec::new();
    let mut index = first;
    while index <= last {
        ticks.push(index * step);
        index += 1.0;
    }
    ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        assert_eq!(ticks(0.0, 1.0), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(27.0, 27.0).first(), Some(&20.0));
        for (low, high) in [(3.3048, 3.61), (0.0, 269e6), (-0.2, 0.3), (1e-9, 2e-9), (55.0, 55.0), (0.0, 0.0)] {
            let ticks = ticks(low, high);
            assert!((2..=8).contains(&ticks.len()), "{ticks:?}");
            assert!(ticks[0] <= low && ticks[ticks.len() - 1] >= high, "{ticks:?}");
        }
    }

    #[test]
    fn one_point_is_no_curve() {
        let chart = Chart { id: "a", title: "t".into(), points: vec![(3, 1.0)], from_zero: false, label: &|v| v.to_string() };
        assert_eq!(chart.render(), "");
    }
}
