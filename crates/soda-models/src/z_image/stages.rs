//! The stages of the transformer: the layers to tokens, each block, and the layer to latents.
//!
//! The stack has tokens as `[b, 1, n, c]`. Those of text and image lie apart, the image above, until the
//! refiners are through. A stage that changes the text passes the image on.

use burn::module::{Module as _, ModuleVisitor};
use burn::tensor::Tensor;

use super::block::ZImageBlock;
use super::config::PATCH;
use super::model::ZImageTransformer;
use super::sequence::Sequences;
use crate::condition::{Condition, Timestep};
use crate::layers::{project, rms_norm};
use crate::rotary::RotaryEmbedding;
use crate::stages::{
    Shared, Stage, StageInput, StagedDenoiser, Trainable, stacked, tokens, visit_field,
};

/// What all stages read.
#[derive(Debug, Clone)]
pub struct ZImageShared {
    /// The embedding of the timestep, `[b, 1, c]`.
    time: Tensor<3>,
    /// The text's hidden states, `[b, m, d]`.
    hidden_states: Tensor<3>,
    /// The positions of image and text.
    rotary: RotaryEmbedding,
    /// The lengths of image and texts.
    sequences: Sequences,
}

impl Shared for ZImageShared {
    fn map(&self, mut f: impl FnMut(Tensor<3>) -> Tensor<3>) -> Self {
        Self {
            time: f(self.time.clone()),
            hidden_states: f(self.hidden_states.clone()),
            ..self.clone()
        }
    }
}

impl StagedDenoiser for ZImageTransformer {
    type Shared = ZImageShared;
    type Stage<'a> = ZImageStage<'a>;

    fn shared(&self, sample: [usize; 4], timestep: Timestep, condition: Condition) -> ZImageShared {
        let [batch, _, height, width] = sample;
        let Condition { text: hidden_states, lengths, .. } = condition;
        let words = hidden_states.dims()[1];
        let lengths = lengths.unwrap_or_else(|| vec![words; batch]);
        let texts = lengths.into_iter().map(|length| length.min(words)).collect();
        let sequences = Sequences::new([height, width], texts);
        ZImageShared {
            time: self.embed_time(timestep).unsqueeze_dim(1),
            rotary: self.rotary.rotation(&sequences.positions(), &hidden_states.device()),
            hidden_states,
            sequences,
        }
    }

    fn shared_is_trainable(&self) -> bool {
        let mut found = Trainable(false);
        self.t_embedder.visit(&mut found);
        found.0
    }

    fn stages(&self) -> Vec<ZImageStage<'_>> {
        let of_image = self.noise_refiner.iter().enumerate().map(|(i, b)| ZImageStage::Image(i, b));
        let of_text = self.context_refiner.iter().enumerate().map(|(i, b)| ZImageStage::Text(i, b));
        let of_both = self.layers.iter().enumerate().map(|(i, b)| ZImageStage::Both(i, b));
        let apart = std::iter::once(ZImageStage::In(self)).chain(of_image).chain(of_text);
        apart.chain([ZImageStage::Join]).chain(of_both).chain([ZImageStage::Out(self)]).collect()
    }
}

