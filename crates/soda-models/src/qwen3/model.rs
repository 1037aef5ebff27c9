//! The text encoder: embeddings, the layers that are needed, and the hidden states that are asked for.

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, RmsNorm};
use burn::tensor::{Bool, Device, Int, Tensor};

use super::config::{HiddenStates, Qwen3Config};
use super::layer::DecoderLayer;
use super::norm::norm;
use super::rotary::Rotary;
use crate::layers::rms_norm;

/// The part of a Qwen3 model that its hidden states need, with the keys of a checkpoint.
#[derive(Module, Debug)]
pub struct Qwen3TextModel {
    /// The language model, one level down as in the checkpoint.
    pub model: LanguageModel,
    /// The hidden states that [`forward`](Self::forward) returns. 0 is the embedding of the tokens.
    pub states: Vec<usize>,
    /// The base of the rotary frequencies.
    pub theta: f64,
}

/// Embeddings and layers of the language model.
#[derive(Module, Debug)]
pub struct LanguageModel {
    /// Embedding table of the tokens.
    pub embed_tokens: Embedding,
    /// The layers up to the highest state that is read.
    pub layers: Vec<DecoderLayer>,
    /// Norm of the last state. `None` if that state is not read.
    pub norm: Option<RmsNorm>,
}

impl Qwen3Config {
    /// Makes a text encoder for `states` with random weights. It has the layers that these states need.
    pub fn init(&self, states: &HiddenStates, device: &Device) -> Qwen3TextModel {
        Qwen3TextModel {
            model: LanguageModel::new(self, states, device),
            states: states.indices().to_vec(),
            theta: self.rope_parameters.rope_theta,
        }
    }
}

impl LanguageModel {
    fn new(config: &Qwen3Config, states: &HiddenStates, device: &Device) -> Self {
        let layers = states.layers();
        let last = layers == config.num_hidden_layers;
        Self {
            embed_tokens: EmbeddingConfig::new(config.vocab_size, config.hidden_size).init(device),
            layers: (0..layers).map(|_| DecoderLayer::new(config, device)).collect(),
            norm: last.then(|| norm(config.hidden_size, config, device)),
        }
    }
}

impl Qwen3TextModel {
    /// Encodes token `ids` `[b, n]`. Returns the hidden states, `[b, n, states width]`.
    ///
    /// The states of a token lie one after the other, in the order in which they were asked for. `mask` is
    /// `[b, n]` and false for padding, which no token sees. The padding follows the text, and its own states
    /// are computed as those of other tokens, as in transformers.
    pub fn forward(&self, ids: Tensor<2, Int>, mask: Tensor<2, Bool>) -> Tensor<3> {
        let [batch, tokens] = ids.dims();
        let device = ids.device();
        let mut x = self.model.embed_tokens.forward(ids);
        // True above the diagonal: a token must not see the tokens after it.
        let hidden = Tensor::<2, Bool>::tril_mask([tokens, tokens], 0, &device)
            .unsqueeze::<4>()
            .expand([batch, 1, tokens, tokens])
            .bool_or(
                mask.bool_not().reshape([batch, 1, 1, tokens]).expand([batch, 1, tokens, tokens]),
            );
        let mut states = vec![x.clone()];
        if let Some(first) = self.model.layers.first() {
            let width = first.self_attn.q_norm.gamma.dims()[0];
            let rotary = Rotary::new(tokens, width, self.theta, x.dtype(), &device);
            for layer in &self.model.layers {
                x = layer.forward(x, &rotary, &hidden);
                states.push(x.clone());
            }
        }
        if let (Some(norm), Some(last)) = (&self.model.norm, states.last_mut()) {
            *last = rms_norm(norm, x);
        }
        Tensor::cat(self.states.iter().map(|state| states[*state].clone()).collect(), 2)
    }
}
