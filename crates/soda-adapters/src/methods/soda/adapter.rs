//! SODA on one weight: the shift of the spectrum, then the rotations.

use burn::module::Module;
use burn::tensor::Tensor;
use soda_kernels::matmul;
use soda_linalg::{LinalgError, kron_left, kron_right};

use super::rotation::Rotation;
use super::spectrum::Spectrum;
use crate::adapter::Adapter;
use crate::methods::cost_model::CostModel;
use crate::rotation_merge::{MergeRule, merge_optional};

/// The adapter of one weight: `Wᵀ = R (W0ᵀ + ΔS) R'` on the stored weight `[in, out]`.
#[derive(Module, Debug)]
pub struct Soda {
    /// `R` of the input; `None` for the identity.
    pub rotation: Option<Rotation>,
    /// `R'` of the output; `None` for the identity.
    pub output_rotation: Option<Rotation>,
    /// `ΔS`; `None` for zero.
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
        let mut cost = CostModel::layer(rows, input, output);
        let factors = |rotation: &Option<Rotation>| rotation.as_ref().map(Rotation::factors);
        let (rotation, output_rotation) = (factors(&self.rotation), factors(&self.output_rotation));
        if let (Some(factors), None, Some(spectrum)) = (&rotation, &output_rotation, &self.spectrum)
            && let Some(y) = spectrum.fused_product(x, factors, w)
        {
            return Some(y);
        }
        let per_entry = |factors: &[Tensor<2>]| factors.iter().map(|factor| factor.dims()[0]).sum();
        if let Some(factors) = &rotation {
            cost = cost.and_rotation(rows, input, output, per_entry(factors));
        }
        if let Some(factors) = &output_rotation {
            cost = cost.and_rotation(rows, output, input, per_entry(factors));
        }
        if let Some(spectrum) = &self.spectrum {
            cost = spectrum.cost(cost, rows, w);
        }
        if !cost.prefers_input(x) {
            return None;
        }
        let rotate = |x: Tensor<2>, factors: &Option<Vec<Tensor<2>>>| match factors {
            Some(factors) => kron_right(x, factors),
            None => x,
        };
        let x = rotate(x.clone(), &rotation);
        let y = match &self.spectrum {
            Some(spectrum) => spectrum.product(x, w),
            None => matmul(x, w.clone()),
        };
        Some(rotate(y, &output_rotation))
    }

    fn at_strength(self, t: f64) -> Result<Self, LinalgError> {
        let power = |rotation: Option<Rotation>| rotation.map(|r| r.power(t)).transpose();
        Ok(Self {
            rotation: power(self.rotation)?,
            output_rotation: power(self.output_rotation)?,
            spectrum: self.spectrum.map(|spectrum| spectrum.at_strength(t)),
        })
    }

    fn merge(weighted: Vec<(f64, Self)>, rule: MergeRule) -> Result<Option<Self>, LinalgError> {
        // Unconstrained matrices are not rotations and have no logarithm.
        let rotations =
            weighted.iter().flat_map(|(_, soda)| [&soda.rotation, &soda.output_rotation]);
        if rotations.flatten().any(|rotation| !rotation.matrices.is_empty()) {
            return Ok(None);
        }
        let side = |select: fn(&Self) -> &Option<Rotation>| {
            let factors =
                |(weight, soda): &(f64, Self)| Some((*weight, select(soda).as_ref()?.factors()));
            let rotations = weighted.iter().filter_map(factors).collect();
            merge_optional(rotations, |rotations| Rotation::merge(rotations, rule))
        };
        let spectra =
            weighted.iter().filter_map(|(weight, soda)| Some((*weight, soda.spectrum.clone()?)));
        let spectrum = Spectrum::merge(spectra.collect());
        let rotations = (side(|soda| &soda.rotation)?, side(|soda| &soda.output_rotation)?);
        Ok(match (rotations, spectrum) {
            ((Some(rotation), Some(output_rotation)), Ok(spectrum)) => {
                Some(Self { rotation, output_rotation, spectrum })
            }
            _ => None,
        })
    }
}
