//! SODA on one weight: the shift of the spectrum, then the rotations, then the scale of the outputs.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use soda_kernels::matmul;
use soda_linalg::LinalgError;

use super::change::{FrozenFactors, Parts};
use super::rotation::Rotation;
use super::spectrum::Spectrum;
use super::truncated::TruncatedSpectrum;
use crate::adapter::Adapter;
use crate::base_weight::BaseWeight;
use crate::methods::cost_model::CostModel;
use crate::methods::low_rank::low_rank_product;
use crate::methods::timestep_mask::TimestepMask;
use crate::rotation_merge::{MergeRule, merge_optional};

/// The adapter of one weight: `Wᵀ = R (W0ᵀ + ΔS) R' diag(c)` on the stored weight `[in, out]`.
#[derive(Module, Debug)]
pub struct Soda {
    /// `R` of the input; `None` for the identity.
    pub rotation: Option<Rotation>,
    /// `R'` of the output; `None` for the identity.
    pub output_rotation: Option<Rotation>,
    /// `ΔS` of the whole spectrum; `None` for zero, or if it is truncated.
    pub spectrum: Option<Spectrum>,
    /// `ΔS` of some singular values.
    pub truncated_spectrum: Option<TruncatedSpectrum>,
    /// `c`, `[out]`; `None` for ones.
    pub output_scale: Option<Param<Tensor<1>>>,
    /// The frozen part of the low-rank form, for rotations of subspaces without a shift of the whole
    /// spectrum or a scale.
    frozen: Option<FrozenFactors>,
    /// T-LoRA's mask, for the low-rank form alone.
    #[module(skip)]
    mask: Option<TimestepMask>,
}

impl Soda {
    /// Puts the parts together for the base weight `w` `[in, out]`.
    pub(super) fn new(
        rotation: Option<Rotation>,
        output_rotation: Option<Rotation>,
        spectrum: Option<Spectrum>,
        truncated_spectrum: Option<TruncatedSpectrum>,
        mask: Option<TimestepMask>,
        w: &Tensor<2>,
    ) -> Self {
        Self {
            rotation,
            output_rotation,
            spectrum,
            truncated_spectrum,
            output_scale: None,
            frozen: None,
            mask,
        }
        .rebased(w)
    }

    /// Gives each output of the weight `w` `[in, out]` a scale of 1.
    pub(super) fn with_output_scale(self, w: &Tensor<2>) -> Self {
        let ones = Tensor::ones([w.dims()[1]], (&w.device(), w.dtype()));
        Self { output_scale: Some(Param::from_tensor(ones)), frozen: None, ..self }
    }

    /// Multiplies the outputs `y` `[rows, out]` by their scale.
    fn scaled(&self, y: Tensor<2>) -> Tensor<2> {
        let Some(scale) = &self.output_scale else { return y };
        let (scale, dtype) = (scale.val().unsqueeze_dim(0), y.dtype());
        (y.cast(scale.dtype()) * scale).cast(dtype)
    }

    /// The parts of the low-rank form.
    fn parts(&self) -> Parts<'_> {
        Parts {
            rotation: self.rotation.as_ref(),
            output_rotation: self.output_rotation.as_ref(),
            spectrum: self.truncated_spectrum.as_ref(),
        }
    }

    /// The rotated product of rows, for rotations and shifts of any form.
    fn rotated_product(&self, x: &Tensor<2>, w: &BaseWeight) -> Tensor<2> {
        let rotate = |x: Tensor<2>, rotation: &Option<Rotation>| match rotation {
            Some(rotation) => rotation.rows(x),
            None => x,
        };
        let x = rotate(x.clone(), &self.rotation);
        let mut y = match &self.spectrum {
            Some(spectrum) => spectrum.product(x.clone(), w),
            None => w.product(x.clone()),
        };
        if let Some(spectrum) = &self.truncated_spectrum {
            let left = spectrum.left.val();
            let columns = matmul(x.cast(left.dtype()), left);
            y = y.clone() + matmul(columns, spectrum.scaled_right().transpose()).cast(y.dtype());
        }
        rotate(y, &self.output_rotation)
    }

    /// The product of rows before the scale of the outputs, if it is cheaper than forming the weight.
    fn unscaled_product(&self, x: &Tensor<2>, w: &BaseWeight) -> Option<Tensor<2>> {
        let (rows, [input, output]) = (x.dims()[0], w.dims());
        let mut cost = CostModel::layer(rows, input, output);
        if let (Some(frozen), Some(mask)) = (&self.frozen, self.mask) {
            let factors = frozen.factors(self.parts());
            return Some(mask.product(x, w, factors, &frozen.ranks(self.parts())));
        }
        if let Some(frozen) = &self.frozen {
            cost = cost.and_factors(rows, input, frozen.rank(), output);
            let (a, b) = cost.prefers_input(x, w).then(|| frozen.factors(self.parts()))?;
            return Some(low_rank_product(x, w, a, b));
        }
        if let (Some(rotation), None, Some(spectrum)) =
            (&self.rotation, &self.output_rotation, &self.spectrum)
            && let Some(w) = w.as_float()
            && let Some(factors) = rotation.kronecker_factors()
            && let Some(y) = spectrum.fused_product(x, &factors, w)
        {
            return Some(y);
        }
        if let Some(rotation) = &self.rotation {
            cost = cost.and_rotation(rows, input, output, rotation.cost_per_entry());
        }
        if let Some(rotation) = &self.output_rotation {
            cost = cost.and_rotation(rows, output, input, rotation.cost_per_entry());
        }
        if let Some(spectrum) = &self.spectrum {
            cost = spectrum.cost(cost, rows, w);
        }
        if let Some(spectrum) = &self.truncated_spectrum {
            cost = cost.and_factors(rows, input, spectrum.s.val().dims()[0], output);
        }
        cost.prefers_input(x, w).then(|| self.rotated_product(x, w))
    }
}

