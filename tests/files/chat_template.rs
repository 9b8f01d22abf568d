//! Chat templates against what Jinja2 renders with the settings of transformers.
