//! The UNet as a sequence of segments, for gradient checkpointing.
//!
//! ```text
//! h_0 = sample,    h_{i+1} = segment_i(h_i, skip_i, time, text)
//! ```
//!
//! Skip connections are a stack: a segment of a down block pushes its output, and a segment of an up block
//! pops one. A caller that acts between the segments, for example frees activations, walks the list itself.
//! [`Unet::forward`] walks it without further action.

use burn::module::{Module, ModuleVisitor};
use burn::nn::GroupNorm;
use burn::nn::conv::Conv2d;
use burn::tensor::Tensor;
use soda_kernels::{concat_channels, conv2d, group_norm};

use crate::unet::model::Unet;
use crate::unet::resnet::{Downsample, ResnetBlock, Upsample};
use crate::unet::trainable::Trainable;
use crate::unet::transformer::SpatialTransformer;

/// A part of the UNet between two feature maps, such as one residual block with its transformer.
pub struct Segment<'a> {
    kind: SegmentKind<'a>,
    /// Whether the output is pushed onto the stack of skip connections.
    pushes_skip: bool,
}

/// The inputs of a segment beside time and text.
#[derive(Debug, Clone)]
pub struct SegmentInput {
    /// The output of the segment before, `[b, c, h, w]`.
    pub hidden: Tensor<4>,
    /// The skip connection, `[b, c', h, w]`.
    pub skip: Option<Tensor<4>>,
    /// Height and width of the output of an upsampling segment.
    size: Option<[usize; 2]>,
}

impl SegmentInput {
    /// Applies `f` to the hidden state and to the skip connection.
    #[must_use]
    pub fn map(self, f: impl Fn(Tensor<4>) -> Tensor<4>) -> Self {
        Self { hidden: f(self.hidden), skip: self.skip.map(&f), size: self.size }
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

impl Unet {
    /// All segments, in the order of the forward pass.
    pub fn segments(&self) -> Vec<Segment<'_>> {
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

impl Segment<'_> {
    /// Makes the segment's input from `hidden`. An up block's segment pops its skip connection from `skips`.
    pub fn input(&self, hidden: Tensor<4>, skips: &mut Vec<Tensor<4>>) -> SegmentInput {
        let pops_skip = matches!(self.kind, SegmentKind::Block { pops_skip: true, .. });
        let upsamples = matches!(self.kind, SegmentKind::Up(_));
        let skip = if pops_skip { skips.pop() } else { None };
        // The size is not always twice the input's, since downsampling may have rounded.
        let size = skips.last().filter(|_| upsamples).map(|next| [next.dims()[2], next.dims()[3]]);
        SegmentInput { hidden, skip, size }
    }

    /// Computes the segment. Returns the next feature map, `[b, c', h', w']`.
    ///
    /// `time` `[b, e]` is the result of [`Unet::embed_time`], and `text` `[b, m, d]` are the text's hidden
    /// states.
    pub fn forward(&self, input: SegmentInput, time: &Tensor<2>, text: &Tensor<3>) -> Tensor<4> {
        let SegmentInput { hidden, skip, size } = input;
        match &self.kind {
            SegmentKind::In(conv) => conv2d(conv.module, hidden),
            SegmentKind::Block { resnet, attention, .. } => {
                let x = match skip {
                    Some(skip) => concat_channels(hidden, skip),
                    None => hidden,
                };
                let x = resnet.module.forward(x, Some(time));
                match attention {
                    Some(attention) => attention.module.forward(x, text),
                    None => x,
                }
            }
            SegmentKind::Down(layer) => layer.module.forward(hidden),
            SegmentKind::Up(layer) => {
                let [_, _, height, width] = hidden.dims();
                layer.module.forward(hidden, size.unwrap_or([2 * height, 2 * width]))
            }
            SegmentKind::Out(norm, conv) => {
                conv2d(conv.module, group_norm(norm.module, hidden, true))
            }
        }
    }

    /// Whether the output is a skip connection of a later segment. The caller then pushes the output onto
    /// `skips`.
    pub fn pushes_skip(&self) -> bool {
        self.pushes_skip
    }

    /// Whether the output depends on the timestep.
    pub fn uses_time(&self) -> bool {
        matches!(self.kind, SegmentKind::Block { .. })
    }

    /// Whether the output depends on the text.
    pub fn uses_text(&self) -> bool {
        matches!(self.kind, SegmentKind::Block { attention: Some(_), .. })
    }

    /// Visits the segment's parameters under their paths in the UNet.
    pub fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
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

    /// Whether a parameter of the segment requires a gradient. Without autodiff no parameter does.
    pub fn is_trainable(&self) -> bool {
        let mut found = Trainable(false);
        self.visit(&mut found);
        found.0
    }
}

impl<M: Module> Named<'_, M> {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        visitor.enter_module(&self.path, "");
        self.module.visit(visitor);
        visitor.exit_module(&self.path, "");
    }
}
