//! `heatmap.svg`: a row a round, a column a layer, the shade what the model would lose without the layer.

use super::palette;
use super::scan_json::{Round, ScanJson};
use super::text::{self, escape};
use std::fmt::Write;

/// Columns in one band; deeper models get several bands of equal width, one below the other.
const MAX_COLUMNS: usize = 40;
/// Geometry, in the SVG's own units.
const LEFT: f64 = 74.0;
const RIGHT: f64 = 92.0;
const TOP: f64 = 26.0;
const ROW: f64 = 30.0;
const LEGEND: f64 = 86.0;

const STYLE: &str = "\
.hm{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'Noto Sans',sans-serif;--ground:#fff;--ink:#1c2330;--soft:#5b6472;--line:#b9c0ca;--still:#eceff3}\
.hm text{fill:var(--ink)}.hm .soft{fill:var(--soft)}.hm .ground{fill:var(--ground)}.hm .m{text-anchor:middle}.hm .e{text-anchor:end}\
.hm .cell{stroke:var(--ground);stroke-width:1}.hm .gone{fill:none;stroke:var(--line);stroke-dasharray:2 3}.hm .kept{fill:var(--still);stroke:var(--line)}\
.hm .onlight{fill:#000;font-size:11px}.hm .ondark{fill:#fff;font-size:11px}.hm .cross{fill:none;stroke-width:2.5;stroke-linecap:round}\
.hm .halo{fill:none;stroke-width:5;stroke-linecap:round;opacity:.75}.hm .frame{fill:none;stroke:var(--ink);stroke-width:2}\
@media (prefers-color-scheme:dark){.hm{--ground:#12161d;--ink:#e8ebf0;--soft:#a0a9b8;--line:#4a5361;--still:#232a35}}\
@media print{.hm{--ground:#fff;--ink:#000;--soft:#333;--line:#777;--still:#eee;print-color-adjust:exact;-webkit-print-color-adjust:exact}}";

/// From costs to shades. Costs have a long tail (the first layers may cost a hundred times what the middle ones do), so
/// the scale is logarithmic above the lowest cost, with a foot that keeps the cheap layers apart.
struct Scale {
    lowest: f64,
    foot: f64,
    span: f64,
}

impl Scale {
    fn new(mut costs: Vec<f64>) -> Self {
        costs.retain(|cost| cost.is_finite());
        costs.sort_unstable_by(f64::total_cmp);
        let lowest = costs.first().copied().unwrap_or(0.0);
        let highest = costs.last().copied().unwrap_or(0.0);
        let median = costs.get(costs.len() / 2).copied().unwrap_or(0.0);
        let foot = if median > lowest { (median - lowest) / 2.0 } else { ((highest - lowest) / 2.0).max(f64::MIN_POSITIVE) };
        Self { lowest, foot, span: ((highest - lowest) / foot).ln_1p() }
    }

    /// 0 (costs least) to 1 (costs most).
    fn shade(&self, cost: f64) -> f64 {
        if self.span > 0.0 { ((cost - self.lowest) / self.foot).ln_1p() / self.span } else { 0.0 }
    }

    fn cost(&self, shade: f64) -> f64 {
        self.lowest + (shade * self.span).exp_m1() * self.foot
    }
}

/// The heat map as an SVG document that needs nothing else: values are in its titles, its colours follow light and dark.
#[must_use]
pub fn render_heatmap(scan: &ScanJson) -> String {
    let layers = scan.model.num_hidden_layers.max(1);
    let bands = layers.div_ceil(MAX_COLUMNS);
    let columns = layers.div_ceil(bands);
    let cell = (960.0 / count(columns)).clamp(24.0, 64.0);
    // A small model still needs room for the legend.
    let width = (LEFT + count(columns) * cell + RIGHT).max(560.0);
    let band_height = TOP + count(scan.rounds.len()) * ROW + 18.0;
    let height = count(bands) * band_height + LEGEND;
    let scale = Scale::new(scan.rounds.iter().flat_map(|round| costs(scan, round)).collect());

    let mut svg = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"hm\" role=\"img\" aria-labelledby=\"hm-title hm-desc\" viewBox=\"0 0 {width:.0} {height:.0}\" \
         width=\"{width:.0}\" height=\"{height:.0}\">\n<title id=\"hm-title\">Layers of {} by what their removal costs</title>\n<desc id=\"hm-desc\">{}</desc>\n<style>{STYLE}</style>\n\
         <defs><pattern id=\"hm-dark\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><path d=\"M0 0V6\" stroke=\"#000\" stroke-width=\"2.4\" stroke-opacity=\".62\"/></pattern>\
         <pattern id=\"hm-light\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><path d=\"M0 0V6\" stroke=\"#fff\" stroke-width=\"2.4\" stroke-opacity=\".72\"/></pattern></defs>\n\
         <rect class=\"ground\" width=\"{width:.0}\" height=\"{height:.0}\"/>\n",
        escape(&scan.model.path),
        escape(&description(scan)),
    );
    for band in 0..bands {
        let span = band * columns..((band + 1) * columns).min(layers);
        let last = band + 1 == bands;
        draw_band(&mut svg, scan, &scale, span, cell, count(band) * band_height, last);
    }
    draw_legend(&mut svg, scan, &scale, count(bands) * band_height + 8.0);
    svg.push_str("</svg>\n");
    svg
}

