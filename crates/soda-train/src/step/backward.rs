//! The gradients of a loss of the denoiser's prediction.
//!
//! Without gradient checkpointing one tape covers the whole network. With it each stage has its own small
//! tape (Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174):
//!
//! ```text
//! h_{i+1} = f_i(h_i, θ)                                    forward, without a tape, keeping every h_i
//! g_i = ∂⟨f_i(h_i, θ), g_{i+1}⟩ / ∂h_i,   ∂L/∂θ += ∂⟨f_i(h_i, θ), g_{i+1}⟩ / ∂θ      backward, f_i once more
//! ```
//!
//! `g` is `∂L/∂h`. Both ways compute the same products. Only sums over stages, for inputs that several stages
//! read, are added in another order.
//!
//! An operation of burn's tape cannot do this. Such an operation has a fixed number of parents, but a stage
//! has as many as it has adapted weights. Such an operation is also written for each backend; the walk over
//! stages needs tensors only.

use burn::module::Module;
use burn::tensor::{Gradients, Tensor};
use soda_models::condition::{AddedCondition, Condition};
use soda_models::pipeline::Denoiser;
use soda_models::unet::Unet;
use soda_optim::AdapterGradients;

use crate::config::GradientCheckpointing;

/// The inputs of the denoiser in a step, in its precision and off the tape.
#[derive(Clone, Debug)]
pub struct DenoiserInputs {
    /// Noisy latents `x_t`, `[b, c, h, w]`.
    pub noisy: Tensor<4>,
    /// Timesteps `t`, `[b]`.
    pub timesteps: Tensor<1>,
    /// The encoded prompts.
    pub condition: Condition,
    /// Whether the backward pass also gives the gradient by the condition, which training a text encoder
    /// needs.
    pub wants_condition_gradient: bool,
}

/// A loss and its gradients.
#[derive(Debug)]
pub struct LossAndGradients {
    /// The loss, `[1]`.
    pub loss: Tensor<1>,
    /// Gradients by the adapters' parameters.
    pub adapters: AdapterGradients,
    /// The gradient by the condition, if [`DenoiserInputs::wants_condition_gradient`].
    pub condition: Option<ConditionGradient>,
}

/// The gradient by a condition.
#[derive(Clone, Debug)]
pub struct ConditionGradient {
    /// The gradient by the text states, `[b, m, d]`.
    pub text: Tensor<3>,
    /// The gradient by SDXL's pooled text, `[b, p]`.
    pub pooled: Option<Tensor<2>>,
}

impl GradientCheckpointing {
    /// Computes a loss of the denoiser's prediction and its gradients.
    ///
    /// `denoiser` has its adapters attached and is on a plain device. `loss` maps the prediction `[b, c, h,
    /// w]`, which is on a tape, to a scalar `[1]`.
    pub fn backward(
        self,
        denoiser: &Denoiser,
        inputs: DenoiserInputs,
        loss: impl FnOnce(Tensor<4>) -> Tensor<1>,
    ) -> LossAndGradients {
        match (self, denoiser) {
            (Self::Block, Denoiser::Unet(unet)) => tape_per_stage(unet, inputs, loss),
            // A transformer has no stages yet, and the settings of a run refuse them.
            _ => single_tape(denoiser, inputs, loss),
        }
    }
}

/// The gradients with one tape over the whole network.
fn single_tape(
    denoiser: &Denoiser,
    inputs: DenoiserInputs,
    loss: impl FnOnce(Tensor<4>) -> Tensor<1>,
) -> LossAndGradients {
    // A tape with its own leaves: several threads may do this at once.
    let taped = denoiser.clone().train();
    let DenoiserInputs { noisy, timesteps, condition, wants_condition_gradient } = inputs;
    let condition = on_tape(condition, wants_condition_gradient);
    let (noisy, timesteps) = (Tensor::from_inner(noisy), Tensor::<1>::from_inner(timesteps));
    let loss = loss(taped.forward(noisy, timesteps, condition.clone()));
    let grads = loss.backward();
    let condition = wants_condition_gradient.then(|| ConditionGradient {
        text: gradient(&condition.text, &grads),
        pooled: condition.added.map(|added| gradient(&added.pooled, &grads)),
    });
    LossAndGradients { loss, adapters: AdapterGradients::collect(&taped, &grads), condition }
}

