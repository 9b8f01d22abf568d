//! Every op against independent references.
