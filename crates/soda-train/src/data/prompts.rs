//! What the network is told of a batch: text states that are ready, or tokens for text encoders that learn.

use std::ops::Range;

use burn::tensor::{DType, Tensor};
use soda_models::clip::text::TextStates;
use soda_models::pipeline::{Networks, TextIds};
use soda_models::unet::{AddedCondition, Condition};

/// What the network is told of some samples.
#[derive(Clone, Debug)]
pub enum Prompts {
    /// Read before the first step.
    Encoded(Condition),
    /// To be read in every step.
    Tokens {
        /// Tokens of the captions.
        ids: TextIds,
        /// SDXL's sizes and crops, `[b, 6]`.
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
    /// Some of the samples.
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

    /// Whether those of `other` can follow in one batch.
    pub(crate) fn fits(&self, other: &Self) -> bool {
        matches!(self, Self::Encoded(_)) == matches!(other, Self::Encoded(_))
    }

    /// The samples of `self`, then those of `other`, which [fits](Self::fits).
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

    /// What is read, for a test.
    #[cfg(test)]
    pub(crate) fn ready(self) -> Option<Condition> {
        match self {
            Self::Encoded(condition) => Some(condition),
            Self::Tokens { .. } => None,
        }
    }

    /// What the text encoders say, off the tape and in f32.
    ///
    /// # Panics
    /// If `networks` have no text encoder for tokens.
    pub(crate) fn condition(&self, networks: &Networks) -> Condition {
        match self {
            Self::Encoded(condition) => condition.clone(),
            Self::Tokens { ids, time_ids } => condition(states(networks, ids), time_ids.clone()),
        }
    }
}

/// Every tensor of `condition` through `f`, flat, in one order.
pub(crate) fn map_condition(
    condition: &Condition,
    mut f: impl FnMut(Tensor<1>) -> Tensor<1>,
) -> Condition {
    let Condition { text, added } = condition;
    Condition {
        text: through(text, &mut f),
        added: added.as_ref().map(|added| AddedCondition {
            pooled: through(&added.pooled, &mut f),
            time_ids: through(&added.time_ids, &mut f),
        }),
    }
}

/// `x` through `f`, flat.
pub(crate) fn through<const D: usize>(
    x: &Tensor<D>,
    mut f: impl FnMut(Tensor<1>) -> Tensor<1>,
) -> Tensor<D> {
    let dims = x.dims();
    f(x.clone().reshape([dims.iter().product::<usize>()])).reshape(dims)
}

/// What the text encoders say, in f32.
pub(crate) fn states(networks: &Networks, ids: &TextIds) -> TextStates {
    let TextStates { hidden, pooled } =
        networks.read(ids).expect("whoever trains on tokens has a text encoder");
    TextStates { hidden: hidden.cast(DType::F32), pooled: pooled.cast(DType::F32) }
}

pub(crate) fn condition(states: TextStates, time_ids: Option<Tensor<2>>) -> Condition {
    let TextStates { hidden, pooled } = states;
    let added = time_ids.map(|time_ids| AddedCondition { pooled, time_ids });
    Condition { text: hidden, added }
}
