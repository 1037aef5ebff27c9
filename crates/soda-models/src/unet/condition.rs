//! What the denoiser is told beside the noisy latents: when, and what to draw.

use std::ops::Range;

use burn::tensor::{Int, Tensor};

/// Timesteps of the forward process, `[b]`; a sampler may also ask between two of them.
#[derive(Debug, Clone)]
pub struct Timestep(pub Tensor<1>);

impl From<Tensor<1>> for Timestep {
    fn from(timestep: Tensor<1>) -> Self {
        Self(timestep)
    }
}

impl From<Tensor<1, Int>> for Timestep {
    fn from(timestep: Tensor<1, Int>) -> Self {
        Self(timestep.float())
    }
}

/// What to draw. Text states alone are one, for all models but SDXL.
#[derive(Debug, Clone)]
pub struct Condition {
    /// The text, `[b, m, d]`.
    pub text: Tensor<3>,
    /// What SDXL knows beside it.
    pub added: Option<AddedCondition>,
}

/// SDXL's (arXiv 2307.01952, section 2.2) addition to the timestep embedding.
#[derive(Debug, Clone)]
pub struct AddedCondition {
    /// The second text encoder's projected summary of the prompt, `[b, p]`.
    pub pooled: Tensor<2>,
    /// Height and width of the original picture, top and left of the crop, height and width
    /// wanted: `[b, 6]`, in pixels.
    pub time_ids: Tensor<2>,
}

impl From<Tensor<3>> for Condition {
    fn from(text: Tensor<3>) -> Self {
        Self { text, added: None }
    }
}

impl Condition {
    /// The samples of `self`, then those of `other`: as many as both have together.
    ///
    /// Both are conditions of one model; the addition is kept where both have one.
    pub fn cat(self, other: Self) -> Self {
        let added = self.added.zip(other.added).map(|(a, b)| AddedCondition {
            pooled: Tensor::cat(vec![a.pooled, b.pooled], 0),
            time_ids: Tensor::cat(vec![a.time_ids, b.time_ids], 0),
        });
        Self { text: Tensor::cat(vec![self.text, other.text], 0), added }
    }

    /// Some of the samples.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let (start, length) = (rows.start, rows.len());
        Self {
            text: self.text.clone().narrow(0, start, length),
            added: self.added.as_ref().map(|added| AddedCondition {
                pooled: added.pooled.clone().narrow(0, start, length),
                time_ids: added.time_ids.clone().narrow(0, start, length),
            }),
        }
    }

    /// One sample `times` over.
    pub fn repeat(self, times: usize) -> Self {
        Self {
            text: self.text.repeat_dim(0, times),
            added: self.added.map(|added| AddedCondition {
                pooled: added.pooled.repeat_dim(0, times),
                time_ids: added.time_ids.repeat_dim(0, times),
            }),
        }
    }
}
