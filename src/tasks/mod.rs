//! What the commands do, without terminals or flags: a checked request in, a serialisable report out.

pub mod bench;
pub mod doctor;
pub mod eval;
pub mod generation;
pub mod import;
pub mod inspect;
pub mod merge;
pub mod prune;
pub mod quantize;
mod rewrite;
pub mod scan;
pub mod score;
pub mod teach;
pub mod train;