/// A size for drawing.
#[expect(clippy::cast_precision_loss, reason = "counts of layers and rounds")]
pub(super) fn count(n: usize) -> f64 {
    n as f64
}

fn costs(scan: &ScanJson, round: &Round) -> Vec<f64> {
    let partial = round.partial.values().map(|partial| partial.score);
    round.scores.values().copied().chain(partial).map(|score| text::cost(scan, round.baseline, score)).collect()
}

/// What the picture shows, for those who hear it.
fn description(scan: &ScanJson) -> String {
    let rounds: Vec<String> =
        scan.rounds.iter().map(|round| format!("round {} removes layer {}", round.round, round.removed)).collect();
    format!("One row a round, one column a layer; darker costs more {}. In order: {}.", scan.metric, rounds.join(", "))
}

fn draw_band(svg: &mut String, scan: &ScanJson, scale: &Scale, span: std::ops::Range<usize>, cell: f64, top: f64, is_last: bool) {
    let x_of = |layer: usize| LEFT + count(layer - span.start) * cell;
    let _ = writeln!(svg, "<text class=\"soft e\" x=\"{:.0}\" y=\"{:.0}\">layer</text>", LEFT - 10.0, top + 18.0);
    for layer in span.clone() {
        let _ =
            writeln!(svg, "<text class=\"soft m\" x=\"{:.1}\" y=\"{:.0}\">{layer}</text>", x_of(layer) + cell / 2.0, top + 18.0);
    }
    for (index, round) in scan.rounds.iter().enumerate() {
        let y = top + TOP + count(index) * ROW;
        let text_y = y + ROW / 2.0 + 4.0;
        let _ = writeln!(svg, "<text class=\"e\" x=\"{:.0}\" y=\"{text_y:.0}\">round {}</text>", LEFT - 10.0, round.round);
        for layer in span.clone() {
            draw_cell(svg, scan, scale, index, layer, [x_of(layer), y, cell]);
        }
        if span.contains(&round.removed) {
            let x = x_of(span.end - 1) + cell + 8.0;
            let _ = writeln!(svg, "<text x=\"{x:.0}\" y=\"{text_y:.0}\">✕ layer {}</text>", round.removed);
        }
    }
    if !is_last {
        let y = top + TOP + count(scan.rounds.len()) * ROW + 9.0;
        let _ = writeln!(svg, "<path d=\"M{LEFT} {y:.0}H{:.0}\" stroke=\"var(--line)\"/>", x_of(span.end - 1) + cell);
    }
}

/// One cell at `[x, y, width]`.
fn draw_cell(svg: &mut String, scan: &ScanJson, scale: &Scale, index: usize, layer: usize, [x, y, width]: [f64; 3]) {
    let round = &scan.rounds[index];
    let [cx, cy] = [x + width / 2.0, y + ROW / 2.0];
    let area = format!("x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{ROW:.1}\"");
    let open = |title: String| format!("<g><title>{}</title>", escape(&title));
    let partial = round.partial.get(&layer);
    let score = round.scores.get(&layer).copied().or(partial.map(|partial| partial.score));
    let removed_in = scan.rounds[..index].iter().find(|earlier| earlier.removed == layer);
    let empty =
        |title: String| format!("{}<rect class=\"gone\" fill-opacity=\"0\" pointer-events=\"all\" {area}/></g>", open(title));
    let is_removed = round.removed == layer;
    if let Some(score) = score.filter(|score| score.is_finite()) {
        let cost = text::cost(scan, round.baseline, score);
        let shade = scale.shade(cost);
        let (ink, ground, class) = if palette::is_dark(shade) { ("#fff", "#000", "ondark") } else { ("#000", "#fff", "onlight") };
        let mut title = format!("round {}, layer {layer}: {} {}", round.round, scan.metric, text::score(scan, score));
        if round.baseline.is_some() {
            let _ = write!(title, ", costs {}", text::difference(scan, cost));
        }
        if let Some(partial) = partial {
            let _ = write!(
                title,
                " ± {} after {} records; dropped from the race",
                text::score(scan, partial.stderr),
                partial.records
            );
        }
        if is_removed {
            title.push_str("; removed in this round");
        }
        let _ = write!(svg, "{}<rect class=\"cell\" {area} fill=\"{}\"/>", open(title), palette::color(shade));
        if partial.is_some() {
            let pattern = if palette::is_dark(shade) { "hm-light" } else { "hm-dark" };
            let _ = write!(svg, "<rect {area} fill=\"url(#{pattern})\"/>");
        } else if width >= 44.0 && !is_removed {
            let _ = write!(
                svg,
                "<text class=\"m {class}\" x=\"{cx:.1}\" y=\"{:.1}\">{}</text>",
                cy + 4.0,
                text::difference(scan, cost)
            );
        }
        if is_removed {
            let cross = format!("M{:.1} {:.1}l14 14m0 -14l-14 14", cx - 7.0, cy - 7.0);
            let _ = write!(
                svg,
                "<path class=\"halo\" stroke=\"{ground}\" d=\"{cross}\"/><path class=\"cross\" stroke=\"{ink}\" d=\"{cross}\"/>\
                 <rect class=\"frame\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>",
                x + 1.5,
                y + 1.5,
                width - 3.0,
                ROW - 3.0
            );
        }
        svg.push_str("</g>\n");
    } else if let Some(earlier) = removed_in {
        svg.push_str(&empty(format!("round {}, layer {layer}: gone since round {}", round.round, earlier.round)));
        svg.push('\n');
    } else if scan.already_removed.contains(&layer) {
        svg.push_str(&empty(format!("round {}, layer {layer}: left out before the scan", round.round)));
        svg.push('\n');
    } else {
        let (letter, what) = if is_removed {
            ("✕", "removed in this round")
        } else if scan.protected.contains(&layer) {
            ("P", "protected, no candidate")
        } else if score.is_some() {
            ("?", "the score is not a number")
        } else {
            ("·", "not scored")
        };
        let title = format!("round {}, layer {layer}: {what}", round.round);
        let _ = writeln!(
            svg,
            "{}<rect class=\"kept\" {area}/><text class=\"m soft\" x=\"{cx:.1}\" y=\"{:.1}\">{letter}</text></g>",
            open(title),
            cy + 4.0
        );
    }
}

