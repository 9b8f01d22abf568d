//! What a scan or a training leaves behind to be read: `scan.json` by programs, `report.html` and `heatmap.svg` by people.
//!
//! The report is one file: no script, no font, nothing from a network. Values lie in tables and in the titles of what is
//! drawn; colour never carries a meaning alone.

mod curve;
mod heatmap;
mod html;
mod palette;
pub mod scan_json;
mod text;
mod training;

pub use heatmap::render_heatmap;
pub use html::render_html;
pub use scan_json::ScanJson;
pub use training::render_training;

#[cfg(test)]
mod tests;
