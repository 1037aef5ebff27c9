//! The tensors of a file by network and weight, and what their conversion gives.

use std::collections::BTreeMap;

use burn::tensor::TensorData;
use soda_adapters::MethodConfig;

use super::key_names::Role;
use crate::error::InteropError;

/// The tensors that a file has for one weight.
pub(super) type LayerTensors = BTreeMap<Role, TensorData>;

/// The tensors that a file has for a network, by path of the weight.
pub(super) type Layers = BTreeMap<String, LayerTensors>;

/// A method with its settings, and its tensors by their names in an adapter state.
pub(super) type Converted = (MethodConfig, BTreeMap<String, TensorData>);

/// Returns the tensor with a role; `name` is its name in the message.
///
/// # Errors
/// [`InteropError::MissingTensor`].
pub(super) fn required<'a>(
    weight: &str,
    tensors: &'a LayerTensors,
    role: Role,
    name: &'static str,
) -> Result<&'a TensorData, InteropError> {
    let missing = || InteropError::MissingTensor { weight: weight.to_owned(), tensor: name };
    tensors.get(&role).ok_or_else(missing)
}
