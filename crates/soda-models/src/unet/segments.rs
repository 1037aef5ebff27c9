//! The stages of the UNet.
//!
//! Skip connections wait on the stack: a segment of a down block puts its output there twice, and a segment
//! of an up block takes two tensors.

use burn::module::{Module, ModuleVisitor};
use burn::nn::GroupNorm;
use burn::nn::conv::Conv2d;
use burn::tensor::Tensor;
use soda_kernels::{concat_channels, conv2d, group_norm};

use crate::condition::{Condition, Timestep};
use crate::stages::{Shared, Stage, StageInput, StagedDenoiser};
use crate::unet::model::Unet;
use crate::unet::resnet::{Downsample, ResnetBlock, Upsample};
use crate::unet::transformer::SpatialTransformer;

/// A part of the UNet between two feature maps, such as one residual block with its transformer.
pub struct Segment<'a> {
    kind: SegmentKind<'a>,
    /// Whether the output is also a skip connection of a later segment.
    pushes_skip: bool,
}

/// What all segments read.
#[derive(Debug, Clone)]
pub struct UnetShared {
    /// The embedding of the timestep after its silu, `[b, 1, e]`.
    time: Tensor<3>,
    /// The text's hidden states, `[b, m, d]`.
    text: Tensor<3>,
}

impl Shared for UnetShared {
    fn map(&self, mut f: impl FnMut(Tensor<3>) -> Tensor<3>) -> Self {
        Self { time: f(self.time.clone()), text: f(self.text.clone()) }
    }
}

/// A module with its path in the UNet.
struct Named<'a, M> {
    path: String,
    module: &'a M,
}

enum SegmentKind<'a> {
    In(Named<'a, Conv2d>),
    Block {
        resnet: Named<'a, ResnetBlock>,
        attention: Option<Named<'a, SpatialTransformer>>,
        /// Whether a skip connection is concatenated first.
        pops_skip: bool,
    },
    Down(Named<'a, Downsample>),
    Up(Named<'a, Upsample>),
    Out(Named<'a, GroupNorm>, Named<'a, Conv2d>),
}

impl StagedDenoiser for Unet {
    type Shared = UnetShared;
    type Stage<'a> = Segment<'a>;

    #[track_caller]
    fn shared(&self, _sample: [usize; 4], timestep: Timestep, condition: Condition) -> UnetShared {
        let Condition { text, added, .. } = condition;
        UnetShared { time: self.embed_time(timestep, added).unsqueeze_dim(1), text }
    }

    fn shared_is_trainable(&self) -> bool {
        self.time_embedding_is_trainable()
    }

    fn stages(&self) -> Vec<Segment<'_>> {
        let conv_in = Named { path: "conv_in".to_owned(), module: &self.conv_in };
        let mut segments = vec![Segment { kind: SegmentKind::In(conv_in), pushes_skip: true }];
        for (i, block) in self.down_blocks.iter().enumerate() {
            let path = format!("down_blocks.{i}");
            segments.extend(blocks(&path, &block.resnets, &block.attentions, false, true));
            if let Some(downsample) = block.downsamplers.first() {
                let named = Named { path: format!("{path}.downsamplers.0"), module: downsample };
                segments.push(Segment { kind: SegmentKind::Down(named), pushes_skip: true });
            }
        }
        let mid = &self.mid_block;
        segments.extend(blocks("mid_block", &mid.resnets, &mid.attentions, false, false));
        for (i, block) in self.up_blocks.iter().enumerate() {
            let path = format!("up_blocks.{i}");
            segments.extend(blocks(&path, &block.resnets, &block.attentions, true, false));
            if let Some(upsample) = block.upsamplers.first() {
                let named = Named { path: format!("{path}.upsamplers.0"), module: upsample };
                segments.push(Segment { kind: SegmentKind::Up(named), pushes_skip: false });
            }
        }
        let norm = Named { path: "conv_norm_out".to_owned(), module: &self.conv_norm_out };
        let conv = Named { path: "conv_out".to_owned(), module: &self.conv_out };
        segments.push(Segment { kind: SegmentKind::Out(norm, conv), pushes_skip: false });
        segments
    }
}

/// The segments of residual blocks, each with the transformer after it if there is one.
fn blocks<'a>(
    path: &str,
    resnets: &'a [ResnetBlock],
    attentions: &'a [SpatialTransformer],
    pops_skip: bool,
    pushes_skip: bool,
) -> impl Iterator<Item = Segment<'a>> {
    resnets.iter().enumerate().map(move |(i, module)| {
        let attention = attentions.get(i);
        let attention =
            attention.map(|module| Named { path: format!("{path}.attentions.{i}"), module });
        let resnet = Named { path: format!("{path}.resnets.{i}"), module };
        Segment { kind: SegmentKind::Block { resnet, attention, pops_skip }, pushes_skip }
    })
}

impl Stage for Segment<'_> {
    type Shared = UnetShared;

    fn take(&self, stack: &mut Vec<Tensor<4>>) -> StageInput {
        let pops_skip = matches!(self.kind, SegmentKind::Block { pops_skip: true, .. });
        let mut input = StageInput::take(stack, 1 + usize::from(pops_skip));
        if let SegmentKind::Up(_) = self.kind {
            // The size is not always twice the input's, since downsampling may have rounded.
            input.size = stack.last().map(|next| [next.dims()[2], next.dims()[3]]);
        }
        input
    }

    fn forward(&self, input: StageInput, shared: &UnetShared) -> Vec<Tensor<4>> {
        let StageInput { tensors, size } = input;
        let x = tensors.into_iter().rev().reduce(concat_channels);
        let x = x.expect("a segment has an input");
        let x = match &self.kind {
            SegmentKind::In(conv) => conv2d(conv.module, x),
            SegmentKind::Block { resnet, attention, .. } => {
                let time: Tensor<2> = shared.time.clone().squeeze_dim(1);
                let x = resnet.module.forward(x, Some(&time));
                match attention {
                    Some(attention) => attention.module.forward(x, &shared.text),
                    None => x,
                }
            }
            SegmentKind::Down(layer) => layer.module.forward(x),
            SegmentKind::Up(layer) => {
                let [_, _, height, width] = x.dims();
                layer.module.forward(x, size.unwrap_or([2 * height, 2 * width]))
            }
            SegmentKind::Out(norm, conv) => conv2d(conv.module, group_norm(norm.module, x, true)),
        };
        if self.pushes_skip { vec![x.clone(), x] } else { vec![x] }
    }

    fn uses_shared(&self) -> bool {
        matches!(self.kind, SegmentKind::Block { .. })
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        match &self.kind {
            SegmentKind::In(conv) => conv.visit(visitor),
            SegmentKind::Block { resnet, attention, .. } => {
                resnet.visit(visitor);
                attention.iter().for_each(|attention| attention.visit(visitor));
            }
            SegmentKind::Down(layer) => layer.visit(visitor),
            SegmentKind::Up(layer) => layer.visit(visitor),
            SegmentKind::Out(norm, conv) => {
                norm.visit(visitor);
                conv.visit(visitor);
            }
        }
    }
}

impl<M: Module> Named<'_, M> {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visitor.enter_module(&self.path, "");
        self.module.visit(visitor);
        visitor.exit_module(&self.path, "");
    }
}
