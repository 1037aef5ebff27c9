//! Conversion of the tensors of other tools to methods of `soda-adapters`.

use std::collections::BTreeMap;

use burn::tensor::TensorData;
use soda_adapters::lora::LoraConfig;
use soda_adapters::oft::OftConfig;
use soda_adapters::{CayleyForm, Method as _, MethodConfig, Weight};

use super::key_names::Role;
use super::layer_tensors::{Converted, Layers, required};
use super::lycoris;
use super::peft_config::{PeftConfig, PeftLora, PeftOft};
use crate::error::InteropError;

/// Converts the tensors of a network to a method and its tensors.
///
/// # Errors
/// [`InteropError`] for incomplete layers, and for tensors and settings that no method has.
pub(super) fn convert(
    layers: &Layers,
    config: Option<&PeftConfig>,
    weights: &BTreeMap<String, Weight>,
) -> Result<Converted, InteropError> {
    for (weight, tensors) in layers {
        for (role, tensor) in
            [(Role::Core, "core of a Tucker decomposition"), (Role::Scalar, "trained scalar")]
        {
            if tensors.contains_key(&role) {
                return Err(InteropError::UnsupportedTensor { weight: weight.clone(), tensor });
            }
        }
    }
    let any = |roles: &[Role]| {
        layers.values().any(|tensors| roles.iter().any(|role| tensors.contains_key(role)))
    };
    match config {
        None if any(&[Role::HadaW1A]) => lycoris::loha(layers),
        None if any(&[Role::LokrW1, Role::LokrW1A]) => lycoris::lokr(layers, weights),
        None => lora(layers, None),
        Some(PeftConfig::Lora(config)) => lora(layers, Some(config)),
        Some(PeftConfig::Oft(config)) => oft(layers, config),
    }
}

/// Converts LoRA and DoRA. Each layer has its own rank, and its `α` gives the scale.
fn lora(layers: &Layers, config: Option<&PeftLora>) -> Result<Converted, InteropError> {
    let mut method = LoraConfig {
        dora: layers.values().any(|tensors| tensors.contains_key(&Role::Magnitude)),
        ..LoraConfig::default()
    };
    let mut parameters = Vec::new();
    for (weight, tensors) in layers {
        let tensor = |role, name| required(weight, tensors, role, name);
        let (down, up) = (tensor(Role::Down, "A (down)")?, tensor(Role::Up, "B (up)")?);
        let rank = down.shape().as_slice().first().copied().unwrap_or_default();
        let module = weight.trim_end_matches(".weight");
        let scale = match (tensors.get(&Role::Alpha), config) {
            (Some(alpha), _) => {
                alpha.iter::<f64>().next().unwrap_or(rank as f64) / rank.max(1) as f64
            }
            (None, Some(config)) => config.scale(module, rank),
            // Without metadata, diffusers' files hold the scale in `B`.
            (None, None) => 1.0,
        };
        let pattern = format!("^{}$", regex::escape(weight));
        method.rank_pattern.insert(pattern.clone(), rank);
        method.alpha_pattern.insert(pattern, scale * rank as f64);
        parameters.push((weight, "a", transposed(down, rank)));
        parameters.push((weight, "b", transposed(up, up.num_elements() / rank.max(1))));
        if method.dora {
            let magnitude = tensor(Role::Magnitude, "magnitude")?;
            let values: Vec<f32> = magnitude.iter().collect();
            let length = values.len();
            parameters.push((weight, "magnitude.value", TensorData::new(values, [length])));
        }
    }
    let method = MethodConfig::from(method);
    let tensors =
        parameters.into_iter().map(|(weight, name, data)| (method.tensor_name(weight, name), data));
    let tensors = tensors.collect();
    Ok((method, tensors))
}

/// Converts PEFT's OFT, which has the same parameters.
fn oft(layers: &Layers, config: &PeftOft) -> Result<Converted, InteropError> {
    if config.oft_block_size == 0 {
        // With `r` blocks, the block size differs from layer to layer.
        return Err(InteropError::Settings {
            method: "oft",
            reason: "an import needs `oft_block_size`; a number of blocks `r` is not supported",
        });
    }
    let method = MethodConfig::from(OftConfig {
        block_size: config.oft_block_size,
        cayley: if config.use_cayley_neumann {
            CayleyForm::Neumann { terms: config.num_cayley_neumann_terms }
        } else {
            CayleyForm::Exact
        },
        block_share: config.block_share,
        constraint: config.coft.then_some(config.eps),
        ..OftConfig::default()
    });
    let mut tensors = BTreeMap::new();
    for (weight, layer) in layers {
        let skew = required(weight, layer, Role::Skew, "oft_R")?;
        tensors.insert(method.tensor_name(weight, "rotation.skew"), skew.clone());
    }
    Ok((method, tensors))
}

/// Reads a tensor `[rows, …]` as a matrix, and transposes it on the host.
fn transposed(data: &TensorData, rows: usize) -> TensorData {
    let values: Vec<f32> = data.iter().collect();
    let cols = values.len() / rows.max(1);
    let at = |index: usize| values[(index % rows) * cols + index / rows];
    TensorData::new((0..rows * cols).map(at).collect::<Vec<f32>>(), [cols, rows])
}
