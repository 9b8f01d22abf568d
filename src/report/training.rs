//! `report.html` of a training: the loss over the updates, quality before and after, and the figures behind them.

use super::curve::ticks;
use super::text::{self, escape};
use crate::tasks::train::Report;
use crate::tasks::train::data::DataFile;
use crate::tasks::train::metrics::{Line, Update};
use std::fmt::Write;

/// The report of a training as one HTML document that needs nothing else. `model` is the base's path.
#[must_use]
pub fn render_training(model: &str, report: &Report, data: &[DataFile]) -> String {
    let name = escape(model.trim_end_matches('/').rsplit('/').next().unwrap_or_default());
    let updates: Vec<&Update> =
        report.lines.iter().filter_map(|l| if let Line::Update(update) = l { Some(update) } else { None }).collect();
    let evaluations: Vec<(u64, f64)> = report
        .lines
        .iter()
        .filter_map(|l| match l {
            Line::Evaluation { step, eval_nll, .. } => Some((*step, *eval_nll)),
            Line::Update(_) => None,
        })
        .collect();
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{name}: training</title>\n<style>\n{}</style>\n</head>\n<body>\n<header>\n\
         <h1>{name}: training</h1>\n<p>Mean loss of an update's target tokens, taken before the update, in nats.</p>\n{}</header>\n<main>\n",
        include_str!("style.css"),
        tiles(report),
    );
    let series = |value: &dyn Fn(&Update) -> f64| -> Vec<(u64, f64)> { updates.iter().map(|u| (u.step, value(u))).collect() };
    #[expect(clippy::cast_precision_loss, reason = "a position in a drawing")]
    let speed = series(&|u| if u.seconds > 0.0 { u.tokens as f64 / u.seconds } else { 0.0 });
    let whole = |value: f64| format!("{value:.0}");
    let nats = |value: f64| format!("{value:.3}");
    let charts = [
        Curve { id: "loss", title: "Loss", smooth: true, from_zero: false, points: series(&|u| u.loss), label: &nats },
        Curve {
            id: "eval",
            title: "Loss on the evaluation's data",
            smooth: false,
            from_zero: false,
            points: evaluations.clone(),
            label: &nats,
        },
        Curve {
            id: "norm",
            title: "Norm of the gradient",
            smooth: true,
            from_zero: true,
            points: series(&|u| u.grad_norm),
            label: &|v| format!("{v:.2}"),
        },
        Curve {
            id: "lr",
            title: "Learning rate",
            smooth: false,
            from_zero: true,
            points: series(&|u| u.lr),
            label: &|v| if v == 0.0 { "0".into() } else { format!("{v:.1e}") },
        },
        Curve { id: "speed", title: "Tokens a second", smooth: true, from_zero: true, points: speed, label: &whole },
    ];
    page.push_str("<section>\n<h2>Course of the training</h2>\n");
    if charts.iter().any(Curve::has_means) {
        page.push_str("<p>Faint: each update. Strong: mean of the last twenty.</p>\n");
    }
    page.push_str("<div class=\"charts\">\n");
    charts.iter().for_each(|curve| page.push_str(&curve.render()));
    page.push_str("</div>\n</section>\n");
    if !evaluations.is_empty() {
        page.push_str(
            "<section>\n<h2>Evaluations</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">After step</th><th scope=\"col\">nll</th>\
             <th scope=\"col\">Perplexity</th><th scope=\"col\" class=\"text\"></th></tr></thead>\n<tbody>\n",
        );
        for (step, nll) in &evaluations {
            let best = if report.eval_best.is_some_and(|best| best.step == *step) { "best, kept" } else { "" };
            let _ = writeln!(
                page,
                "<tr><th scope=\"row\">{step}</th><td>{nll:.4}</td><td>{:.2}</td><td class=\"text\">{best}</td></tr>",
                nll.exp()
            );
        }
        page.push_str("</tbody>\n</table></div>\n</section>\n");
    }
    page.push_str(&data_table(data));
    page.push_str(&facts(report));
    let _ = write!(
        page,
        "</main>\n<footer>Written by prunectl {} from metrics.ndjson beside this file, which holds every figure in full.</footer>\n</body>\n</html>\n",
        env!("CARGO_PKG_VERSION")
    );
    page
}

