//! report.html and heatmap.svg of a scan.
