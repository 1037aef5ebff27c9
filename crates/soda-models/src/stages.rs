//! Denoisers as sequences of stages, for gradient checkpointing.
//!
//! A stage takes its inputs from the end of a stack and puts its outputs there:
//!
//! ```text
//! stack_0 = [sample],    stack_{i+1} = rest_i ++ stage_i(inputs_i, shared),    stack_i = rest_i ++ inputs_i
//! ```
//!
//! The skip connections of a UNet wait on the stack, below the feature map. What all stages read, such as the
//! embedding of the timestep, is computed once and shared.
//!
//! The `forward` of a denoiser walks its stages. A caller that acts between them, for example frees
//! activations, walks them itself.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

use crate::condition::{Condition, Timestep};

/// A denoiser that is a sequence of stages.
pub trait StagedDenoiser: Module {
    /// What all stages read.
    type Shared: Shared;
    /// One stage.
    type Stage<'a>: Stage<Shared = Self::Shared>
    where
        Self: 'a;

    /// Computes what all stages read, for noisy latents of the shape `sample` `[b, c, h, w]`, timesteps `[b]`
    /// and a condition of `b` samples.
    fn shared(&self, sample: [usize; 4], timestep: Timestep, condition: Condition) -> Self::Shared;

    /// Whether [`shared`](Self::shared) depends on trainable parameters. Without autodiff no parameter is.
    fn shared_is_trainable(&self) -> bool;

    /// All stages, in the order of the forward pass.
    fn stages(&self) -> Vec<Self::Stage<'_>>;
}

/// What all stages of a denoiser read.
pub trait Shared: Clone {
    /// Applies `f` to every tensor that the loss may be differentiated by, in a fixed order.
    #[must_use]
    fn map(&self, f: impl FnMut(Tensor<3>) -> Tensor<3>) -> Self;
}

/// A part of a denoiser, such as a block.
pub trait Stage {
    /// What all stages of the denoiser read.
    type Shared;

    /// Takes the stage's inputs from the end of `stack`.
    fn take(&self, stack: &mut Vec<Tensor<4>>) -> StageInput;

    /// Computes the outputs that are put onto the stack.
    fn forward(&self, input: StageInput, shared: &Self::Shared) -> Vec<Tensor<4>>;

    /// Whether the outputs depend on what is shared.
    fn uses_shared(&self) -> bool;

    /// Visits the stage's parameters under their paths in the denoiser.
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V);

    /// Whether a parameter of the stage requires a gradient. Without autodiff no parameter does.
    fn is_trainable(&self) -> bool {
        let mut found = Trainable(false);
        self.visit(&mut found);
        found.0
    }
}

/// The inputs of a stage beside what is shared.
#[derive(Debug, Clone)]
pub struct StageInput {
    /// The tensors from the stack, in its order.
    pub tensors: Vec<Tensor<4>>,
    /// Height and width of the output of an upsampling stage.
    pub(crate) size: Option<[usize; 2]>,
}

impl StageInput {
    /// Takes the last `count` tensors of `stack`.
    pub(crate) fn take(stack: &mut Vec<Tensor<4>>, count: usize) -> Self {
        Self { tensors: stack.split_off(stack.len().saturating_sub(count)), size: None }
    }

    /// Applies `f` to every tensor.
    #[must_use]
    pub fn map(self, f: impl Fn(Tensor<4>) -> Tensor<4>) -> Self {
        Self { tensors: self.tensors.into_iter().map(f).collect(), size: self.size }
    }
}

/// Predicts from noisy latents `sample` `[b, c, h, w]`: walks all stages.
#[track_caller]
pub(crate) fn forward<D: StagedDenoiser>(
    denoiser: &D,
    sample: Tensor<4>,
    timestep: Timestep,
    condition: Condition,
) -> Tensor<4> {
    let shared = denoiser.shared(sample.dims(), timestep, condition);
    let mut stack = vec![sample];
    for stage in denoiser.stages() {
        let input = stage.take(&mut stack);
        stack.extend(stage.forward(input, &shared));
    }
    stack.pop().expect("the last stage puts the prediction onto the stack")
}

/// Visits `module`, which is in the field `name` of the denoiser or at this path in it.
pub(crate) fn visit_field<M: Module, V: ModuleVisitor>(name: &str, module: &M, visitor: &mut V) {
    visitor.enter_module(name, "");
    module.visit(visitor);
    visitor.exit_module(name, "");
}

/// Tokens `[b, n, c]` as they lie on the stack of a transformer, `[b, 1, n, c]`.
pub(crate) fn stacked(tokens: Tensor<3>) -> Tensor<4> {
    tokens.unsqueeze_dim(1)
}

/// The tokens `[b, n, c]` of a tensor from the stack of a transformer.
pub(crate) fn tokens(stacked: Tensor<4>) -> Tensor<3> {
    stacked.squeeze_dim(1)
}

/// Whether a visited parameter requires a gradient.
pub(crate) struct Trainable(pub(crate) bool);

impl ModuleVisitor for Trainable {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0 |= param.is_require_grad();
    }
}
