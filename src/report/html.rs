//! `report.html`.

use super::curve::Chart;
use super::heatmap::render_heatmap;
use super::scan_json::{Better, Depth, Round, ScanJson};
use super::text::{self, escape};
use std::collections::BTreeSet;
use std::fmt::Write;

/// The report of a scan as one HTML document that needs nothing else.
#[must_use]
pub fn render_html(scan: &ScanJson) -> String {
    let name = scan.model.path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let mut page = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{0}: which layers matter least</title>\n<style>\n{1}</style>\n</head>\n<body>\n<header>\n\
         <h1>{0}: which layers matter least</h1>\n<p>{2}</p>\n{3}</header>\n<main>\n",
        escape(name),
        include_str!("style.css"),
        lead(scan),
        tiles(scan),
    );
    section(&mut page, "Layers and rounds", &heat_map(scan));
    section(&mut page, "What was removed, when and at what cost", &rounds_table(scan));
    let depth = depth_points(scan);
    section(&mut page, "Quality, size and speed against depth", &depth_section(scan, &depth));
    section(&mut page, "What to run next", &next_command(scan));
    section(&mut page, "Model, data and machine", &facts(scan));
    section(&mut page, "All scores", &all_scores(scan));
    let _ = write!(
        page,
        "</main>\n<footer>Written by prunectl {} from scan.json beside this file, which holds every figure in full.</footer>\n</body>\n</html>\n",
        escape(&scan.prunectl)
    );
    page
}

fn section(page: &mut String, title: &str, content: &str) {
    if !content.is_empty() {
        let _ = write!(page, "<section>\n<h2>{title}</h2>\n{content}</section>\n");
    }
}

/// The metric in a word for readers who do not know its name.
fn metric_in_words(scan: &ScanJson) -> &'static str {
    match scan.metric.as_str() {
        "nll" => "mean negative log-likelihood of a target token, in nats; lower is better",
        "kl" => "mean KL divergence from the unpruned model, in nats a token; lower is better",
        "bi" => "block influence, 1 − the cosine between what enters a layer and what leaves it; the lowest is removed",
        "tail" => "no score: layers are dropped from the end",
        "chrf" => "chrF of generated text, 0 to 100; higher is better",
        "chrf++" => "chrF++ of generated text, 0 to 100; higher is better",
        "bleu" => "BLEU of generated text, 0 to 100; higher is better",
        _ => match scan.better {
            Better::Lower => "lower is better",
            Better::Higher => "higher is better",
        },
    }
}

fn lead(scan: &ScanJson) -> String {
    format!(
        "A greedy scan: in each round every candidate layer was left out in turn, and the one that the model missed least was removed. \
         Measured in {} ({}).",
        escape(&scan.metric),
        metric_in_words(scan)
    )
}

fn tiles(scan: &ScanJson) -> String {
    let mut tiles = String::from("<ul class=\"tiles\">\n");
    let mut tile = |value: String, label: String| {
        let _ = writeln!(tiles, "<li><b>{value}</b><span>{label}</span></li>");
    };
    tile(
        text::list(&scan.order, " → "),
        format!("removed, in this order{}", if scan.order.len() == 1 { " (one round)" } else { "" }),
    );
    tile(
        format!("{} → {} layers", scan.keep.len() + scan.order.len(), scan.keep.len()),
        match scan.already_removed.as_slice() {
            [] => "depth".into(),
            before => format!("depth; {} left out before the scan", text::list(before, ", ")),
        },
    );
    if let (Some(start), Some(last)) = (scan.baseline, scan.rounds.last()) {
        let cost = last.score - start;
        tile(
            format!("{} → {}", text::score(scan, start), text::score(scan, last.score)),
            format!("{}, {}", escape(&scan.metric), text::difference(scan, cost)),
        );
        if scan.metric == "nll" {
            tile(format!("{:.2} → {:.2}", start.exp(), last.score.exp()), "perplexity".into());
        }
    }
    if let [first, .., last] = scan.depth.as_slice()
        && let (Some(before), Some(after)) = (first.bytes, last.bytes)
    {
        tile(format!("{} → {}", text::bytes(before), text::bytes(after)), "weights".into());
    }
    let ties = near_ties(scan);
    if !ties.is_empty() {
        let rounds = text::list(&ties, ", ");
        let plural = if ties.len() == 1 { "round" } else { "rounds" };
        tile(
            format!("<span class=\"tie\">near-tie in {plural} {rounds}</span>"),
            "the data cannot tell the winner from the next best".into(),
        );
    }
    tiles.push_str("</ul>\n");
    tiles
}

/// Numbers of the rounds whose winner could as well be another layer.
fn near_ties(scan: &ScanJson) -> Vec<usize> {
    let is_tie = |round: &&Round| round.margin.as_ref().is_some_and(|margin| margin.is_near_tie());
    scan.rounds.iter().filter(is_tie).map(|round| round.round).collect()
}

