//! T-LoRA's mask (arXiv 2507.05964, eq. 4): how many directions a low-rank change has at a timestep.
//!
//! ```text
//! W(t) = W0 + a diag(m(t)) b,    mᵢ(t) = 1 for i < r(t), else 0
//! r(t) = ⌊(r - r_min) (1 - t/T)^α⌋ + r_min,    T = 1000
//! ```
//!
//! At much noise the change has few directions, so that few pictures are not memorized there. At `t = 0` it
//! has all of them. The samples of a batch have timesteps of their own, so the mask multiplies rows, and no
//! single weight stands for the adapter.

use burn::tensor::{DType, Int, Tensor};
use serde::{Deserialize, Serialize};
use soda_kernels::{current_timesteps, matmul};

use super::bounds::MAX_PRODUCT_RANK;
use super::cost_model::product_dtype;
use crate::base_weight::BaseWeight;
use crate::error::AdapterError;
use crate::weight::Weight;

/// The largest timestep, at which a sample is noise.
const LAST: f64 = 1000.0;

/// Settings of the mask.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimestepMask {
    /// `r_min`: the directions that all timesteps have.
    pub min_rank: usize,
    /// `α`: above 1, the directions end at less noise.
    pub alpha: f64,
}

impl Default for TimestepMask {
    fn default() -> Self {
        Self { min_rank: 1, alpha: 1.0 }
    }
}

impl TimestepMask {
    /// Checks the settings of `method`.
    pub(crate) fn check(self, method: &'static str) -> Result<(), AdapterError> {
        let refuse = |reason| Err(AdapterError::Config { method, reason });
        if self.min_rank > MAX_PRODUCT_RANK {
            return refuse("`timestep_mask.min_rank` is at most 4096");
        }
        if !(self.alpha > 0.0 && self.alpha <= 100.0) {
            return refuse("`timestep_mask.alpha` is above 0 and at most 100");
        }
        Ok(())
    }

    /// Refuses the weight of a convolution, whose products are not by rows.
    pub(crate) fn check_weight(path: &str, weight: &Weight) -> Result<(), AdapterError> {
        if weight.shape.len() == 2 {
            return Ok(());
        }
        Err(AdapterError::MaskedConvolution { path: path.to_owned() })
    }

    /// The mask of `rank` directions at `timesteps` `[b]`: ones and zeros, `[b, rank]`, in f32.
    pub(crate) fn at(self, timesteps: Tensor<1>, rank: usize) -> Tensor<2> {
        let device = timesteps.device();
        let masked = rank.saturating_sub(self.min_rank) as f64;
        let left = timesteps.cast(DType::F32).neg() + LAST;
        // Whole timesteps and α = 1 give whole products, so that the division rounds no step away.
        let share = if self.alpha == 1.0 {
            left.mul_scalar(masked).div_scalar(LAST)
        } else {
            left.clamp_min(0.0).div_scalar(LAST).powf_scalar(self.alpha).mul_scalar(masked)
        };
        let active = share.floor().add_scalar(self.min_rank as f64);
        let places = Tensor::<1, Int>::arange(0..rank as i64, &device).float().cast(DType::F32);
        let (places, active) = (places.unsqueeze_dim::<2>(0), active.unsqueeze_dim::<2>(1));
        let shape = [active.dims()[0], rank];
        places.expand(shape).lower(active.expand(shape)).float().cast(DType::F32)
    }

    /// Computes `x (w + a diag(m) b)` for rows `x` `[rows, in]`, `w` `[in, out]`, `a` `[in, Σr]` and `b`
    /// `[Σr, out]`. `ranks` are the `r` of the changes that stand beside each other in `a` and `b`, each with
    /// its own mask.
    ///
    /// The rows of a sample follow each other. Outside of a denoiser no timestep is known, and the mask is
    /// all ones.
    ///
    /// # Panics
    /// If the rows are not those of whole samples.
    pub(crate) fn product(
        self,
        x: &Tensor<2>,
        w: &BaseWeight,
        (a, b): (Tensor<2>, Tensor<2>),
        ranks: &[usize],
    ) -> Tensor<2> {
        let dtype = product_dtype(x, a.dtype());
        let mut columns = matmul(x.clone().cast(dtype), a.cast(dtype));
        if let Some(timesteps) = current_timesteps() {
            let [rows, rank] = columns.dims();
            let samples = timesteps.dims()[0];
            assert!(rows.is_multiple_of(samples), "{rows} rows of {samples} samples");
            let masks = ranks.iter().map(|rank| self.at(timesteps.clone(), *rank)).collect();
            let mask = Tensor::cat(masks, 1).cast(dtype).unsqueeze_dim::<3>(1);
            let by_sample = columns.reshape([samples, rows / samples, rank]);
            columns = (by_sample * mask).reshape([rows, rank]);
        }
        w.product(x.clone()) + matmul(columns, b.cast(dtype)).cast(w.dtype())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn active(mask: TimestepMask, timestep: f32, rank: usize) -> usize {
        let timesteps = Tensor::from_floats([timestep], &Device::default());
        let mask: Vec<f32> = mask.at(timesteps, rank).into_data().iter().collect();
        let active = mask.iter().take_while(|m| **m == 1.0).count();
        assert!(mask[active..].iter().all(|m| *m == 0.0));
        active
    }

    #[test]
    fn whole_timesteps_have_the_rank_of_the_paper() {
        for (rank, min_rank) in [(16_usize, 1), (64, 32), (10, 0), (7, 7), (4, 9)] {
            let mask = TimestepMask { min_rank, alpha: 1.0 };
            for t in 0..=1000_usize {
                let expected = rank.saturating_sub(min_rank) * (1000 - t) / 1000 + min_rank;
                assert_eq!(active(mask, t as f32, rank), expected.min(rank), "{rank} {t}");
            }
        }
    }

    #[test]
    fn the_exponent_takes_directions_from_the_noise() {
        let mask = TimestepMask { min_rank: 2, alpha: 2.0 };
        // 10 · 0.75² = 5.6, 10 · 0.5² = 2.5, 10 · 0.3² = 0.9
        let found = [0.0, 250.0, 500.0, 700.0, 1000.0].map(|t| active(mask, t, 12));
        assert_eq!(found, [12, 7, 4, 2, 2]);
    }
}
