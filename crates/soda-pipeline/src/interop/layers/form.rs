//! The form of a layer: which dialect its tensors are of.

use burn::tensor::{DType, Tensor, TensorData};
use soda_adapters::Weight;

use super::delta::{self, directed};
use super::hadamard::{self, Hadamard};
use super::kronecker::Kronecker;
use super::low_rank::LowRank;
use super::rotations::{self, Rotation};
use crate::error::InteropError;
use crate::interop::key_names::Role;
use crate::interop::layer_tensors::{LayerTensors, to_tensor};
use crate::interop::peft::PeftConfig;

/// The adapter of one weight.
#[allow(
    clippy::large_enum_variant,
    reason = "a layer has one form, and its size is that of tensors"
)]
pub(crate) enum LayerForm {
    LowRank(LowRank),
    Hadamard(Hadamard),
    Kronecker(Kronecker),
    Rotation(Rotation),
    /// `ΔWᵀ`, `[in, out]`.
    Delta(Tensor<2>),
}

/// A method of other tools, as the names of its tensors tell it.
#[derive(Clone, Copy, PartialEq)]
enum Family {
    Lora,
    Loha,
    Lokr,
    Oft,
    Boft,
    Hra,
    Diff,
}

/// The tensors of each family; the first one of a line identifies it.
const FAMILIES: &[(Family, &[Role])] = &[
    (Family::Lora, &[Role::Down, Role::Up, Role::Mid, Role::UpBias]),
    (Family::Lora, &[Role::Up]),
    (
        Family::Loha,
        &[Role::HadaW1A, Role::HadaW1B, Role::HadaW2A, Role::HadaW2B, Role::HadaT1, Role::HadaT2],
    ),
    (Family::Lokr, LOKR),
    (Family::Lokr, &[Role::LokrW1A]),
    (Family::Lokr, &[Role::LokrW2]),
    (Family::Oft, &[Role::Skew, Role::ScaledSkew]),
    (Family::Oft, &[Role::OftBlocks, Role::Rescale]),
    (Family::Oft, &[Role::KohyaOftBlocks]),
    (Family::Boft, &[Role::BoftBlocks, Role::BoftScale]),
    (Family::Hra, &[Role::Reflections]),
    (Family::Diff, &[Role::Diff]),
];

const LOKR: &[Role] = &[
    Role::LokrW1,
    Role::LokrW1A,
    Role::LokrW1B,
    Role::LokrW2,
    Role::LokrW2A,
    Role::LokrW2B,
    Role::LokrT2,
];

/// Tensors that several families have.
const SHARED: &[Role] = &[Role::Alpha, Role::Magnitude, Role::DoraScale, Role::Scalar];

impl LayerForm {
    /// Reads the tensors of a weight. `config` is the PEFT configuration of the network, if it has one.
    ///
    /// # Errors
    /// [`InteropError`] for incomplete layers, for shapes that do not fit the weight, and for tensors and
    /// settings that are not supported.
    pub(crate) fn new(
        layer: &LayerTensors,
        config: Option<&PeftConfig>,
        weight: &Weight,
    ) -> Result<Self, InteropError> {
        if layer.has(Role::Scalar) {
            return Err(layer.unsupported("trained scalar"));
        }
        if layer.has(Role::UpBias) {
            return Err(layer.unsupported("bias beside `B` (PEFT's `lora_bias`)"));
        }
        let family = family(layer)?;
        check_config(family, config)?;
        let form = match family {
            Family::Lora => Self::LowRank(LowRank::new(layer, config, weight)?),
            Family::Loha if hadamard::has_cores(layer) => {
                Self::Delta(hadamard::tucker_delta(layer, config, weight)?)
            }
            Family::Loha => Self::Hadamard(Hadamard::new(layer, config, weight)?),
            Family::Lokr => Self::Kronecker(Kronecker::new(layer, config, weight)?),
            Family::Oft if layer.has(Role::Rescale) => {
                Self::Delta(rotations::rescaled_delta(layer, weight)?)
            }
            Family::Oft if rotations::rotates_nothing(layer, weight) => {
                Self::Delta(weight.matrix().zeros_like().cast(DType::F32))
            }
            Family::Oft => Self::Rotation(rotations::read_oft(layer, config, weight)?),
            Family::Boft => Self::Rotation(rotations::read_boft(layer, weight)?),
            Family::Hra => Self::Rotation(rotations::read_hra(layer, weight)?),
            Family::Diff => Self::Delta(delta::read(layer, weight)?),
        };
        with_magnitude(form, layer, weight)
    }