fn heat_map(scan: &ScanJson) -> String {
    let raced = scan.rounds.iter().any(|round| !round.partial.is_empty());
    format!(
        "<p>Light layers can go, dark ones cannot. The scale is logarithmic above the cheapest layer.{} Hover over a cell for its figures; all of them \
         are in the table at the end.</p>\n<div class=\"scroll\">\n{}</div>\n",
        if raced {
            " Hatched layers were dropped from the race once it was clear that they could not win: their shade is an estimate from part of the data."
        } else {
            ""
        },
        render_heatmap(scan)
    )
}

fn rounds_table(scan: &ScanJson) -> String {
    let mut table = String::from(
        "<div class=\"scroll\"><table>\n<caption>One layer a round. The margin is by how much the removed layer was better than the next best one, with its \
         95 % interval from a paired bootstrap over records; an interval that reaches 0 is a near-tie.</caption>\n<thead><tr><th scope=\"col\">Round</th>\
         <th scope=\"col\">Removed</th><th scope=\"col\">Score after</th><th scope=\"col\">Cost</th><th scope=\"col\">Cost in all</th>\
         <th scope=\"col\">Next best</th><th scope=\"col\">Margin (95 % interval)</th><th scope=\"col\" class=\"text\">Verdict</th><th scope=\"col\">Time</th></tr></thead>\n<tbody>\n",
    );
    for round in &scan.rounds {
        let change = |from: Option<f64>| from.map_or_else(|| "–".into(), |from| text::difference(scan, round.score - from));
        let (next, margin, verdict) = match &round.margin {
            None => ("–".into(), "–".into(), "–"),
            Some(margin) => (
                margin.runner_up.to_string(),
                format!(
                    "{} ({} to {})",
                    text::difference(scan, margin.difference),
                    text::difference(scan, margin.interval[0]),
                    text::difference(scan, margin.interval[1])
                ),
                if margin.is_near_tie() { "<span class=\"tie\">near-tie</span>" } else { "clear" },
            ),
        };
        let _ = writeln!(
            table,
            "<tr><th scope=\"row\">{}</th><td><b>layer {}</b></td><td>{}</td><td>{}</td><td>{}</td><td>{next}</td><td>{margin}</td><td class=\"text\">{verdict}</td><td>{}</td></tr>",
            round.round,
            round.removed,
            text::score(scan, round.score),
            change(round.baseline),
            change(scan.baseline),
            text::seconds(round.seconds)
        );
    }
    table.push_str("</tbody>\n</table></div>\n");
    table
}

/// The measured models; where the scan has none, what its rounds tell, as far as their scores are of models.
fn depth_points(scan: &ScanJson) -> Vec<Depth> {
    if !scan.depth.is_empty() {
        return scan.depth.clone();
    }
    let Some(baseline) = scan.baseline else { return Vec::new() };
    let start = scan.keep.len() + scan.order.len();
    let point = |done: usize, score: f64| Depth {
        layers: start - done,
        removed: scan.already_removed.iter().chain(&scan.order[..done]).copied().collect(),
        score,
        bytes: None,
        parameters: None,
        tokens_per_second: None,
    };
    let after = scan.rounds.iter().enumerate().take(scan.order.len()).map(|(index, round)| point(index + 1, round.score));
    std::iter::once(point(0, baseline)).chain(after).collect()
}

#[expect(clippy::cast_precision_loss, reason = "a position in a drawing")]
fn depth_section(scan: &ScanJson, depth: &[Depth]) -> String {
    if depth.len() < 2 {
        return String::new();
    }
    let series = |value: &dyn Fn(&Depth) -> Option<f64>| -> Vec<(usize, f64)> {
        depth.iter().filter_map(|point| Some((point.layers, value(point)?))).collect()
    };
    let better = match scan.better {
        Better::Lower => "lower is better",
        Better::Higher => "higher is better",
    };
    let speed = |value: f64| if value > 0.0 && value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ticks of an axis of bytes are not negative")]
    let size = |value: f64| if value == 0.0 { "0".to_owned() } else { text::bytes(value as u64) };
    let charts = [
        Chart {
            id: "curve-quality",
            title: format!("{} ({better})", scan.metric),
            points: series(&|point| Some(point.score)),
            from_zero: false,
            label: &|value| text::score(scan, value),
        },
        Chart {
            id: "curve-size",
            title: "Size of the weights".into(),
            points: series(&|point| point.bytes.map(|bytes| bytes as f64)),
            from_zero: true,
            label: &size,
        },
        Chart {
            id: "curve-speed",
            title: "Speed while scoring, tokens a second".into(),
            points: series(&|point| point.tokens_per_second),
            from_zero: true,
            label: &speed,
        },
    ];
    let mut out = String::from("<div class=\"charts\">\n");
    for chart in &charts {
        out.push_str(&chart.render());
    }
    out.push_str(
        "</div>\n<div class=\"scroll\"><table>\n<caption>The same in figures, from the deepest model to the shallowest.</caption>\n<thead><tr><th scope=\"col\">Layers</th>\
         <th scope=\"col\">Removed</th><th scope=\"col\">Score</th><th scope=\"col\">Parameters</th><th scope=\"col\">Weights</th><th scope=\"col\">Tokens a second</th></tr></thead>\n<tbody>\n",
    );
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "–".into());
    for point in depth {
        let removed = if point.removed.is_empty() { "none".into() } else { text::list(&point.removed, ", ") };
        let _ = writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td>{removed}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            point.layers,
            text::score(scan, point.score),
            or_dash(point.parameters.map(text::parameters)),
            or_dash(point.bytes.map(text::bytes)),
            or_dash(point.tokens_per_second.map(speed))
        );
    }
    out.push_str("</tbody>\n</table></div>\n");
    out
}

