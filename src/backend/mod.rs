//! Implementations of the op traits.