impl Adapter for Soda {
    fn apply(&self, mut w: Tensor<2>) -> Tensor<2> {
        if let Some((a, b)) = self.low_rank() {
            return w + matmul(a, b);
        }
        if let Some(spectrum) = &self.spectrum {
            w = spectrum.apply(w);
        }
        if let Some(spectrum) = &self.truncated_spectrum {
            w = w + matmul(spectrum.left.val(), spectrum.scaled_right().transpose());
        }
        if let Some(rotation) = &self.rotation {
            w = rotation.columns(w);
        }
        if let Some(rotation) = &self.output_rotation {
            w = rotation.rows(w);
        }
        self.scaled(w)
    }

    fn product(&self, x: &Tensor<2>, w: &BaseWeight) -> Option<Tensor<2>> {
        self.unscaled_product(x, w).map(|y| self.scaled(y))
    }

    fn depends_on_timestep(&self) -> bool {
        self.mask.is_some()
    }

    fn low_rank(&self) -> Option<(Tensor<2>, Tensor<2>)> {
        self.frozen.as_ref().map(|frozen| frozen.factors(self.parts()))
    }

    fn at_strength(self, t: f64) -> Result<Self, LinalgError> {
        let power = |rotation: Option<Rotation>| rotation.map(|r| r.power(t)).transpose();
        Ok(Self {
            rotation: power(self.rotation)?,
            output_rotation: power(self.output_rotation)?,
            spectrum: self.spectrum.map(|spectrum| spectrum.at_strength(t)),
            truncated_spectrum: self.truncated_spectrum.map(|spectrum| spectrum.at_strength(t)),
            output_scale: self.output_scale.map(|s| s.map(|s| (s - 1.0).mul_scalar(t) + 1.0)),
            frozen: self.frozen,
            mask: self.mask,
        })
    }

    fn rebased(self, w: &Tensor<2>) -> Self {
        let frozen = match (&self.spectrum, &self.output_scale) {
            (None, None) => FrozenFactors::new(self.parts(), w),
            _ => None,
        };
        Self { frozen, ..self }
    }

    fn merge(weighted: Vec<(f64, Self)>, rule: MergeRule) -> Result<Option<Self>, LinalgError> {
        if weighted.iter().any(|(_, soda)| soda.mask.is_some()) {
            return Ok(None);
        }
        // Unconstrained matrices are not rotations and have no logarithm.
        let rotations =
            weighted.iter().flat_map(|(_, soda)| [&soda.rotation, &soda.output_rotation]);
        if rotations.flatten().any(|rotation| rotation.is_unconstrained()) {
            return Ok(None);
        }
        let side = |select: fn(&Self) -> &Option<Rotation>| {
            let rotation =
                |(weight, soda): &'_ (f64, Self)| Some((*weight, select(soda).as_ref()?.clone()));
            let rotations: Vec<_> = weighted.iter().filter_map(rotation).collect();
            merge_optional(rotations, |rotations| Rotation::merge(rotations, rule))
        };
        let spectra =
            weighted.iter().filter_map(|(weight, soda)| Some((*weight, soda.spectrum.clone()?)));
        let spectrum = Spectrum::merge(spectra.collect());
        let truncated = weighted
            .iter()
            .filter_map(|(weight, soda)| Some((*weight, soda.truncated_spectrum.clone()?)));
        let truncated_spectrum = TruncatedSpectrum::merge(truncated.collect());
        let scales = weighted.iter().filter_map(|(weight, soda)| {
            Some((soda.output_scale.as_ref()?.val() - 1.0).mul_scalar(*weight))
        });
        let change = scales.reduce(|a, b| a + b);
        let output_scale = change.map(|change| Param::from_tensor(change + 1.0));
        let rotations = (side(|soda| &soda.rotation)?, side(|soda| &soda.output_rotation)?);
        Ok(match (rotations, spectrum) {
            ((Some(rotation), Some(output_rotation)), Ok(spectrum)) => {
                let frozen = None;
                Some(Self {
                    rotation,
                    output_rotation,
                    spectrum,
                    truncated_spectrum,
                    output_scale,
                    frozen,
                    mask: None,
                })
            }
            _ => None,
        })
    }
}
