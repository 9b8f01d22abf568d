//! Training a model back: which examples, in which order, with which rates, and what is kept so that nothing is lost.

pub mod data;
pub mod filters;
pub mod metrics;
pub mod order;
pub mod schedule;
pub mod state;
