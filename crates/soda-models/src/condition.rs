//! The inputs of a denoiser beside the noisy latents: the timestep and the text.

use std::ops::Range;

use burn::tensor::{FloatDType, Int, Tensor};

use crate::layers::padded;

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
    /// The number of tokens of each sample, `b` numbers up to `m`. The rest is padding that the denoiser does
    /// not see. `None` for models that see all `m` tokens.
    pub lengths: Option<Vec<usize>>,
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
        Self { text, lengths: None, added: None }
    }
}

impl Condition {
    /// Concatenates the samples of `self` and of `other`, in this order. See
    /// [`Condition::cat_texts`].
    pub fn cat(self, other: Self) -> Self {
        let added = self.added.clone().zip(other.added.clone()).map(|(a, b)| AddedCondition {
            pooled: Tensor::cat(vec![a.pooled, b.pooled], 0),
            time_ids: Tensor::cat(vec![a.time_ids, b.time_ids], 0),
        });
        Self { added, ..Self::cat_texts(vec![self, other]) }
    }

    /// Concatenates the texts of all `conditions`, of which there is at least one, without additions.
    ///
    /// All conditions must belong to one model. Those of fewer tokens are padded with zeros.
    pub fn cat_texts(conditions: Vec<Self>) -> Self {
        let tokens = conditions.iter().map(|condition| condition.text.dims()[1]).max();
        let tokens = tokens.unwrap_or(0);
        let (mut texts, mut lengths) = (Vec::new(), Some(Vec::new()));
        for condition in conditions {
            texts.push(padded(condition.text, tokens));
            lengths = lengths.zip(condition.lengths).map(|(mut all, more)| {
                all.extend(more);
                all
            });
        }
        Self { text: Tensor::cat(texts, 0), lengths, added: None }
    }

    /// Selects a contiguous range of samples.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let (start, length) = (rows.start, rows.len());
        Self {
            text: self.text.clone().narrow(0, start, length),
            lengths: self.lengths.as_ref().map(|lengths| lengths[rows].to_vec()),
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
            lengths: self.lengths.map(|lengths| lengths.repeat(times)),
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
        Self { text: self.text.cast(dtype.into()), added, ..self }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::noise::randn;

    #[test]
    fn texts_of_different_lengths_are_padded_when_they_are_joined() {
        let device = Device::default();
        let text = |stream, samples, tokens| randn::<3>(0, stream, [samples, tokens, 2], &device);
        let condition = |stream, lengths: Vec<usize>| Condition {
            text: text(stream, lengths.len(), lengths.iter().copied().max().unwrap_or(0)),
            lengths: Some(lengths),
            added: None,
        };
        let both = condition(0, vec![2]).repeat(2).cat(condition(1, vec![5, 3]));
        assert_eq!(both.text.dims(), [4, 5, 2]);
        assert_eq!(both.lengths, Some(vec![2, 2, 5, 3]));
        let rows = both.rows(1..3);
        assert_eq!(rows.lengths, Some(vec![2, 5]));
        let values = |x: Tensor<3>| x.into_data().iter::<f32>().collect::<Vec<_>>();
        let padding = values(rows.text.clone().narrow(0, 0, 1).narrow(1, 2, 3));
        assert_eq!(padding, [0.0; 6]);
        assert_eq!(values(rows.text.narrow(0, 1, 1)), values(text(1, 2, 5).narrow(0, 0, 1)));
        // All tokens of a text without lengths are seen, so that the other one's do not matter.
        let all = Condition::from(text(0, 1, 2)).cat(Condition::from(text(1, 1, 2)));
        assert_eq!((all.lengths, all.text.dims()), (None, [2, 2, 2]));
    }
}
