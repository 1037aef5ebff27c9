//! What is unusual about a model that was loaded.

use std::fmt;
use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use soda_kernels::{ActivationFormat, has_fp8_products};

use crate::weights::WeightStorage;

/// What the user of a loaded model should know. The text says it in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadWarning {
    /// Some parts have no files of the requested variant, and their plain files were read.
    MixedVariants {
        /// The requested variant.
        variant: String,
        /// The folders of the parts without it.
        plain: Vec<String>,
    },
    /// A part has no plain files, and those of its only variant were read.
    OnlyVariant {
        /// The file that was read.
        file: PathBuf,
    },
    /// A single file says what its denoiser predicts, and the configs beside it say otherwise.
    PredictionMarks {
        /// The single file.
        file: PathBuf,
        /// The marks of the file, such as `v_pred`.
        marks: Vec<&'static str>,
    },
    /// A single file has tensors that belong to none of the networks.
    UnreadTensors {
        /// The single file.
        file: PathBuf,
        /// Number of these tensors.
        count: usize,
        /// The key of the first one.
        first: String,
    },
    /// The device has no products of numbers of 8 bits, which are asked for.
    RoundedActivations,
}

impl LoadWarning {
    /// [`LoadWarning::RoundedActivations`] if weights are stored so that activations would be rounded on
    /// `device`.
    pub fn of_activations(storage: WeightStorage, device: &Device) -> Option<Self> {
        let is_slow = storage.activations == ActivationFormat::Fp8
            && !has_fp8_products(&Tensor::<1>::zeros([1], device));
        is_slow.then_some(Self::RoundedActivations)
    }
}

impl fmt::Display for LoadWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MixedVariants { variant, plain } => {
                let plain = plain.join(", ");
                write!(f, "the plain files of {plain} are read, which have no variant {variant}")
            }
            Self::OnlyVariant { file } => {
                let file = file.display();
                write!(f, "{file} is read, since there is no plain file: give --variant to choose")
            }
            Self::PredictionMarks { file, marks } => write!(
                f,
                "{} has the mark {}, which is followed against the configs' scheduler_config.json",
                file.display(),
                marks.join(" and ")
            ),
            Self::UnreadTensors { file, count, first } => {
                let file = file.display();
                write!(
                    f,
                    "{count} tensors of {file} belong to no network and are left out: {first}"
                )
            }
            Self::RoundedActivations => f.write_str(
                "this device has no products in fp8: activations are rounded to it and multiplied in \
                 floats, which is slower than without the activation precision",
            ),
        }
    }
}