fn next_command(scan: &ScanJson) -> String {
    let model = scan.model.path.trim_end_matches('/');
    let out = format!("{model}-{}-layers", scan.keep.len());
    let removed: Vec<usize> = scan.already_removed.iter().chain(&scan.order).copied().collect();
    let [model, out, data] = [model, &out, &scan.data.path].map(|path| escape(&text::shell(path)));
    let more =
        if scan.rounds.len() > 1 { " A smaller <code>--rounds</code> keeps more layers: choose by the table above." } else { "" };
    format!(
        "<p>Write the shallower model, then measure it. DIR is the folder this report lies in.{more}</p>\n\
         <pre><code>prunectl prune {model} --scan DIR --rounds {} --out {out}\nprunectl eval {out} --data {data}</code></pre>\n\
         <p>The same without the folder of the scan:</p>\n<pre><code>prunectl prune {model} --remove {} --out {out}</code></pre>\n",
        scan.rounds.len(),
        text::list(&removed, ",")
    )
}

fn facts(scan: &ScanJson) -> String {
    let mut out = String::from("<div class=\"facts\">\n");
    let mut list = |facts: &[(&str, String)]| {
        out.push_str("<dl>\n");
        for (name, value) in facts {
            let _ = writeln!(out, "<dt>{name}</dt><dd>{}</dd>", escape(value));
        }
        out.push_str("</dl>\n");
    };
    list(&[
        ("Model", scan.model.path.clone()),
        ("Architecture", scan.model.architecture.clone()),
        ("Layers of the folder", scan.model.num_hidden_layers.to_string()),
        ("Protected", if scan.protected.is_empty() { "none".into() } else { text::list(&scan.protected, ", ") }),
        ("Layers left", text::list(&scan.keep, ", ")),
        ("Fingerprint", scan.model.fingerprint.clone()),
    ]);
    let mut run = vec![
        ("Data", scan.data.path.clone()),
        ("Segments", text::grouped(scan.data.segments)),
        ("Target tokens", scan.data.target_tokens.map_or_else(|| "–".into(), text::grouped)),
        ("Truncated segments", text::grouped(scan.data.truncated)),
        ("SHA-256", scan.data.sha256.clone()),
        (
            "Device",
            [Some(&scan.device), Some(&scan.dtype), scan.gemm.as_ref()]
                .into_iter()
                .flatten()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", "),
        ),
        ("Time", text::seconds(scan.seconds)),
        ("Peak memory", text::bytes(scan.peak_memory_bytes)),
    ];
    run.extend(scan.energy_joules.map(|joules| ("Energy", format!("{:.1} kJ", joules / 1e3))));
    list(&run);
    out.push_str("</div>\n");
    out
}

/// Every score of every round: layers down, rounds across.
fn all_scores(scan: &ScanJson) -> String {
    let layers: BTreeSet<usize> =
        scan.rounds.iter().flat_map(|round| round.scores.keys().chain(round.partial.keys())).copied().collect();
    if layers.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<details><summary>Score of the model without each layer, round by round</summary>\n<div class=\"scroll\"><table>\n<caption>A ± marks the estimate and standard error of a \
         layer that was dropped from the race; a framed score belongs to the layer that was removed.</caption>\n<thead><tr><th scope=\"col\">Layer</th>",
    );
    for round in &scan.rounds {
        let _ = write!(out, "<th scope=\"col\">Round {}</th>", round.round);
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for layer in layers {
        let _ = write!(out, "<tr><th scope=\"row\">{layer}</th>");
        for round in &scan.rounds {
            let _ = match (round.scores.get(&layer), round.partial.get(&layer)) {
                (Some(&score), _) if round.removed == layer => {
                    write!(out, "<td class=\"removed\">✕ {}</td>", text::score(scan, score))
                }
                (Some(&score), _) => write!(out, "<td>{}</td>", text::score(scan, score)),
                (None, Some(partial)) => {
                    write!(out, "<td>{} ± {}</td>", text::score(scan, partial.score), text::score(scan, partial.stderr))
                }
                (None, None) => write!(out, "<td>–</td>"),
            };
        }
        out.push_str("</tr>\n");
    }
    if scan.rounds.iter().any(|round| round.baseline.is_some()) {
        out.push_str("</tbody>\n<tfoot><tr><th scope=\"row\">none</th>");
        for round in &scan.rounds {
            let _ = write!(out, "<td>{}</td>", round.baseline.map_or_else(|| "–".into(), |baseline| text::score(scan, baseline)));
        }
        out.push_str("</tr></tfoot>\n</table></div></details>\n");
    } else {
        out.push_str("</tbody>\n</table></div></details>\n");
    }
    out
}
