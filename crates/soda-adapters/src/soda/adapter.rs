//! SODA on one weight: the spectrum moves, then the basis turns.

use burn::module::Module;
use burn::tensor::Tensor;
use soda_kernels::matmul;
use soda_linalg::{LinalgError, kron_left, kron_right};

use super::{Rotation, Spectrum};
use crate::cost::Cost;
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

    fn product(&self, x: &Tensor<2>, w: &Tensor<2>) -> Option<Tensor<2>> {
        let (rows, [input, output]) = (x.dims()[0], w.dims());
        let mut cost = Cost::layer(rows, input, output);
        let (turn, output_turn) = (&self.rotation, &self.output_rotation);
        let (turn, output_turn) =
            (turn.as_ref().map(Rotation::factors), output_turn.as_ref().map(Rotation::factors));
        if let (Some(factors), None, Some(spectrum)) = (&turn, &output_turn, &self.spectrum)
            && let Some(y) = spectrum.turned_product(x, factors, w)
        {
            return Some(y);
        }
        let entries = |factors: &[Tensor<2>]| factors.iter().map(|factor| factor.dims()[0]).sum();
        if let Some(factors) = &turn {
            cost = cost.and_rotation(rows, input, output, entries(factors));
        }
        if let Some(factors) = &output_turn {
            cost = cost.and_rotation(rows, output, input, entries(factors));
        }
        if let Some(spectrum) = &self.spectrum {
            cost = spectrum.cost(cost, rows, w);
        }
        if !cost.input_side(x) {
            return None;
        }
        let rotated = |x: Tensor<2>, factors: &Option<Vec<Tensor<2>>>| match factors {
            Some(factors) => kron_right(x, factors),
            None => x,
        };
        let x = rotated(x.clone(), &turn);
        let y = match &self.spectrum {
            Some(spectrum) => spectrum.product(x, w),
            None => matmul(x, w.clone()),
        };
        Some(rotated(y, &output_turn))
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
        // Matrices that are no rotations have no logarithm to add up.
        let mut turns = parts.iter().flat_map(|(_, p)| [&p.rotation, &p.output_rotation]).flatten();
        if turns.any(|rotation| !rotation.matrices.is_empty()) {
            return Ok(None);
        }
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
