//! What the decoder computes with, made of the parameters' values.

use super::parameter::{Parameters, Place};
use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::model::layer_weights::LayerWeights;
use crate::model::linear_name::{LinearName, Stack};
use crate::model::lora::LoraPair;
use crate::ops::{AddColsArgs, Direction, Shaped, TrainingBackend};

/// A tensor of its own with the same values.
pub(super) fn copied<B: TrainingBackend>(backend: &B, x: &B::Tensor) -> Result<B::Tensor> {
    let mut y = backend.zeros(x.rows(), x.cols())?;
    backend.copy(&mut y, x)?;
    Ok(y)
}

/// Sets the layer's LoRA pairs.
pub(super) fn set_pairs<B: TrainingBackend>(
    decoder: &mut Decoder<B>,
    parameters: &Parameters<B>,
    layer: usize,
    scale: f32,
) -> Result<()> {
    for name in LinearName::ALL {
        let pair = parameters.at(Place::LoraA(layer, name)).zip(parameters.at(Place::LoraB(layer, name)));
        let Some((a, b)) = pair else { continue };
        let matrix = |value| decoder.backend().prepare_tensors(&[value], Direction::Forward);
        let pair = LoraPair { a: matrix(&a.value)?, b: matrix(&b.value)?, scale };
        if let Some(lora) = decoder.lora_mut().and_then(|lora| lora.layers.get_mut(layer)) {
            lora.set(name, pair);
        }
    }
    Ok(())
}

/// The weights of a layer all of whose tensors are parameters.
pub(super) fn of_parameters<B: TrainingBackend>(
    decoder: &Decoder<B>,
    parameters: &Parameters<B>,
    layer: usize,
    direction: Direction,
) -> Result<LayerWeights<B>> {
    let (backend, config) = (decoder.backend(), decoder.config());
    let value = |place| parameters.at(place).map(|parameter| &parameter.value);
    let stack = |stack: Stack| -> Result<(B::Matrix, Option<B::Tensor>)> {
        let values: Vec<&B::Tensor> = stack.linears().iter().filter_map(|&name| value(Place::Weight(layer, name))).collect();
        let matrix = backend.prepare_tensors(&values, direction)?;
        let mut bias = None;
        for &name in stack.linears() {
            let Some(part) = value(Place::Bias(layer, name)) else { continue };
            let whole = match &mut bias {
                Some(whole) => whole,
                none => none.insert(backend.zeros(1, matrix.rows())?),
            };
            backend.add_cols(AddColsArgs { y: whole, x: part, first_col: name.first_col(config), scale: 1.0 })?;
        }
        Ok((matrix, bias))
    };
    let vector = |place| value(place).map(|value| copied(backend, value)).transpose();
    let missing = || Error::request(format!("layer {layer} is not among the parameters"));
    let ((qkv, qkv_bias), (o, o_bias)) = (stack(Stack::Qkv)?, stack(Stack::O)?);
    let ((gate_up, gate_up_bias), (down, down_bias)) = (stack(Stack::GateUp)?, stack(Stack::Down)?);
    Ok(LayerWeights {
        layer,
        input_norm: vector(Place::InputNorm(layer))?.ok_or_else(missing)?,
        qkv,
        qkv_bias,
        qk_norm: vector(Place::QNorm(layer))?.zip(vector(Place::KNorm(layer))?).map(|(q, k)| [q, k]),
        o,
        o_bias,
        post_norm: vector(Place::PostNorm(layer))?,
        gate_up,
        gate_up_bias,
        down,
        down_bias,
    })
}