    /// Computes `ΔWᵀ`, `[in, out]` in f32, on the weight that the form was read for.
    ///
    /// # Errors
    /// A weight that cannot be decomposed, for PiSSA.
    pub(crate) fn delta(&self, path: &str, weight: &Weight) -> Result<Tensor<2>, InteropError> {
        match self {
            Self::LowRank(low_rank) => low_rank.delta(path, weight),
            Self::Hadamard(hadamard) => Ok(hadamard.delta()),
            Self::Kronecker(kronecker) => Ok(kronecker.delta()),
            Self::Rotation(rotation) => rotation.delta(path, weight),
            Self::Delta(delta) => Ok(delta.clone()),
        }
    }
}

/// Finds the method of a layer's tensors, and checks that all of them are of it.
fn family(layer: &LayerTensors) -> Result<Family, InteropError> {
    let found = FAMILIES.iter().find(|(_, roles)| layer.has(roles[0]));
    let Some((family, _)) = found else {
        let key = layer.other_than(&[]).unwrap_or_default().to_owned();
        return Err(InteropError::LoneTensor { weight: layer.weight().to_owned(), key });
    };
    let of_family = FAMILIES.iter().filter(|(other, _)| other == family);
    let known: Vec<Role> = of_family.flat_map(|(_, roles)| *roles).chain(SHARED).copied().collect();
    match layer.other_than(&known) {
        Some(key) => {
            Err(InteropError::MixedLayer { weight: layer.weight().to_owned(), key: key.to_owned() })
        }
        None => Ok(*family),
    }
}

/// Checks that the configuration is of the method of the tensors.
fn check_config(family: Family, config: Option<&PeftConfig>) -> Result<(), InteropError> {
    let (fits, method) = match config {
        None => return Ok(()),
        Some(PeftConfig::Lora(_)) => (family == Family::Lora, "LORA"),
        Some(PeftConfig::Loha(_)) => (family == Family::Loha, "LOHA"),
        Some(PeftConfig::Lokr(_)) => (family == Family::Lokr, "LOKR"),
        Some(PeftConfig::Oft(_)) => (family == Family::Oft, "OFT"),
        Some(PeftConfig::Boft) => (family == Family::Boft, "BOFT"),
        Some(PeftConfig::Hra(_)) => (family == Family::Hra, "HRA"),
    };
    let reason =
        "its tensors are of another method; save the adapter again with the tool that made it";
    if fits { Ok(()) } else { Err(InteropError::Settings { method, reason }) }
}

/// Gives a form the magnitude that the file has beside it.
///
/// `W = m (W0 + ΔW) / |W0 + ΔW|`, with norms and magnitudes of the outputs or of the input channels. LoRA's
/// method has those of the outputs; anything else becomes a delta.
fn with_magnitude(
    form: LayerForm,
    layer: &LayerTensors,
    weight: &Weight,
) -> Result<LayerForm, InteropError> {
    let ([input, output], window) = (weight.dims(), weight.window());
    let (role, name) = match (layer.has(Role::Magnitude), layer.has(Role::DoraScale)) {
        (false, false) => return Ok(form),
        (true, _) => (Role::Magnitude, "magnitude"),
        (false, true) => (Role::DoraScale, "dora_scale"),
    };
    let data = layer.required(role, name)?;
    let (count, channels) = (data.num_elements(), input / window);
    // LyCORIS has `[out, 1, …]` or `[1, in, …]`; PEFT has one magnitude for each output in any shape.
    let first = data.shape().as_slice().first().copied();
    let by_output = count == output && (role == Role::Magnitude || first == Some(output));
    let by_input = role == Role::DoraScale && count == channels && first == Some(1);
    if !by_output && !by_input {
        let expected = format!("[{output}, 1] or [1, {channels}]");
        return Err(layer.misfit(role, &expected));
    }
    match form {
        LayerForm::LowRank(mut low_rank) if by_output => {
            let values: Vec<f32> = data.iter().collect();
            low_rank.magnitude = Some(TensorData::new(values, [output]));
            Ok(LayerForm::LowRank(low_rank))
        }
        LayerForm::Rotation(_) => Err(layer.unsupported("magnitude beside a rotation")),
        form => {
            let w = weight.matrix().cast(DType::F32);
            let direction = w.clone() + form.delta(layer.weight(), weight)?;
            let device = w.device();
            let adapted = if by_output {
                directed(direction, to_tensor(data, [1, output], &device))
            } else {
                // The rows of a channel are those of its window.
                let rows = direction.reshape([channels, window * output]).transpose();
                let scaled = directed(rows, to_tensor(data, [1, channels], &device));
                scaled.transpose().reshape([input, output])
            };
            Ok(LayerForm::Delta(adapted - w))
        }
    }
}