/// The gradients with one tape for each stage, from the last stage to the first that has trainable
/// parameters.
fn tape_per_stage(
    denoiser: &Unet,
    inputs: DenoiserInputs,
    loss: impl FnOnce(Tensor<4>) -> Tensor<1>,
) -> LossAndGradients {
    let DenoiserInputs { noisy, timesteps, condition, wants_condition_gradient } = inputs;
    // A UNet sees all tokens.
    let Condition { text, added, .. } = condition;
    let as_condition =
        |added: &Option<AddedCondition>| Condition { added: added.clone(), ..text.clone().into() };
    let taped = denoiser.clone().train();
    // The forward pass runs on the tape's device with nothing to track. It keeps no intermediates there and
    // uses the kernels of the backward pass; off the tape some kernels round differently.
    let untracked = taped.clone().no_grad();
    let untracked_condition = on_tape(as_condition(&added), false);
    let at = || Tensor::<1>::from_inner(timesteps.clone()).into();
    let time = untracked.embed_time(at(), untracked_condition.added);

    let (mut x, mut skips) = (Tensor::from_inner(noisy), Vec::new());
    let mut stage_inputs = Vec::new();
    for stage in untracked.segments() {
        let input = stage.input(x, &mut skips);
        stage_inputs.push(input.clone());
        x = stage.forward(input, &time, &untracked_condition.text);
        if stage.pushes_skip() {
            skips.push(x.clone());
        }
    }
    let (time, prediction) = (time.inner(), leaf(x.inner(), true));
    let loss = loss(prediction.clone());
    let mut incoming: Tensor<4> = gradient(&prediction, &loss.backward());
    drop(prediction);

    // The backward pass ends at the first stage that needs a gradient.
    let wants_time =
        taped.time_embedding_is_trainable() || (wants_condition_gradient && added.is_some());
    let stages = taped.segments();
    let first = stages.iter().position(|stage| {
        stage.is_trainable()
            || (wants_time && stage.uses_time())
            || (wants_condition_gradient && stage.uses_text())
    });
    let first = first.unwrap_or(stages.len());

    let mut adapters = AdapterGradients::default();
    let mut skip_grads: Vec<Tensor<4>> = Vec::new();
    let (mut time_grad, mut text_grad) = (None, None);
    for (index, stage) in stages.iter().enumerate().skip(first).rev() {
        // Removed here, so that an input is freed after the last stage that needs it.
        let Some(input) = stage_inputs.pop() else { break };
        if let Some(skip_grad) = stage.pushes_skip().then(|| skip_grads.pop()).flatten() {
            incoming = incoming + skip_grad;
        }
        let input = input.map(|x| leaf(x.inner(), index > first));
        let (time, text) =
            (leaf(time.clone(), wants_time), leaf(text.clone(), wants_condition_gradient));
        let grads = seeded(stage.forward(input.clone(), &time, &text), incoming);
        adapters =
            adapters + AdapterGradients::collect_with(&grads, |visitor| stage.visit(visitor));
        time_grad = sum(time_grad, time.grad(&grads));
        text_grad = sum(text_grad, text.grad(&grads));
        incoming = gradient(&input.hidden, &grads);
        skip_grads.extend(input.skip.map(|skip| gradient(&skip, &grads)));
    }

    let added = on_tape(as_condition(&added), wants_condition_gradient).added;
    let mut pooled = None;
    if let (true, Some(time_grad)) = (wants_time, time_grad) {
        let grads = seeded(taped.embed_time(at(), added.clone()), time_grad);
        adapters = adapters + AdapterGradients::collect(&taped, &grads);
        pooled = added.map(|added| gradient(&added.pooled, &grads));
    }
    let condition = wants_condition_gradient.then(|| ConditionGradient {
        text: text_grad.unwrap_or_else(|| text.zeros_like()),
        pooled,
    });
    LossAndGradients { loss, adapters, condition }
}

/// Moves `condition` to the tape's device, as leaves whose gradient is kept if it is `wanted`.
pub(crate) fn on_tape(condition: Condition, wanted: bool) -> Condition {
    let Condition { text, lengths, added } = condition;
    let added = added.map(|AddedCondition { pooled, time_ids }| AddedCondition {
        pooled: leaf(pooled, wanted),
        time_ids: Tensor::from_inner(time_ids),
    });
    Condition { text: leaf(text, wanted), lengths, added }
}

/// Moves `x` to a tape, as a leaf whose gradient is kept if it is `wanted`.
fn leaf<const D: usize>(x: Tensor<D>, wanted: bool) -> Tensor<D> {
    Tensor::from_inner(x).set_require_grad(wanted)
}

/// The gradients of `⟨output, g⟩`: a backward pass that starts with the gradient `g` by `output`.
fn seeded<const D: usize>(output: Tensor<D>, g: Tensor<D>) -> Gradients {
    (output * Tensor::from_inner(g)).sum().backward()
}

/// The gradient by a leaf; zeros if the loss does not depend on it.
fn gradient<const D: usize>(leaf: &Tensor<D>, grads: &Gradients) -> Tensor<D> {
    leaf.grad(grads).unwrap_or_else(|| leaf.clone().inner().zeros_like())
}

fn sum<const D: usize>(a: Option<Tensor<D>>, b: Option<Tensor<D>>) -> Option<Tensor<D>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}
