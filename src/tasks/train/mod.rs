//! Training a model back: which examples, in which order, with which rates, and what is kept so that nothing is lost.

pub mod data;
pub mod filters;
pub mod metrics;
pub mod optimiser;
pub mod order;
pub mod output;
pub mod request;
mod run;
pub mod schedule;
pub mod state;
pub mod top_k;

pub use request::{Length, Lesson, Material, Report, Request, Teacher};
pub use run::run;
