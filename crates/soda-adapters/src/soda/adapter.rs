//! SODA on one weight: the spectrum moves, then the basis turns.

use burn::module::Module;
use burn::tensor::Tensor;
use soda_linalg::{LinalgError, kron_left, kron_right};

use super::{Rotation, Spectrum};
use crate::merge::{Combine, optional};
use crate::method::Adapter;

/// `Wᵀ = R (W0ᵀ + ΔS) R'`: the adapter of one layer, on its stored weight `[in, out]`.
#[derive(Module, Debug)]
pub struct Soda {
    /// `R` of the input, or the identity where absent.
    pub rotation: Option<Rotation>,
    /// `R'` of the output, likewise.
    pub output_rotation: Option<Rotation>,
    /// `ΔS`, or zero where absent.
    pub spectrum: Option<Spectrum>,
}

impl Adapter for Soda {
    fn apply(&self, mut w: Tensor<2>) -> Tensor<2> {
        if let Some(spectrum) = &self.spectrum {
            w = spectrum.apply(w);
        }
        if let Some(rotation) = &self.rotation {
            w = kron_left(&rotation.factors(), w);
        }
        if let Some(rotation) = &self.output_rotation {
            w = kron_right(w, &rotation.factors());
        }
        w
    }

    fn at_strength(self, t: f64) -> Result<Self, LinalgError> {
        let power = |rotation: Option<Rotation>| rotation.map(|r| r.power(t)).transpose();
        Ok(Self {
            rotation: power(self.rotation)?,
            output_rotation: power(self.output_rotation)?,
            spectrum: self.spectrum.map(|spectrum| spectrum.at_strength(t)),
        })
    }

    fn combine(parts: Vec<(f64, Self)>, how: Combine) -> Result<Option<Self>, LinalgError> {
        let side = |of: fn(&Self) -> &Option<Rotation>| {
            let turned =
                |(weight, part): &(f64, Self)| Some((*weight, of(part).as_ref()?.factors()));
            let rotations = parts.iter().filter_map(turned).collect();
            optional(rotations, |rotations| Rotation::combine(rotations, how))
        };
        let spectra =
            parts.iter().filter_map(|(weight, part)| Some((*weight, part.spectrum.clone()?)));
        let spectrum = Spectrum::combine(spectra.collect());
        let rotations = (side(|part| &part.rotation)?, side(|part| &part.output_rotation)?);
        Ok(match (rotations, spectrum) {
            ((Some(rotation), Some(output_rotation)), Ok(spectrum)) => {
                Some(Self { rotation, output_rotation, spectrum })
            }
            _ => None,
        })
    }
}