fn tiles(report: &Report) -> String {
    let mut tiles = String::from("<ul class=\"tiles\">\n");
    let mut tile = |value: String, label: String| {
        let _ = writeln!(tiles, "<li><b>{value}</b><span>{label}</span></li>");
    };
    if let (Some(before), Some(best)) = (report.eval_before, report.eval_best) {
        tile(format!("{:.4} → {:.4}", before.nll, best.nll), "nll of the evaluation, before and after".into());
        tile(format!("{:.2} → {:.2}", before.nll.exp(), best.nll.exp()), "its perplexity".into());
    }
    if let (Some(first), Some(last)) = (report.first_loss, report.last_loss) {
        tile(format!("{first:.4} → {last:.4}"), "loss, first and last update".into());
    }
    let early = if report.stopped_early { format!(" of {}, stopped early", report.planned_steps) } else { String::new() };
    tile(text::grouped(report.steps), format!("updates{early}"));
    tile(text::parameters(report.trained_parameters), "trained parameters".into());
    tile(format!("{:.0}", report.tokens_per_second), "tokens a second".into());
    tiles.push_str("</ul>\n");
    tiles
}

fn data_table(data: &[DataFile]) -> String {
    let mut out = String::from(
        "<section>\n<h2>Data</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\" class=\"text\">File</th><th scope=\"col\">Examples</th>\
         <th scope=\"col\">Truncated</th><th scope=\"col\">Filtered out</th><th scope=\"col\">Duplicates</th></tr></thead>\n<tbody>\n",
    );
    for file in data {
        let _ = writeln!(
            out,
            "<tr><td class=\"text\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(&file.path.display().to_string()),
            file.examples,
            file.truncated,
            file.dropped.total(),
            file.duplicates
        );
    }
    out.push_str("</tbody>\n</table></div>\n</section>\n");
    out
}

fn facts(report: &Report) -> String {
    let facts = [
        ("Targets an epoch", text::grouped(report.target_tokens as u64)),
        ("Tokens of a forward pass, at most", text::grouped(report.micro_batch_tokens as u64)),
        ("Time", text::seconds(report.seconds)),
        ("Peak memory", text::bytes(report.peak_memory_bytes)),
    ];
    let mut out = String::from("<section>\n<h2>Machine</h2>\n<div class=\"facts\">\n<dl>\n");
    for (name, value) in facts {
        let _ = writeln!(out, "<dt>{name}</dt><dd>{}</dd>", escape(&value));
    }
    out.push_str("</dl>\n</div>\n</section>\n");
    out
}

/// One quantity over the updates.
struct Curve<'a> {
    id: &'a str,
    title: &'a str,
    /// Draw the mean of the last twenty points over the points.
    smooth: bool,
    from_zero: bool,
    points: Vec<(u64, f64)>,
    label: &'a dyn Fn(f64) -> String,
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;
/// Points of a drawn line, at most: more than there are pixels.
const DRAWN: usize = 600;
/// Points whose mean is drawn.
const WINDOW: usize = 20;

