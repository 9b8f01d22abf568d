//! What a scan leaves behind to be read: `scan.json` by programs, `report.html` and `heatmap.svg` by people.

pub mod scan_json;

pub use scan_json::ScanJson;
