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
//! `g` is `∂L/∂h`, and `h` has what waits for later stages too. Both ways compute the same products. Only
//! sums over stages, for inputs that several stages read, are added in another order.
//!
//! An operation of burn's tape cannot do this. Such an operation has a fixed number of parents, but a stage
//! has as many as it has adapted weights. Such an operation is also written for each backend; the walk over
//! stages needs tensors only.

use burn::module::Module;
use burn::tensor::{Gradients, Tensor};
use soda_kernels::{with_copies_ahead, with_timesteps};
use soda_models::condition::{AddedCondition, Condition};
use soda_models::pipeline::Denoiser;
use soda_models::stages::{Shared as _, Stage as _, StagedDenoiser};
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
        with_copies_ahead(|| self.backward_in_pass(denoiser, inputs, loss))
    }

    fn backward_in_pass(
        self,
        denoiser: &Denoiser,
        inputs: DenoiserInputs,
        loss: impl FnOnce(Tensor<4>) -> Tensor<1>,
    ) -> LossAndGradients {
        if self == Self::None {
            return single_tape(denoiser, inputs, loss);
        }
        // Stages are called outside of the denoiser, and adapters may change with the timestep.
        let timesteps = Tensor::from_inner(inputs.timesteps.clone());
        with_timesteps(timesteps, || match denoiser {
            Denoiser::Unet(unet) => tape_per_stage(unet, inputs, loss),
            Denoiser::Flux2(transformer) => tape_per_stage(transformer, inputs, loss),
            Denoiser::ZImage(transformer) => tape_per_stage(transformer, inputs, loss),
        })
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
fn tape_per_stage<D: StagedDenoiser>(
    denoiser: &D,
    inputs: DenoiserInputs,
    loss: impl FnOnce(Tensor<4>) -> Tensor<1>,
) -> LossAndGradients {
    let DenoiserInputs { noisy, timesteps, condition, wants_condition_gradient } = inputs;
    let taped = denoiser.clone().train();
    // The forward pass runs on the tape's device with nothing to track. It keeps no intermediates there and
    // uses the kernels of the backward pass; off the tape some kernels round differently.
    let untracked = taped.clone().no_grad();
    let at = || Tensor::<1>::from_inner(timesteps.clone()).into();
    let shared = untracked.shared(noisy.dims(), at(), on_tape(condition.clone(), false));

    let sample = noisy.dims();
    let mut stack = vec![Tensor::from_inner(noisy)];
    let mut stage_inputs = Vec::new();
    for stage in untracked.stages() {
        let input = stage.take(&mut stack);
        stage_inputs.push(input.clone());
        stack.extend(stage.forward(input, &shared));
    }
    let outputs: Vec<Tensor<4>> = stack.into_iter().map(|x| leaf(x.inner(), true)).collect();
    let prediction = outputs.last().expect("the last stage predicts").clone();
    let loss = loss(prediction.clone());
    // The gradients by what lies on the stack, in its order.
    let mut incoming = vec![gradient(&prediction, &loss.backward())];
    drop((outputs, prediction));

    // The backward pass ends at the first stage that needs a gradient.
    let wants_shared = taped.shared_is_trainable() || wants_condition_gradient;
    let stages = taped.stages();
    let first = stages
        .iter()
        .position(|stage| stage.is_trainable() || (wants_shared && stage.uses_shared()));
    let first = first.unwrap_or(stages.len());

    let mut adapters = AdapterGradients::default();
    let mut shared_grads: Vec<Option<Tensor<3>>> = Vec::new();
    for (index, stage) in stages.iter().enumerate().skip(first).rev() {
        // Removed here, so that an input is freed after the last stage that needs it.
        let Some(input) = stage_inputs.pop() else { break };
        let input = input.map(|x| leaf(x.inner(), index > first));
        let mut leaves = Vec::new();
        let shared = shared.map(|x| {
            let x = leaf(x.inner(), wants_shared);
            leaves.push(x.clone());
            x
        });
        let outputs = stage.forward(input.clone(), &shared);
        let by_outputs = incoming.split_off(incoming.len() - outputs.len());
        let grads = seeded(outputs.into_iter().zip(by_outputs));
        adapters =
            adapters + AdapterGradients::collect_with(&grads, |visitor| stage.visit(visitor));
        shared_grads.resize(leaves.len(), None);
        for (sum, leaf) in shared_grads.iter_mut().zip(leaves) {
            *sum = add(sum.take(), leaf.grad(&grads));
        }
        if index > first {
            incoming.extend(input.tensors.iter().map(|x| gradient(x, &grads)));
        }
    }

    let condition = on_tape(condition, wants_condition_gradient);
    let grads = (wants_shared && shared_grads.iter().any(Option::is_some)).then(|| {
        let mut outputs = Vec::new();
        let _ = taped.shared(sample, at(), condition.clone()).map(|x| {
            outputs.push(x.clone());
            x
        });
        let pairs = outputs.into_iter().zip(shared_grads);
        seeded(pairs.filter_map(|(output, grad)| Some((output, grad?))))
    });
    if let Some(grads) = &grads {
        adapters = adapters + AdapterGradients::collect(&taped, grads);
    }
    let condition = wants_condition_gradient.then(|| ConditionGradient {
        text: gradient_if(&condition.text, grads.as_ref()),
        pooled: condition.added.map(|added| gradient_if(&added.pooled, grads.as_ref())),
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

/// The gradients of `Σ ⟨output, g⟩`: a backward pass that starts with the gradients `g` by outputs.
///
/// # Panics
/// Without any output.
fn seeded<const D: usize>(outputs: impl Iterator<Item = (Tensor<D>, Tensor<D>)>) -> Gradients {
    let products = outputs.map(|(output, g)| (output * Tensor::from_inner(g)).sum());
    products.reduce(|a, b| a + b).expect("a stage has an output").backward()
}

/// The gradient by a leaf; zeros if the loss does not depend on it.
fn gradient<const D: usize>(leaf: &Tensor<D>, grads: &Gradients) -> Tensor<D> {
    gradient_if(leaf, Some(grads))
}

/// The gradient by a leaf; zeros if there are no gradients, or the loss does not depend on it.
fn gradient_if<const D: usize>(leaf: &Tensor<D>, grads: Option<&Gradients>) -> Tensor<D> {
    let grad = grads.and_then(|grads| leaf.grad(grads));
    grad.unwrap_or_else(|| leaf.clone().inner().zeros_like())
}

fn add<const D: usize>(a: Option<Tensor<D>>, b: Option<Tensor<D>>) -> Option<Tensor<D>> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a + b),
        (a, b) => a.or(b),
    }
}
