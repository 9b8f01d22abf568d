//! The report of made-up scans: markup that holds together, every layer in its place, no string unescaped.

use super::scan_json::{Better, Data, Margin, Model, Partial, Round, ScanJson};
use super::{render_heatmap, render_html};
use std::collections::BTreeMap;

/// `rounds` rounds over `layers` layers of which the first and last are protected; layer `r + 1` is removed in round `r`,
/// the last candidate of each round is partial.
fn scan(layers: usize, rounds: usize) -> ScanJson {
    let candidates = |done: usize| (1..layers.max(2) - 1).filter(move |&layer| layer > done);
    ScanJson {
        schema: 1,
        prunectl: "0.1.0".into(),
        model: Model {
            path: "a <b> & \"c\"/m'odel".into(),
            architecture: "L<script>".into(),
            num_hidden_layers: layers,
            fingerprint: "f&".into(),
        },
        data: Data { path: "d<a>.jsonl".into(), sha256: "00".into(), segments: 12_345, target_tokens: Some(7), truncated: 0 },
        metric: "nll".into(),
        better: Better::Lower,
        protected: vec![0, layers - 1],
        already_removed: Vec::new(),
        device: "cpu<x>".into(),
        dtype: "f32".into(),
        gemm: None,
        baseline: Some(3.0),
        rounds: (1..=rounds)
            .map(|round| {
                let last = layers - 2;
                Round {
                    round,
                    baseline: Some(3.0),
                    scores: candidates(round - 1)
                        .filter(|&l| l < last)
                        .map(|l| (l, 3.0 + 0.1 * f64::from(u32::try_from(l).unwrap())))
                        .collect(),
                    partial: BTreeMap::from([(last, Partial { score: 9.0, records: 16, stderr: 0.25 })]),
                    removed: round,
                    score: 3.1,
                    margin: Some(Margin {
                        runner_up: round + 1,
                        difference: 0.1,
                        interval: [if round == 1 { -0.05 } else { 0.05 }, 0.2],
                    }),
                    seconds: 1.0,
                }
            })
            .collect(),
        order: (1..=rounds).collect(),
        keep: (0..layers).filter(|&l| l == 0 || l > rounds).collect(),
        depth: Vec::new(),
        seconds: 61.0,
        energy_joules: Some(123_400.0),
        peak_memory_bytes: 812_000_000,
    }
}

/// Every tag closed in order, every attribute quoted, no stray `<` or `&`. `void` are elements of HTML without an end.
fn assert_well_formed(markup: &str, void: &[&str]) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = markup;
    while let Some(start) = rest.find('<') {
        check_entities(&rest[..start]);
        let end = rest[start..].find('>').expect("a tag that ends") + start;
        let tag = &rest[start + 1..end];
        assert!(!tag.contains('<'), "stray < in {tag:?}");
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "end of {name}");
        } else if !tag.starts_with('!') {
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            check_entities(tag);
            let name = tag.split([' ', '\n', '/']).next().unwrap();
            if !tag.ends_with('/') && !void.contains(&name) {
                open.push(name);
            }
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
}

fn check_entities(text: &str) {
    for (at, _) in text.match_indices('&') {
        let known = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;"];
        assert!(known.iter().any(|entity| text[at..].starts_with(entity)), "stray & in {:?}", &text[at..]);
    }
}

#[test]
fn markup_holds_together_for_models_of_all_depths() {
    for (layers, rounds) in [(3, 1), (4, 1), (30, 4), (80, 6)] {
        assert_well_formed(&render_heatmap(&scan(layers, rounds)), &[]);
        assert_well_formed(&render_html(&scan(layers, rounds)), &["meta"]);
    }
}

#[test]
fn every_layer_of_every_round_has_a_cell() {
    for (layers, rounds) in [(4, 1), (30, 4), (80, 6), (81, 2)] {
        let svg = render_heatmap(&scan(layers, rounds));
        for round in 1..=rounds {
            for layer in 0..layers {
                assert_eq!(
                    svg.matches(&format!("<title>round {round}, layer {layer}:")).count(),
                    1,
                    "round {round} layer {layer}"
                );
            }
        }
    }
}

#[test]
fn cells_say_what_they_are() {
    let svg = render_heatmap(&scan(10, 2));
    for title in [
        "round 1, layer 0: protected, no candidate",
        "round 1, layer 1: nll 3.1000, costs +0.1000; removed in this round",
        "round 2, layer 1: gone since round 1",
        "round 2, layer 4: nll 3.4000, costs +0.4000",
        "round 2, layer 8: nll 9.0000, costs +6.0000 ± 0.2500 after 16 records; dropped from the race",
    ] {
        assert!(svg.contains(&format!("<title>{title}</title>")), "{title}");
    }
    assert_eq!(svg.matches("class=\"halo\"").count(), 2, "a cross a round");
}

#[test]
fn report_is_self_contained_and_escaped() {
    let html = render_html(&scan(10, 2));
    for forbidden in ["<b> &", "<script", "<a>", "<x>", "src=", "href=", "url(http", "@import"] {
        assert!(!html.contains(forbidden), "{forbidden}");
    }
    assert!(html.contains("m&#39;odel: which layers matter least</h1>"));
    assert!(html.contains("L&lt;script&gt;"));
}

#[test]
fn report_tells_order_margin_and_next_command() {
    let html = render_html(&scan(10, 2));
    for part in [
        "<b>1 → 2</b><span>removed, in this order</span>",
        "<td>+0.1000 (−0.0500 to +0.2000)</td><td class=\"text\"><span class=\"tie\">near-tie</span></td>",
        "<td>+0.1000 (+0.0500 to +0.2000)</td><td class=\"text\">clear</td>",
        "--scan DIR --rounds 2 --out",
        "--remove 1,2 --out",
        "<th scope=\"row\">8</th><td>9.0000 ± 0.2500</td><td>9.0000 ± 0.2500</td>",
        "10 → 8 layers",
    ] {
        assert!(html.contains(part), "{part}");
    }
}

#[test]
fn metrics_without_models_have_no_baseline_and_no_curve() {
    let mut scan = scan(6, 1);
    scan.metric = "bi".into();
    scan.baseline = None;
    scan.rounds[0].baseline = None;
    scan.rounds[0].partial.clear();
    scan.rounds[0].margin = None;
    let html = render_html(&scan);
    assert!(!html.contains("against depth"));
    assert!(html.contains("bi of the layer"));
    scan.metric = "tail".into();
    scan.rounds[0].scores.clear();
    assert_well_formed(&render_html(&scan), &["meta"]);
}

#[test]
fn scores_that_are_not_numbers_are_told() {
    let mut scan = scan(6, 1);
    scan.rounds[0].scores.insert(2, f64::NAN);
    scan.rounds[0].scores.insert(3, f64::INFINITY);
    assert!(render_heatmap(&scan).contains("round 1, layer 2: the score is not a number"));
    assert!(!render_html(&scan).contains("NaN"));
}

#[test]
fn scan_json_reads_what_it_writes_and_refuses_other_schemas() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scan.json");
    let written = scan(10, 2);
    std::fs::write(&path, written.to_text().unwrap()).unwrap();
    assert_eq!(ScanJson::read(&path).unwrap(), written);
    std::fs::write(&path, written.to_text().unwrap().replace("\"schema\": 1", "\"schema\": 2")).unwrap();
    assert!(ScanJson::read(&path).unwrap_err().to_string().contains("key schema: schema 2"));
    std::fs::write(&path, "{\"schema\": 1,\n").unwrap();
    assert!(ScanJson::read(&path).unwrap_err().to_string().contains("line 2"));
}
