//! Models: what a Hugging Face folder holds, and the forward pass over it in terms of `ops`. Knows nothing of devices.

pub mod config;
pub mod folder;
pub mod layer_plan;
pub mod safetensors;
pub mod shard_index;
pub mod tensor_set;
mod unique_map;

pub use config::{Architecture, DecoderConfig, RopeScaling};
pub use folder::ModelFolder;
pub use layer_plan::LayerPlan;
