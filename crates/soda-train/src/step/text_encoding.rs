//! Text encoders that learn, and their gradients.
//!
//! Text encoders have a tape of their own, apart from the UNet's, which may be one a stage (`backward`):
//!
//! ```text
//! c = encode(ids, φ),    g = ∂L/∂c  from the UNet's backward pass,    ∂L/∂φ = ∂⟨encode(ids, φ), g⟩ / ∂φ
//! ```

use burn::module::Module as _;
use burn::tensor::{DType, Tensor};
use soda_adapters::{Component, leaves};
use soda_models::clip::text::TextStates;
use soda_models::pipeline::Networks;
use soda_models::unet::Condition;

use crate::data::prompts::{Prompts, condition, states};
use crate::step::backward::ConditionGradient;
use crate::step::gradients::AdapterGradients;

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
