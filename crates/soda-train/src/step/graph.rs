//! Losses and gradients from a CUDA graph, where the device can capture one: a step is one launch instead of
//! thousands.
//!
//! The graph contains the denoiser's part of a step. Text encoders that are trained run outside it, before
//! and after: their inputs are tokens, not floats. They take the gradient by the condition from the graph.

use burn::tensor::{Device, Tensor};
use soda_kernels::{CapturedGraph, deep_copy, free_memory, memory_usage};
use soda_models::pipeline::Networks;
use soda_optim::BatchedParams;

use crate::config::TrainConfig;
use crate::data::batch::Batch;
use crate::data::prompts::Prompts;
use crate::step::backward::{ConditionGradient, LossAndGradients};
use crate::step::loss::{LossInputs, gradients};
use crate::step::text_encoding::TextEncoding;

/// The graphs of training steps. The first batch of each shape captures one.
pub(crate) struct StepGraphs {
    /// The graphs of the shapes so far, as many as the device's memory has room for. A graph holds all memory
    /// of a step. Batches of other shapes run without one.
    captured: Vec<CapturedStep>,
    /// Whether another graph may be captured. False where the caller asked for none, and after the device has
    /// refused one.
    may_capture: bool,
}

/// A captured step on batches of one shape.
pub(crate) struct CapturedStep {
    shape: GraphShape,
    graph: CapturedGraph<(Tensor<1>, BatchedParams, Option<ConditionGradient>)>,
    /// The bytes that it holds.
    bytes: u64,
}

/// What a captured step has read on the host: it replays on no other.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct GraphShape {
    /// The shape of the latents. Those of an upright and of a lying bucket have as many numbers.
    noisy: [usize; 4],
    /// The shape of the text states, and the lengths of the texts in them.
    text: ([usize; 3], Option<Vec<usize>>),
    /// The numbers of each tensor of the inputs.
    sizes: Vec<usize>,
}

impl GraphShape {
    pub(super) fn of(inputs: &LossInputs) -> Self {
        let (noisy, condition) = (inputs.noisy_dims(), inputs.condition());
        let text = (condition.text.dims(), condition.lengths.clone());
        let sizes = flattened(inputs).iter().map(|x| x.dims()[0]).collect();
        Self { noisy, text, sizes }
    }
}

impl StepGraphs {
    /// No graphs yet; none at all without `may_capture`.
    pub(crate) fn new(may_capture: bool) -> Self {
        Self { captured: Vec::new(), may_capture }
    }

    /// Whether steps are replayed from graphs, or will be.
    pub(crate) fn are_used(&self) -> bool {
        self.may_capture || !self.captured.is_empty()
    }

    /// The loss of `batch` times `loss_scale`, and its gradients, as [`gradients`] of `networks` with
    /// `params` gives them. Replays a graph if there is one of its shape. Waits for nothing.
    pub(crate) fn gradients(
        &mut self,
        networks: &Networks,
        params: &BatchedParams,
        batch: &Batch,
        config: &TrainConfig,
        loss_scale: f32,
    ) -> (Tensor<1>, BatchedParams) {
        if !self.are_used() {
            let adapted = params.write_to(networks.clone());
            let (loss, grads) = gradients(&adapted, batch, config, loss_scale);
            return (loss, params.batch_gradients(grads));
        }
        let text_networks = match batch.prompts {
            // The denoiser's parameters are inputs of the graph, and no text is encoded.
            Prompts::Encoded(_) => networks.clone(),
            Prompts::Tokens { .. } => params.write_to(networks.clone()),
        };
        let text = TextEncoding::new(&text_networks, &batch.prompts);
        let inputs = LossInputs::new(&text_networks, &batch.weighted(loss_scale), &text, config);
        let (loss, grads, condition) = match self.step_for(networks, params, &inputs, config) {
            Some(step) => step.replay(params, &inputs),
            None => {
                let adapted = params.write_to(networks.clone());
                denoiser_gradients(&adapted, params, &inputs, config)
            }
        };
        let grads = match condition.filter(|_| text.needs_gradient()) {
            Some(condition) => grads + params.batch_gradients(text.backward(condition)),
            None => grads,
        };
        (loss, grads)
    }

