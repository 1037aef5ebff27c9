//! Text encoders that are trained, and their gradients.
//!
//! Text encoders have their own tape, apart from the denoiser's, which may be one tape for each stage
//! ([`backward`](crate::step::backward)). With the condition `c` and the text encoders' parameters `φ`:
//!
//! ```text
//! c = encode(ids, φ),    g = ∂L/∂c  from the denoiser's backward pass,    ∂L/∂φ = ∂⟨encode(ids, φ), g⟩ / ∂φ
//! ```

use burn::module::Module as _;
use burn::tensor::{DType, Tensor};
use soda_adapters::named_params;
use soda_models::clip::PromptEmbeds;
use soda_models::condition::Condition;
use soda_models::pipeline::Networks;
use soda_optim::AdapterGradients;
use soda_pipeline::Component;

use crate::data::prompts::{Prompts, condition, prompt_embeds};
use crate::step::backward::ConditionGradient;

/// Encoded prompts, with the tape of the text encoders where these are trained.
pub(crate) struct TextEncoding {
    /// The condition, off the tape.
    pub(crate) condition: Condition,
    tape: Option<(Networks, PromptEmbeds)>,
}

impl TextEncoding {
    /// Encodes `prompts`, on a tape if a text encoder of `networks` has trainable parameters.
    ///
    /// # Panics
    /// If `prompts` are tokens and `networks` have no text encoder.
    pub(crate) fn new(networks: &Networks, prompts: &Prompts) -> Self {
        let without_tape = || Self { condition: prompts.condition(networks), tape: None };
        let Prompts::Tokens { ids, time_ids } = prompts else { return without_tape() };
        // The denoiser encodes no text and stays off this tape.
        let on_tape = Networks {
            denoiser: networks.denoiser.clone(),
            text_encoder: networks.text_encoder.clone().map(|encoder| encoder.train()),
            text_encoder_2: networks.text_encoder_2.clone().map(|encoder| encoder.train()),
        };
        let encoders = [&on_tape.text_encoder, &on_tape.text_encoder_2];
        let is_trained = |encoder| named_params(encoder).iter().any(|param| param.trainable);
        if !encoders.into_iter().flatten().any(is_trained) {
            return without_tape();
        }
        let states = prompt_embeds(&on_tape, &ids.clone().autodiff());
        let PromptEmbeds { hidden, pooled } = states.clone();
        let plain = PromptEmbeds { hidden: hidden.inner(), pooled: pooled.inner() };
        let condition = condition(plain, time_ids.clone());
        Self { condition, tape: Some((on_tape, states)) }
    }

    /// Whether [`TextEncoding::backward`] needs the gradient by the condition.
    pub(crate) fn needs_gradient(&self) -> bool {
        self.tape.is_some()
    }

    /// The gradients by the text encoders' parameters, from the gradient by the condition.
    pub(crate) fn backward(self, condition: ConditionGradient) -> AdapterGradients {
        let Some((on_tape, PromptEmbeds { hidden, pooled })) = self.tape else {
            return AdapterGradients::default();
        };
        let seeded = (hidden * Tensor::from_inner(condition.text.cast(DType::F32))).sum();
        let seeded = match condition.pooled {
            Some(g) => seeded + (pooled * Tensor::from_inner(g.cast(DType::F32))).sum(),
            None => seeded,
        };
        let grads = seeded.backward();
        [
            (Component::TextEncoder, &on_tape.text_encoder),
            (Component::TextEncoder2, &on_tape.text_encoder_2),
        ]
        .into_iter()
        .map(|(component, encoder)| {
            AdapterGradients::collect(encoder, &grads).with_prefix(component.name())
        })
        .fold(AdapterGradients::default(), std::ops::Add::add)
    }
}
