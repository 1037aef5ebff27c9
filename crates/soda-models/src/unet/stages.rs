//! The UNet as a list: what it does, in order, each stage with as little between it and the next as there is.
//!
//! ```text
//! h_0 = sample,    h_{i+1} = stage_i(h_i, skip_i, time, text)
//! ```
//!
//! The maps that the way up joins are a stack: a stage of the way down leaves its output there, one of the way up takes
//! the last. Whoever wants to do something between the stages, such as forget what they computed, walks the list
//! itself; [`Unet::forward`] is the walk without anything between.

use burn::module::{Module, ModuleVisitor, Param};
use burn::nn::GroupNorm;
use burn::nn::conv::Conv2d;
use burn::tensor::Tensor;
use soda_kernels::{conv2d, group_norm, join};

use crate::unet::Unet;
use crate::unet::resnet::{Downsample, ResnetBlock, Upsample};
use crate::unet::transformer::SpatialTransformer;

/// A part of the UNet between two feature maps.
pub struct Stage<'a> {
    work: Work<'a>,
    /// Whether its output goes to the way up as well.
    leaves: bool,
}

/// What a stage reads beside the map before it.
#[derive(Debug, Clone)]
pub struct StageInput {
    /// The map before it, `[b, c, h, w]`.
    pub hidden: Tensor<4>,
    /// The map that it joins, `[b, c', h, w]`.
    pub skip: Option<Tensor<4>>,
    /// Height and width to grow to, where it changes the resolution upwards.
    size: Option<[usize; 2]>,
}

impl StageInput {
    /// The same with `f` of each map.
    #[must_use]
    pub fn each(self, f: impl Fn(Tensor<4>) -> Tensor<4>) -> Self {
        Self { hidden: f(self.hidden), skip: self.skip.map(&f), size: self.size }
    }
}

/// A module and its path in the UNet.
struct Named<'a, M> {
    path: String,
    module: &'a M,
}

enum Work<'a> {
    In(Named<'a, Conv2d>),
    Block {
        resnet: Named<'a, ResnetBlock>,
        attention: Option<Named<'a, SpatialTransformer>>,
        /// Whether a map of the way down is joined first.
        joins: bool,
    },
    Down(Named<'a, Downsample>),
    Up(Named<'a, Upsample>),
    Out(Named<'a, GroupNorm>, Named<'a, Conv2d>),
}

impl Unet {
    /// All stages, in order.
    pub fn stages(&self) -> Vec<Stage<'_>> {
        let conv_in = Named { path: "conv_in".to_owned(), module: &self.conv_in };
        let mut stages = vec![Stage { work: Work::In(conv_in), leaves: true }];
        for (i, block) in self.down_blocks.iter().enumerate() {
            let path = format!("down_blocks.{i}");
            stages.extend(blocks(&path, &block.resnets, &block.attentions, false, true));
            if let Some(downsample) = block.downsamplers.first() {
                let named = Named { path: format!("{path}.downsamplers.0"), module: downsample };
                stages.push(Stage { work: Work::Down(named), leaves: true });
            }
        }
        let mid = &self.mid_block;
        stages.extend(blocks("mid_block", &mid.resnets, &mid.attentions, false, false));
        for (i, block) in self.up_blocks.iter().enumerate() {
            let path = format!("up_blocks.{i}");
            stages.extend(blocks(&path, &block.resnets, &block.attentions, true, false));
            if let Some(upsample) = block.upsamplers.first() {
                let named = Named { path: format!("{path}.upsamplers.0"), module: upsample };
                stages.push(Stage { work: Work::Up(named), leaves: false });
            }
        }
        let norm = Named { path: "conv_norm_out".to_owned(), module: &self.conv_norm_out };
        let conv = Named { path: "conv_out".to_owned(), module: &self.conv_out };
        stages.push(Stage { work: Work::Out(norm, conv), leaves: false });
        stages
    }
}

/// Residual blocks, each with the transformer after it, where there is one.
fn blocks<'a>(
    path: &str,
    resnets: &'a [ResnetBlock],
    attentions: &'a [SpatialTransformer],
    joins: bool,
    leaves: bool,
) -> impl Iterator<Item = Stage<'a>> {
    resnets.iter().enumerate().map(move |(i, module)| {
        let attention = attentions.get(i);
        let attention =
            attention.map(|module| Named { path: format!("{path}.attentions.{i}"), module });
        let resnet = Named { path: format!("{path}.resnets.{i}"), module };
        Stage { work: Work::Block { resnet, attention, joins }, leaves }
    })
}

impl Stage<'_> {
    /// Its input: `hidden`, and what it takes from the `skips` of the stages before.
    pub fn input(&self, hidden: Tensor<4>, skips: &mut Vec<Tensor<4>>) -> StageInput {
        let joins = matches!(self.work, Work::Block { joins: true, .. });
        let grows = matches!(self.work, Work::Up(_));
        let skip = if joins { skips.pop() } else { None };
        // Not always twice the size: the way down may have rounded.
        let size = skips.last().filter(|_| grows).map(|next| [next.dims()[2], next.dims()[3]]);
        StageInput { hidden, skip, size }
    }

    /// The next map, `[b, c', h', w']`. `time`: `[b, e]`, of [`Unet::embed_time`]; `text`: `[b, m, d]`.
    pub fn forward(&self, input: StageInput, time: &Tensor<2>, text: &Tensor<3>) -> Tensor<4> {
        let StageInput { hidden, skip, size } = input;
        match &self.work {
            Work::In(conv) => conv2d(conv.module, hidden),
            Work::Block { resnet, attention, .. } => {
                let x = match skip {
                    Some(skip) => join(hidden, skip),
                    None => hidden,
                };
                let x = resnet.module.forward(x, Some(time));
                match attention {
                    Some(attention) => attention.module.forward(x, text),
                    None => x,
                }
            }
            Work::Down(layer) => layer.module.forward(hidden),
            Work::Up(layer) => {
                let [_, _, height, width] = hidden.dims();
                layer.module.forward(hidden, size.unwrap_or([2 * height, 2 * width]))
            }
            Work::Out(norm, conv) => conv2d(conv.module, group_norm(norm.module, hidden, true)),
        }
    }

    /// Whether its output is one of the `skips` of the stages after it.
    pub fn leaves_skip(&self) -> bool {
        self.leaves
    }

    /// Whether the timestep changes its output.
    pub fn reads_time(&self) -> bool {
        matches!(self.work, Work::Block { .. })
    }

    /// Whether the text changes its output.
    pub fn reads_text(&self) -> bool {
        matches!(self.work, Work::Block { attention: Some(_), .. })
    }

    /// Visits its parameters under their paths in the UNet.
    pub fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        match &self.work {
            Work::In(conv) => conv.visit(visitor),
            Work::Block { resnet, attention, .. } => {
                resnet.visit(visitor);
                attention.iter().for_each(|attention| attention.visit(visitor));
            }
            Work::Down(layer) => layer.visit(visitor),
            Work::Up(layer) => layer.visit(visitor),
            Work::Out(norm, conv) => {
                norm.visit(visitor);
                conv.visit(visitor);
            }
        }
    }

    /// Whether training changes one of its parameters. Only a UNet on a tape knows: off it no parameter asks for a
    /// gradient.
    pub fn trains(&self) -> bool {
        let mut found = Trained(false);
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

/// Whether a parameter asks for its gradient.
pub(crate) struct Trained(pub(crate) bool);

impl ModuleVisitor for Trained {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0 |= param.is_require_grad();
    }
}