    /// The graph of inputs of this shape, which is captured if there is none and the memory has room.
    fn step_for(
        &mut self,
        networks: &Networks,
        params: &BatchedParams,
        inputs: &LossInputs,
        config: &TrainConfig,
    ) -> Option<&mut CapturedStep> {
        let shape = GraphShape::of(inputs);
        if let Some(known) = self.captured.iter().position(|step| step.shape == shape) {
            return self.captured.get_mut(known);
        }
        let device = networks.denoiser.device();
        let has_room = || self.captured.last().is_none_or(|last| has_room_beside(last, &device));
        if !self.may_capture || !has_room() {
            return None;
        }
        match CapturedStep::capture(networks, params, inputs, config) {
            Some(step) => self.captured.push(step),
            None => {
                self.may_capture = false;
                return None;
            }
        }
        self.captured.last_mut()
    }
}

/// Whether the device has memory for a graph of another shape. Buckets have about as many pixels as each
/// other. As much again stays free for samples and validation. A device that does not tell has none.
fn has_room_beside(step: &CapturedStep, device: &Device) -> bool {
    step.bytes > 0 && free_memory(device).is_some_and(|free| free / 2 > step.bytes)
}

impl CapturedStep {
    fn capture(
        networks: &Networks,
        params: &BatchedParams,
        inputs: &LossInputs,
        config: &TrainConfig,
    ) -> Option<Self> {
        let (captured, layout, shapes) = (networks.clone(), params.clone(), inputs.clone());
        let shape = GraphShape::of(inputs);
        let config = config.clone();
        let in_use = || memory_usage(&networks.denoiser.device()).map_or(0, |usage| usage.in_use);
        let before = in_use();
        let graph = CapturedGraph::capture(graph_inputs(params, inputs), move |tensors| {
            let mut tensors = tensors.iter().cloned();
            let params = layout.with_flattened(&mut tensors);
            let inputs = shapes.map(|x| tensors.next().unwrap_or(x));
            let adapted = params.write_to(captured.clone());
            denoiser_gradients(&adapted, &params, &inputs, &config)
        })?;
        Some(Self { shape, graph, bytes: in_use().saturating_sub(before) })
    }

    /// The gradient by the condition is valid until the next replay; the other results are copies.
    fn replay(
        &mut self,
        params: &BatchedParams,
        inputs: &LossInputs,
    ) -> (Tensor<1>, BatchedParams, Option<ConditionGradient>) {
        let (loss, grads, condition) = self.graph.replay(graph_inputs(params, inputs));
        // The next replay overwrites the originals.
        (deep_copy(loss.clone()), grads.deep_copy(), condition.clone())
    }
}

fn denoiser_gradients(
    adapted: &Networks,
    params: &BatchedParams,
    inputs: &LossInputs,
    config: &TrainConfig,
) -> (Tensor<1>, BatchedParams, Option<ConditionGradient>) {
    let LossAndGradients { loss, adapters, condition } = inputs.backward(&adapted.denoiser, config);
    let adapters = adapters.with_prefix(adapted.denoiser.folder());
    (loss, params.batch_gradients(adapters), condition)
}

/// All that changes from step to step: the parameters, then the inputs of the loss.
fn graph_inputs(params: &BatchedParams, inputs: &LossInputs) -> Vec<Tensor<1>> {
    params.flattened().into_iter().chain(flattened(inputs)).collect()
}

/// The tensors of [`LossInputs::map`].
pub(super) fn flattened(inputs: &LossInputs) -> Vec<Tensor<1>> {
    let mut tensors = Vec::new();
    let _ = inputs.map(|x| {
        tensors.push(x.clone());
        x
    });
    tensors
}
