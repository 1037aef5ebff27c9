//! The UNet's forward pass.

use burn::tensor::Tensor;

use super::model::Unet;
use crate::condition::{Condition, Timestep};
use crate::stages;

impl Unet {
    /// Predicts the noise (or the velocity, or the image) in noisy latents.
    ///
    /// `sample` is `[b, c, h, w]`, `timestep` `[b]` with one timestep for each sample, and `condition` has
    /// `b` samples. Returns `[b, c', h, w]` with the config's `out_channels`.
    ///
    /// # Panics
    ///
    /// If the UNet is SDXL's and the condition has no [`AddedCondition`].
    ///
    /// [`AddedCondition`]: crate::condition::AddedCondition
    #[track_caller]
    pub fn forward(
        &self,
        sample: Tensor<4>,
        timestep: impl Into<Timestep>,
        condition: impl Into<Condition>,
    ) -> Tensor<4> {
        stages::forward(self, sample, timestep.into(), condition.into())
    }
}
