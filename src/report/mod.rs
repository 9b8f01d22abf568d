//! What a scan leaves behind to be read: `scan.json` by programs, `report.html` and `heatmap.svg` by people.

pub mod scan_json;

pub use scan_json::ScanJson;

/// stub
pub fn render_html(_: &ScanJson) -> String { String::new() }
/// stub
pub fn render_heatmap(_: &ScanJson) -> String { String::new() }
