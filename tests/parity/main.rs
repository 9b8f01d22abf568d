//! Whole models against what transformers computed (tests/fixtures).
