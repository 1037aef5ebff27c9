//! The captions of a batch: encoded before training, or as tokens for text encoders that are trained.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use soda_models::clip::PromptEmbeds;
use soda_models::condition::{AddedCondition, Condition};
use soda_models::pipeline::{Networks, TokenIds};

/// The captions of some samples, which condition the denoiser.
#[derive(Clone, Debug)]
pub enum Prompts {
    /// Captions that were encoded before the first step.
    Encoded(Condition),
    /// Captions that are encoded in every step.
    Tokens {
        /// The token ids of the captions.
        ids: TokenIds,
        /// SDXL's time ids, `[b, 6]`.
        time_ids: Option<Tensor<2>>,
    },
}

impl From<Condition> for Prompts {
    fn from(condition: Condition) -> Self {
        Self::Encoded(condition)
    }
}

impl From<Tensor<3>> for Prompts {
    fn from(text: Tensor<3>) -> Self {
        Self::Encoded(text.into())
    }
}

impl Prompts {
    /// The samples in this range.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        match self {
            Self::Encoded(condition) => Self::Encoded(condition.rows(rows)),
            Self::Tokens { ids, time_ids } => Self::Tokens {
                ids: ids.rows(rows.clone()),
                time_ids: time_ids.clone().map(|x| x.narrow(0, rows.start, rows.len())),
            },
        }
    }

    /// Whether the samples of `other` can be in the same batch.
    pub(crate) fn can_join(&self, other: &Self) -> bool {
        matches!(self, Self::Encoded(_)) == matches!(other, Self::Encoded(_))
    }

    /// The samples of `self`, then those of `other`, which it [can join](Self::can_join).
    #[must_use]
    pub(crate) fn cat(self, other: Self) -> Self {
        match (self, other) {
            (Self::Encoded(one), Self::Encoded(other)) => Self::Encoded(one.cat(other)),
            (
                Self::Tokens { ids, time_ids },
                Self::Tokens { ids: other_ids, time_ids: other_time_ids },
            ) => Self::Tokens {
                ids: ids.cat(other_ids),
                time_ids: time_ids.zip(other_time_ids).map(|(a, b)| Tensor::cat(vec![a, b], 0)),
            },
            (one, _) => one,
        }
    }

    /// The encoded captions, for tests.
    #[cfg(test)]
    pub(crate) fn encoded(self) -> Option<Condition> {
        match self {
            Self::Encoded(condition) => Some(condition),
            Self::Tokens { .. } => None,
        }
    }

    /// The condition of the denoiser in f32, without gradients. Tokens are encoded.
    ///
    /// # Panics
    /// Panics if these are tokens and `networks` have no text encoder.
    pub(crate) fn condition(&self, networks: &Networks) -> Condition {
        match self {
            Self::Encoded(condition) => condition.clone(),
            Self::Tokens { ids, time_ids } => {
                condition(prompt_embeds(networks, ids), time_ids.clone())
            }
        }
    }
}

/// Applies `f` to each tensor of `condition`, flattened, always in the same order.
pub(crate) fn map_condition(
    condition: &Condition,
    mut f: impl FnMut(Tensor<1>) -> Tensor<1>,
) -> Condition {
    let Condition { text, lengths, added } = condition;
    Condition {
        text: map_flattened(text, &mut f),
        lengths: lengths.clone(),
        added: added.as_ref().map(|added| AddedCondition {
            pooled: map_flattened(&added.pooled, &mut f),
            time_ids: map_flattened(&added.time_ids, &mut f),
        }),
    }
}

/// Applies `f` to `x`, flattened, and restores the shape.
pub(crate) fn map_flattened<const D: usize>(
    x: &Tensor<D>,
    mut f: impl FnMut(Tensor<1>) -> Tensor<1>,
) -> Tensor<D> {
    let dims = x.dims();
    f(x.clone().reshape([dims.iter().product::<usize>()])).reshape(dims)
}

/// Encodes token ids in f32.
///
/// # Panics
/// Panics if `networks` have no text encoder.
pub(crate) fn prompt_embeds(networks: &Networks, ids: &TokenIds) -> PromptEmbeds {
    let PromptEmbeds { hidden, pooled } =
        networks.encode_text(ids).expect("a run with tokens has a text encoder");
    PromptEmbeds { hidden: hidden.cast(DType::F32), pooled: pooled.cast(DType::F32) }
}

/// The condition of the denoiser of encoded captions. `time_ids` are SDXL's.
pub(crate) fn condition(embeds: PromptEmbeds, time_ids: Option<Tensor<2>>) -> Condition {
    let PromptEmbeds { hidden, pooled } = embeds;
    let added = time_ids.map(|time_ids| AddedCondition { pooled, time_ids });
    Condition { text: hidden, lengths: None, added }
}