impl Curve<'_> {
    /// Whether there are points enough for their means to say more.
    fn has_means(&self) -> bool {
        self.smooth && self.points.iter().filter(|point| point.1.is_finite()).count() > 2 * WINDOW
    }

    /// The curve as a figure of HTML; nothing where there are fewer than two points.
    #[expect(clippy::cast_precision_loss, reason = "a position in a drawing")]
    fn render(&self) -> String {
        let points: Vec<(u64, f64)> = self.points.iter().copied().filter(|point| point.1.is_finite()).collect();
        let (Some(&(first, _)), Some(&(last, _))) = (points.first(), points.last()) else { return String::new() };
        if points.len() < 2 || first == last {
            return String::new();
        }
        let low = points.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
        let high = points.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
        let ticks = ticks(if self.from_zero { low.min(0.0) } else { low }, high);
        let (bottom, top) = (ticks[0], ticks[ticks.len() - 1]);
        let x = |step: f64| LEFT + (WIDTH - LEFT - RIGHT) * (step - first as f64) / (last as f64 - first as f64);
        let y = |value: f64| TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - (value - bottom) / (top - bottom));
        let mut out = String::new();
        let (start, end) = (points[0].1, points[points.len() - 1].1);
        let _ = write!(
            out,
            "<figure class=\"chart wide\"><figcaption id=\"{0}\">{1}</figcaption>\n<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"{0} {0}-desc\">\
             <desc id=\"{0}-desc\">From {2} after step {first} to {3} after step {last}; lowest {4}, highest {5}.</desc>\n",
            self.id,
            escape(self.title),
            escape(&(self.label)(start)),
            escape(&(self.label)(end)),
            escape(&(self.label)(low)),
            escape(&(self.label)(high)),
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
        for step in super::curve::ticks(first as f64, last as f64) {
            if step.fract() == 0.0 && step >= first as f64 && step <= last as f64 {
                let _ = writeln!(
                    out,
                    "<text class=\"axis m\" x=\"{:.1}\" y=\"{}\">{step:.0}</text>",
                    x(step),
                    HEIGHT - BOTTOM + 18.0
                );
            }
        }
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        let _ = writeln!(out, "<text class=\"axis m\" x=\"{middle}\" y=\"{}\">step</text>", HEIGHT - 6.0);
        let mut line = |class: &str, points: &[(u64, f64)]| {
            let every = points.len().div_ceil(DRAWN);
            let path: Vec<String> = points
                .chunks(every)
                .map(|part| {
                    let count = part.len() as f64;
                    let step = part.iter().map(|p| p.0 as f64).sum::<f64>() / count;
                    let value = part.iter().map(|p| p.1).sum::<f64>() / count;
                    format!("{:.1} {:.1}", x(step), y(value))
                })
                .collect();
            let _ = writeln!(out, "<path class=\"{class}\" d=\"M{}\"/>", path.join("L"));
        };
        if self.has_means() {
            let means: Vec<(u64, f64)> = points
                .windows(WINDOW)
                .map(|window| (window[WINDOW - 1].0, window.iter().map(|p| p.1).sum::<f64>() / WINDOW as f64))
                .collect();
            line("curve faint", &points);
            line("curve", &means);
        } else {
            line("curve", &points);
        }
        out.push_str("</svg></figure>\n");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::train::filters::Dropped;
    use crate::tasks::train::request::Evaluation;

    fn report(steps: u64) -> Report {
        let update = |step: u64| Update {
            step,
            epoch: 0.1,
            loss: 3.0 - step as f64 / 100.0,
            nll: None,
            kl: None,
            lr: 1e-4,
            grad_norm: 1.0,
            tokens: 100,
            targets: 90,
            seconds: 0.5,
        };
        let mut lines: Vec<Line> = (1..=steps).map(|step| Line::Update(update(step))).collect();
        lines.push(Line::Evaluation { step: 0, eval_nll: 3.5, seconds: 1.0 });
        lines.push(Line::Evaluation { step: steps, eval_nll: 3.25, seconds: 1.0 });
        Report {
            out: "out".into(),
            steps,
            planned_steps: steps,
            trained_parameters: 12_000_000,
            examples: 3,
            target_tokens: 4_000,
            micro_batch_tokens: 1024,
            first_loss: Some(3.0),
            last_loss: Some(2.0),
            eval_before: Some(Evaluation { step: 0, nll: 3.5 }),
            eval_after: Some(Evaluation { step: steps, nll: 3.25 }),
            eval_best: Some(Evaluation { step: steps, nll: 3.25 }),
            stopped_early: false,
            tokens_per_second: 200.0,
            seconds: 60.0,
            peak_memory_bytes: 1 << 30,
            lines,
        }
    }

    #[test]
    fn the_page_stands_alone_and_says_before_and_after() {
        let file = DataFile {
            path: "a<b>.jsonl".into(),
            sha256: String::new(),
            examples: 3,
            truncated: 1,
            dropped: Dropped::default(),
            duplicates: 2,
        };
        let page = render_training("models/tiny", &report(5000), &[file]);
        for part in ["tiny: training", "3.5000 → 3.2500", "12.0 million", "a&lt;b&gt;.jsonl", "best, kept", "id=\"loss\""] {
            assert!(page.contains(part), "{part} in {page}");
        }
        for foreign in ["<script", "http://", "https://", "NaN"] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        // Thousands of updates are drawn with as many points as can be seen.
        assert!(page.len() < 200_000, "{} bytes", page.len());
    }

    #[test]
    fn a_training_of_one_step_has_a_page_without_curves() {
        let page = render_training("m", &report(1), &[]);
        assert!(page.contains("</html>") && !page.contains("id=\"loss\""));
    }

    #[test]
    fn means_are_named_where_they_are_drawn() {
        let [few, many] = [30, 60].map(|steps| render_training("m", &report(steps), &[]));
        assert!(!few.contains("mean of the last twenty") && !few.contains("curve faint"));
        assert!(many.contains("mean of the last twenty") && many.contains("curve faint"));
    }
}
