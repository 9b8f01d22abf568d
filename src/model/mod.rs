//! Models: what a Hugging Face folder holds, and the forward pass over it in terms of `ops`. Knows nothing of devices.

pub mod adapter;
pub mod batch;
pub mod block;
pub mod config;
pub mod decoder;
mod fingerprint;
mod finite;
pub mod folder;
pub mod generate;
pub mod kv_pages;
pub mod layer_plan;
pub mod layer_weights;
pub mod linear_name;
pub mod lora;
pub mod nf4_weights;
pub mod rotary;
pub mod safetensors;
pub mod shard_index;
mod synthetic;
pub mod tensor_set;
pub mod train;
mod unique_map;

pub use adapter::{Adapter, AdapterConfig};
pub use batch::Batch;
pub use block::{Context, Scratch};
pub use config::{Architecture, DecoderConfig, RopeScaling};
pub use decoder::{Decoder, Residency, packed_targets};
pub use folder::ModelFolder;
pub use generate::{GenerateOptions, GenerateRequest, Generation, generate};
pub use layer_plan::LayerPlan;
pub use layer_weights::LayerWeights;
pub use linear_name::{LinearName, Stack};
pub use lora::{LayerLora, Lora, LoraPair};
pub use nf4_weights::Weight;