/// A part of the transformer.
#[derive(Debug)]
pub enum ZImageStage<'a> {
    /// The layers from latents and text to tokens, and the padding.
    In(&'a ZImageTransformer),
    /// A block on the image alone, with its index.
    Image(usize, &'a ZImageBlock),
    /// A block on the text alone, with its index.
    Text(usize, &'a ZImageBlock),
    /// The tokens of the image and of the text, one after the other.
    Join,
    /// A block on image and text, with its index.
    Both(usize, &'a ZImageBlock),
    /// The norm and the projection to latents.
    Out(&'a ZImageTransformer),
}

impl Stage for ZImageStage<'_> {
    type Shared = ZImageShared;

    fn take(&self, stack: &mut Vec<Tensor<4>>) -> StageInput {
        StageInput::take(stack, if let Self::Text(..) | Self::Join = self { 2 } else { 1 })
    }

    fn forward(&self, input: StageInput, shared: &ZImageShared) -> Vec<Tensor<4>> {
        let mut tensors = input.tensors.into_iter();
        let mut next = || tensors.next().expect("a stage gets the tensors that it takes");
        let first = next();
        let ZImageShared { time, hidden_states, rotary, sequences } = shared;
        let time = time.clone().squeeze_dim(1);
        let images = sequences.image();
        match self {
            Self::In(network) => {
                let image = project(&network.all_x_embedder.0, patches(first));
                let (norm, embedder) = &network.cap_embedder;
                let (longest, _) = sequences.longest_text();
                let text = rms_norm(norm, hidden_states.clone().narrow(1, 0, longest));
                let text = project(embedder, text);
                vec![
                    stacked(sequences.pad_text(text, network.cap_pad_token.val())),
                    stacked(sequences.pad_image(image, network.x_pad_token.val())),
                ]
            }
            Self::Image(_, block) => {
                let x = tokens(first);
                let lengths = vec![images; x.dims()[0]];
                vec![stacked(block.forward(x, &rotary.tokens(0..images), &lengths, &time))]
            }
            Self::Text(_, block) => {
                let (_, longest) = sequences.longest_text();
                let rotary = rotary.tokens(images..images + longest);
                let lengths = sequences.padded_texts();
                let text = block.forward(tokens(first), &rotary, &lengths, &time);
                vec![stacked(text), next()]
            }
            Self::Join => vec![Tensor::cat(vec![next(), first], 2)],
            Self::Both(_, block) => {
                let texts = sequences.padded_texts();
                let lengths: Vec<usize> = texts.into_iter().map(|text| images + text).collect();
                vec![stacked(block.forward(tokens(first), rotary, &lengths, &time))]
            }
            Self::Out(network) => {
                let image = tokens(first).narrow(1, 0, sequences.pixels());
                let velocity = network.all_final_layer.0.forward(image, &time).neg();
                vec![without_patches(velocity, sequences.grid)]
            }
        }
    }

    fn uses_shared(&self) -> bool {
        // Blocks on the text alone read its length and positions, which are not differentiated.
        !matches!(self, Self::Text(..) | Self::Join)
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        match self {
            Self::In(network) => {
                visit_field("all_x_embedder", &network.all_x_embedder, visitor);
                visit_field("cap_embedder", &network.cap_embedder, visitor);
                visit_field("x_pad_token", &network.x_pad_token, visitor);
                visit_field("cap_pad_token", &network.cap_pad_token, visitor);
            }
            Self::Image(i, block) => visit_field(&format!("noise_refiner.{i}"), *block, visitor),
            Self::Text(i, block) => visit_field(&format!("context_refiner.{i}"), *block, visitor),
            Self::Join => {}
            Self::Both(i, block) => visit_field(&format!("layers.{i}"), *block, visitor),
            Self::Out(network) => visit_field("all_final_layer", &network.all_final_layer, visitor),
        }
    }
}

/// Makes a token of each patch of latents: `[b, c, h, w]` to `[b, h w / 4, 4 c]`, channels innermost.
fn patches(latents: Tensor<4>) -> Tensor<3> {
    let [batch, channels, height, width] = latents.dims();
    let (rows, columns) = (height / PATCH, width / PATCH);
    let split: Tensor<6> = latents.reshape([batch, channels, rows, PATCH, columns, PATCH]);
    split.permute([0, 2, 4, 3, 5, 1]).reshape([batch, rows * columns, PATCH * PATCH * channels])
}

/// The inverse of [`patches`], for an image of `rows` x `columns` tokens.
fn without_patches(tokens: Tensor<3>, [rows, columns]: [usize; 2]) -> Tensor<4> {
    let [batch, _, numbers] = tokens.dims();
    let channels = numbers / (PATCH * PATCH);
    let split: Tensor<6> = tokens.reshape([batch, rows, columns, PATCH, PATCH, channels]);
    split.permute([0, 5, 1, 3, 2, 4]).reshape([batch, channels, rows * PATCH, columns * PATCH])
}
