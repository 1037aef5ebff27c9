//! The stages of the transformer: the projections to tokens, each block, and the projection to latents.
//!
//! The stack has tokens as `[b, 1, n, c]`. Those of text and image lie apart until the last double block.

use burn::module::{Module as _, ModuleVisitor};
use burn::tensor::Tensor;

use super::double_block::{DoubleBlock, DoubleModulation, Streams};
use super::model::{Flux2Transformer, positions};
use super::modulation::LayerModulation;
use super::single_block::SingleBlock;
use crate::condition::{Condition, Timestep};
use crate::layers::project;
use crate::rotary::RotaryEmbedding;
use crate::stages::{
    Shared, Stage, StageInput, StagedDenoiser, Trainable, stacked, tokens, visit_field,
};

/// What all stages read.
#[derive(Debug, Clone)]
pub struct Flux2Shared {
    /// The embedding of the timestep after its silu, `[b, 1, c]`.
    time: Tensor<3>,
    /// Modulation of the image in double blocks, `[b, 1, 6 c]`.
    image: Tensor<3>,
    /// Modulation of the text in double blocks, `[b, 1, 6 c]`.
    text: Tensor<3>,
    /// Modulation of single blocks, `[b, 1, 3 c]`.
    single: Tensor<3>,
    /// The text's hidden states, `[b, m, d]`.
    hidden_states: Tensor<3>,
    /// The positions of text and image.
    rotary: RotaryEmbedding,
    /// Height and width of the latents.
    size: [usize; 2],
}

impl Shared for Flux2Shared {
    fn map(&self, mut f: impl FnMut(Tensor<3>) -> Tensor<3>) -> Self {
        Self {
            time: f(self.time.clone()),
            image: f(self.image.clone()),
            text: f(self.text.clone()),
            single: f(self.single.clone()),
            hidden_states: f(self.hidden_states.clone()),
            ..self.clone()
        }
    }
}

impl StagedDenoiser for Flux2Transformer {
    type Shared = Flux2Shared;
    type Stage<'a> = Flux2Stage<'a>;

    fn shared(&self, sample: [usize; 4], timestep: Timestep, condition: Condition) -> Flux2Shared {
        let hidden_states = condition.text;
        let [_, _, height, width] = sample;
        let words = hidden_states.dims()[1];
        let time = self.embed_time(timestep);
        Flux2Shared {
            image: self.double_stream_modulation_img.forward(&time),
            text: self.double_stream_modulation_txt.forward(&time),
            single: self.single_stream_modulation.forward(&time),
            rotary: self
                .rotary
                .rotation(&[positions(words, [height, width])], &hidden_states.device()),
            time: time.unsqueeze_dim(1),
            hidden_states,
            size: [height, width],
        }
    }

    fn shared_is_trainable(&self) -> bool {
        let mut found = Trainable(false);
        self.time_guidance_embed.visit(&mut found);
        self.double_stream_modulation_img.visit(&mut found);
        self.double_stream_modulation_txt.visit(&mut found);
        self.single_stream_modulation.visit(&mut found);
        found.0
    }

    fn stages(&self) -> Vec<Flux2Stage<'_>> {
        let (double, single) = (&self.transformer_blocks, &self.single_transformer_blocks);
        let double = double.iter().enumerate().map(|(i, block)| Flux2Stage::Double(i, block));
        let single = single.iter().enumerate().map(|(i, block)| Flux2Stage::Single(i, block));
        let all = std::iter::once(Flux2Stage::In(self)).chain(double).chain([Flux2Stage::Join]);
        all.chain(single).chain([Flux2Stage::Out(self)]).collect()
    }
}

/// A part of the transformer.
#[derive(Debug)]
pub enum Flux2Stage<'a> {
    /// The projections of latents and text to tokens.
    In(&'a Flux2Transformer),
    /// A double block with its index.
    Double(usize, &'a DoubleBlock),
    /// The tokens of the text and of the image, one after the other.
    Join,
    /// A single block with its index.
    Single(usize, &'a SingleBlock),
    /// The norm and the projection to latents.
    Out(&'a Flux2Transformer),
}

impl Stage for Flux2Stage<'_> {
    type Shared = Flux2Shared;

    fn take(&self, stack: &mut Vec<Tensor<4>>) -> StageInput {
        StageInput::take(stack, if let Self::Double(..) | Self::Join = self { 2 } else { 1 })
    }

    fn forward(&self, input: StageInput, shared: &Flux2Shared) -> Vec<Tensor<4>> {
        let mut tensors = input.tensors.into_iter();
        let mut next = || tensors.next().expect("a stage gets the tensors that it takes");
        let first = next();
        match self {
            Self::In(network) => {
                let [batch, channels, height, width] = first.dims();
                let tokens = first.reshape([batch, channels, height * width]).swap_dims(1, 2);
                let text = project(&network.context_embedder, shared.hidden_states.clone());
                vec![stacked(text), stacked(project(&network.x_embedder, tokens))]
            }
            Self::Double(_, block) => {
                let modulation = DoubleModulation {
                    image: LayerModulation::split(&shared.image),
                    text: LayerModulation::split(&shared.text),
                };
                let streams = Streams { text: tokens(first), image: tokens(next()) };
                let Streams { image, text } = block.forward(streams, &modulation, &shared.rotary);
                vec![stacked(text), stacked(image)]
            }
            Self::Join => vec![Tensor::cat(vec![first, next()], 2)],
            Self::Single(_, block) => {
                let [modulation] = LayerModulation::split(&shared.single);
                vec![stacked(block.forward(tokens(first), &modulation, &shared.rotary))]
            }
            Self::Out(network) => {
                let ([batch, _, all, _], [height, width]) = (first.dims(), shared.size);
                let pixels = height * width;
                let image = tokens(first).narrow(1, all - pixels, pixels);
                let time = shared.time.clone().squeeze_dim(1);
                let x = network.norm_out.forward(image, &time, network.eps);
                let x = project(&network.proj_out, x).swap_dims(1, 2);
                let channels = x.dims()[1];
                vec![x.reshape([batch, channels, height, width])]
            }
        }
    }

    fn uses_shared(&self) -> bool {
        !matches!(self, Self::Join)
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        match self {
            Self::In(network) => {
                visit_field("x_embedder", &network.x_embedder, visitor);
                visit_field("context_embedder", &network.context_embedder, visitor);
            }
            Self::Double(i, block) => {
                visit_field(&format!("transformer_blocks.{i}"), *block, visitor)
            }
            Self::Join => {}
            Self::Single(i, block) => {
                visit_field(&format!("single_transformer_blocks.{i}"), *block, visitor);
            }
            Self::Out(network) => {
                visit_field("norm_out", &network.norm_out, visitor);
                visit_field("proj_out", &network.proj_out, visitor);
            }
        }
    }
}
