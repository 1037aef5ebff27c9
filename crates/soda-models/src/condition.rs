//! The inputs of a denoiser beside the noisy latents: the timestep and the text.

use std::ops::Range;

use burn::tensor::{FloatDType, Int, Tensor};

/// Timesteps of the forward process, `[b]`. They need not be whole: a sampler may visit points between two of
/// them.
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

/// The text condition of a denoiser, one sample for each noisy latent.
///
/// [`From<Tensor<3>>`](From) makes a condition without [`AddedCondition`], which is enough for all models but
/// SDXL. diffusers calls the fields `encoder_hidden_states` and `added_cond_kwargs`.
#[derive(Debug, Clone)]
pub struct Condition {
    /// Hidden states of the text encoder, `[b, m, d]` for `m` tokens.
    pub text: Tensor<3>,
    /// SDXL's additional inputs. `None` for all other models.
    pub added: Option<AddedCondition>,
}

/// SDXL's addition to the timestep embedding (arXiv 2307.01952, section 2.2).
#[derive(Debug, Clone)]
pub struct AddedCondition {
    /// Pooled and projected output of the second text encoder, `[b, p]`. diffusers calls it `text_embeds`.
    pub pooled: Tensor<2>,
    /// Six numbers for each sample, `[b, 6]`, in pixels.
    ///
    /// The numbers are height and width of the original image, top and left of the crop, and height and width
    /// of the target.
    pub time_ids: Tensor<2>,
}

impl From<Tensor<3>> for Condition {
    fn from(text: Tensor<3>) -> Self {
        Self { text, added: None }
    }
}

impl Condition {
    /// Concatenates the samples of `self` and of `other`, in this order.
    ///
    /// Both conditions must belong to one model. The result has an [`AddedCondition`] if both have one.
    pub fn cat(self, other: Self) -> Self {
        let added = self.added.zip(other.added).map(|(a, b)| AddedCondition {
            pooled: Tensor::cat(vec![a.pooled, b.pooled], 0),
            time_ids: Tensor::cat(vec![a.time_ids, b.time_ids], 0),
        });
        Self { text: Tensor::cat(vec![self.text, other.text], 0), added }
    }

    /// Selects a contiguous range of samples.
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

    /// Repeats every sample `times` over.
    pub fn repeat(self, times: usize) -> Self {
        Self {
            text: self.text.repeat_dim(0, times),
            added: self.added.map(|added| AddedCondition {
                pooled: added.pooled.repeat_dim(0, times),
                time_ids: added.time_ids.repeat_dim(0, times),
            }),
        }
    }

    /// Casts text and pooled output to `dtype`. The time ids keep their dtype, since they are pixel counts up
    /// to thousands.
    pub fn cast(self, dtype: impl Into<FloatDType> + Copy) -> Self {
        let added = self
            .added
            .map(|added| AddedCondition { pooled: added.pooled.cast(dtype.into()), ..added });
        Self { text: self.text.cast(dtype.into()), added }
    }
}
