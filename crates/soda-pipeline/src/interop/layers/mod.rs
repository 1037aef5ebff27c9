//! The tensors of one weight as an adapter, whatever dialect they are in.
//!
//! | form | dialects |
//! |---|---|
//! | [`LowRank`] | LoRA and DoRA, with LyCORIS' middle convolution; PEFT's PiSSA |
//! | [`Hadamard`] | LoHa of LyCORIS and PEFT |
//! | [`Kronecker`] | LoKr of LyCORIS and PEFT |
//! | [`Rotation`] | OFT of PEFT, OneTrainer, LyCORIS and kohya's scripts; BOFT of PEFT |
//! | a delta | LyCORIS' `diff`; any of the above with a magnitude that its method does not have |

mod delta;
mod hadamard;
mod kronecker;
mod low_rank;
mod rotations;

use burn::tensor::Tensor;
use soda_adapters::Weight;

use self::delta::with_magnitude;
pub(super) use self::hadamard::Hadamard;
pub(super) use self::kronecker::Kronecker;
pub(super) use self::low_rank::LowRank;
pub(super) use self::rotations::Rotation;
use super::key_names::Role;
use super::layer_tensors::LayerTensors;
use super::peft_config::PeftConfig;
use crate::error::InteropError;

/// The adapter of one weight.
pub(super) enum LayerForm {
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
    pub(super) fn new(
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
            Family::Loha => hadamard::read(layer, config, weight)?,
            Family::Lokr => Self::Kronecker(Kronecker::new(layer, config, weight)?),
            Family::Oft => rotations::read_oft(layer, config, weight)?,
            Family::Boft => Self::Rotation(rotations::read_boft(layer, weight)?),
            Family::Diff => Self::Delta(delta::read(layer, weight)?),
        };
        with_magnitude(form, layer, weight)
    }

    /// Computes `ΔWᵀ`, `[in, out]` in f32, on the weight that the form was read for.
    ///
    /// # Errors
    /// A weight that cannot be decomposed, for PiSSA.
    pub(super) fn delta(&self, path: &str, weight: &Weight) -> Result<Tensor<2>, InteropError> {
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
    };
    let reason =
        "its tensors are of another method; save the adapter again with the tool that made it";
    if fits { Ok(()) } else { Err(InteropError::Settings { method, reason }) }
}
