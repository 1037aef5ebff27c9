//! The statistics of FLUX.2's latents: patches of latents are normalized as by a batch norm.
//!
//! ```text
//! y = (patches(x) - mean) / sqrt(var + eps)
//! ```
//!
//! Mirrors the `bn` of diffusers' `AutoencoderKLFlux2`, of which inference reads the running statistics only.

use burn::module::{Module, Param};
use burn::tensor::{Device, FloatDType, Tensor};

/// The number of latents along one side of a patch.
pub(super) const PATCH: usize = 2;

/// Mean and variance of each channel of a patch.
#[derive(Module, Debug)]
pub struct LatentStatistics {
    /// The means, `[c]`.
    pub running_mean: Param<Tensor<1>>,
    /// The variances, `[c]`.
    pub running_var: Param<Tensor<1>>,
    /// What is added to the variance.
    pub eps: f64,
}

impl LatentStatistics {
    /// Makes statistics of mean 0 and variance 1.
    pub(super) fn init(channels: usize, eps: f64, device: &Device) -> Self {
        Self {
            running_mean: Param::from_tensor(Tensor::zeros([channels], device)),
            running_var: Param::from_tensor(Tensor::ones([channels], device)),
            eps,
        }
    }

    /// Normalizes latents `[b, c, h, w]`. Returns `[b, 4 c, h / 2, w / 2]`, as f32.
    pub(super) fn normalize(&self, latents: Tensor<4>) -> Tensor<4> {
        let (mean, std) = self.mean_and_std();
        (patches(latents.cast(FloatDType::F32)) - mean) / std
    }

    /// The inverse of [`LatentStatistics::normalize`], as f32.
    pub(super) fn denormalize(&self, latents: Tensor<4>) -> Tensor<4> {
        let (mean, std) = self.mean_and_std();
        without_patches(latents.cast(FloatDType::F32) * std + mean)
    }

    /// Mean and standard deviation, each `[1, c, 1, 1]`.
    fn mean_and_std(&self) -> (Tensor<4>, Tensor<4>) {
        let [mean, variance] = [&self.running_mean, &self.running_var].map(|statistic| {
            let channels = statistic.val().dims()[0];
            statistic.val().cast(FloatDType::F32).reshape([1, channels, 1, 1])
        });
        (mean, variance.add_scalar(self.eps).sqrt())
    }
}

/// Makes the latents of each patch channels of one: `[b, c, h, w]` to `[b, 4 c, h / 2, w / 2]`.
fn patches(latents: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = latents.dims();
    let (rows, columns) = (height / PATCH, width / PATCH);
    let split: Tensor<6> = latents.reshape([batch, channels, rows, PATCH, columns, PATCH]);
    split.permute([0, 1, 3, 5, 2, 4]).reshape([batch, channels * PATCH * PATCH, rows, columns])
}

/// The inverse of [`patches`].
fn without_patches(latents: Tensor<4>) -> Tensor<4> {
    let [batch, channels, rows, columns] = latents.dims();
    let channels = channels / (PATCH * PATCH);
    let split: Tensor<6> = latents.reshape([batch, channels, PATCH, PATCH, rows, columns]);
    split.permute([0, 1, 4, 2, 5, 3]).reshape([batch, channels, rows * PATCH, columns * PATCH])
}