fn draw_legend(svg: &mut String, scan: &ScanJson, scale: &Scale, top: f64) {
    const BAR: f64 = 340.0;
    const STOPS: usize = 20;
    let what = match scan.rounds.iter().any(|round| round.baseline.is_some()) {
        true => format!("{} lost without the layer, against the start of the round", scan.metric),
        false => format!("{} of the layer", scan.metric),
    };
    let _ = writeln!(svg, "<text class=\"soft\" x=\"{LEFT}\" y=\"{:.0}\">{}</text>", top + 10.0, escape(&what));
    // Enough stops that the straight line through sRGB between two of them is the palette's to the eye.
    svg.push_str("<defs><linearGradient id=\"hm-scale\">");
    for stop in 0..=STOPS {
        let t = count(stop) / count(STOPS);
        let _ = write!(svg, "<stop offset=\"{t:.3}\" stop-color=\"{}\"/>", palette::color(t));
    }
    let _ = writeln!(
        svg,
        "</linearGradient></defs><rect x=\"{LEFT}\" y=\"{:.0}\" width=\"{BAR}\" height=\"12\" fill=\"url(#hm-scale)\"/>",
        top + 18.0
    );
    for (tick, anchor) in [(0.0, ""), (1.0 / 3.0, "m"), (2.0 / 3.0, "m"), (1.0, "e")] {
        let label = text::difference(scan, scale.cost(tick));
        let _ =
            writeln!(svg, "<text class=\"soft {anchor}\" x=\"{:.0}\" y=\"{:.0}\">{label}</text>", LEFT + tick * BAR, top + 44.0);
    }
    // The signs, each only where it occurs.
    let raced = scan.rounds.iter().any(|round| !round.partial.is_empty());
    let gone = scan.rounds.len() > 1 || !scan.already_removed.is_empty();
    let mut x = LEFT;
    let y = top + 54.0;
    let mut sign = |shape: String, label: &str, letters: f64| {
        let _ = writeln!(svg, "<g transform=\"translate({x:.0} {y:.0})\">{shape}<text x=\"24\" y=\"13\">{label}</text></g>");
        x += 24.0 + letters * 6.6 + 18.0;
    };
    sign(
        format!(
            "<rect width=\"18\" height=\"18\" fill=\"{}\"/><path class=\"cross\" stroke=\"#000\" d=\"M4 4l10 10m0 -10l-10 10\"/>",
            palette::color(0.0)
        ),
        "removed",
        7.0,
    );
    if gone {
        sign("<rect class=\"gone\" width=\"18\" height=\"18\"/>".into(), "gone before", 11.0);
    }
    if raced {
        let shape = format!(
            "<rect width=\"18\" height=\"18\" fill=\"{}\"/><rect width=\"18\" height=\"18\" fill=\"url(#hm-dark)\"/>",
            palette::color(0.3)
        );
        sign(shape, "dropped from the race: estimate", 31.0);
    }
    if !scan.protected.is_empty() {
        sign(
            "<rect class=\"kept\" width=\"18\" height=\"18\"/><text class=\"m soft\" x=\"9\" y=\"13\">P</text>".into(),
            "protected",
            9.0,
        );
    }
}
