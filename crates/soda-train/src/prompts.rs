//! What the network is told of a batch: text states that are ready, or tokens for text encoders that learn.
//!
//! Text encoders have a tape of their own, apart from the UNet's, which may be one a stage (`backward`):
//!
//! ```text
//! c = encode(ids, φ),    g = ∂L/∂c  from the UNet's backward pass,    ∂L/∂φ = ∂⟨encode(ids, φ), g⟩ / ∂φ
//! ```

use std::ops::Range;

use burn::module::Module as _;
use burn::tensor::{DType, Tensor};
use soda_adapters::{Component, leaves};
use soda_models::clip::text::TextStates;
use soda_models::pipeline::{Networks, TextIds};
use soda_models::unet::{AddedCondition, Condition};

use crate::backward::ConditionGradient;
use crate::gradients::AdapterGradients;

/// What the network is told of some samples.
#[derive(Clone, Debug)]
pub enum Prompts {
    /// Read before the first step.
    Read(Condition),
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
        Self::Read(condition)
    }
}

impl From<Tensor<3>> for Prompts {
    fn from(text: Tensor<3>) -> Self {
        Self::Read(text.into())
    }
}

impl Prompts {
    /// Some of the samples.
    #[must_use]
    pub fn rows(&self, rows: Range<usize>) -> Self {
        match self {
            Self::Read(condition) => Self::Read(condition.rows(rows)),
            Self::Tokens { ids, time_ids } => Self::Tokens {
                ids: ids.rows(rows.clone()),
                time_ids: time_ids.clone().map(|x| x.narrow(0, rows.start, rows.len())),
            },
        }
    }

    /// Whether those of `other` can follow in one batch.
    pub(crate) fn fits(&self, other: &Self) -> bool {
        matches!(self, Self::Read(_)) == matches!(other, Self::Read(_))
    }

    /// The samples of `self`, then those of `other`, which [fits](Self::fits).
    #[must_use]
    pub(crate) fn cat(self, other: Self) -> Self {
        match (self, other) {
            (Self::Read(one), Self::Read(other)) => Self::Read(one.cat(other)),
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
            Self::Read(condition) => Some(condition),
            Self::Tokens { .. } => None,
        }
    }

    /// What the text encoders say, off the tape and in f32.
    ///
    /// # Panics
    /// If `networks` have no text encoder for tokens.
    pub(crate) fn condition(&self, networks: &Networks) -> Condition {
        match self {
            Self::Read(condition) => condition.clone(),
            Self::Tokens { ids, time_ids } => condition(states(networks, ids), time_ids.clone()),
        }
    }
}

/// Text states that a backward pass can go on from.
pub(crate) struct Reading {
    /// Off the tape.
    pub(crate) condition: Condition,
    taped: Option<(Networks, TextStates)>,
}

impl Reading {
    /// What `networks` say of `prompts`, on a tape where their text encoders have anything to learn.
    ///
    /// # Panics
    /// If `networks` have no text encoder for tokens.
    pub(crate) fn new(networks: &Networks, prompts: &Prompts) -> Self {
        let untaped = || Self { condition: prompts.condition(networks), taped: None };
        let Prompts::Tokens { ids, time_ids } = prompts else { return untaped() };
        // The UNet is not read here, and stays off this tape.
        let taped = Networks {
            unet: networks.unet.clone(),
            text_encoder: networks.text_encoder.clone().map(|encoder| encoder.train()),
            text_encoder_2: networks.text_encoder_2.clone().map(|encoder| encoder.train()),
        };
        let encoders = [&taped.text_encoder, &taped.text_encoder_2];
        let learns = |encoder| leaves(encoder).iter().any(|leaf| leaf.trainable);
        if !encoders.into_iter().flatten().any(learns) {
            return untaped();
        }
        let states = states(&taped, &ids.clone().on_tape());
        let TextStates { hidden, pooled } = states.clone();
        let untaped = TextStates { hidden: hidden.inner(), pooled: pooled.inner() };
        let condition = condition(untaped, time_ids.clone());
        Self { condition, taped: Some((taped, states)) }
    }

    /// Whether the condition's gradient is of use.
    pub(crate) fn learns(&self) -> bool {
        self.taped.is_some()
    }

    /// Gradients of the text encoders' parameters, from those by the condition.
    pub(crate) fn backward(self, condition: ConditionGradient) -> AdapterGradients {
        let Some((taped, TextStates { hidden, pooled })) = self.taped else {
            return AdapterGradients::default();
        };
        let seeded = (hidden * Tensor::from_inner(condition.text.cast(DType::F32))).sum();
        let seeded = match condition.pooled {
            Some(g) => seeded + (pooled * Tensor::from_inner(g.cast(DType::F32))).sum(),
            None => seeded,
        };
        let grads = seeded.backward();
        [
            (Component::TextEncoder, &taped.text_encoder),
            (Component::TextEncoder2, &taped.text_encoder_2),
        ]
        .into_iter()
        .map(|(component, encoder)| AdapterGradients::collect(encoder, &grads).within(component))
        .fold(AdapterGradients::default(), std::ops::Add::add)
    }
}

/// What the text encoders say, in f32.
fn states(networks: &Networks, ids: &TextIds) -> TextStates {
    let TextStates { hidden, pooled } =
        networks.read(ids).expect("whoever trains on tokens has a text encoder");
    TextStates { hidden: hidden.cast(DType::F32), pooled: pooled.cast(DType::F32) }
}

fn condition(states: TextStates, time_ids: Option<Tensor<2>>) -> Condition {
    let TextStates { hidden, pooled } = states;
    let added = time_ids.map(|time_ids| AddedCondition { pooled, time_ids });
    Condition { text: hidden, added }
}
