//! Losses and gradients from a CUDA graph, where the device can capture one: a step is one launch instead of
//! thousands.
//!
//! The graph contains the denoiser's part of a step. Text encoders that are trained run outside it, before
//! and after: their inputs are tokens, not floats. They take the gradient by the condition from the graph.

use burn::tensor::Tensor;
use soda_kernels::CapturedGraph;
use soda_models::pipeline::Networks;
use soda_optim::BatchedParams;

use crate::config::TrainConfig;
use crate::data::batch::Batch;
use crate::data::prompts::Prompts;
use crate::step::backward::{ConditionGradient, LossAndGradients};
use crate::step::loss::{LossInputs, gradients};
use crate::step::text_encoding::TextEncoding;

/// The graph of a training step, which the first batch captures.
pub(crate) enum StepGraph {
    /// No batch has been seen yet.
    Pending,
    /// The graph of batches of one shape. Other shapes run without a graph, because a graph holds all memory
    /// of a step.
    Captured(Box<CapturedStep>),
    /// The device captures no graphs, or the caller asked for none.
    Unsupported,
}

/// A captured step on batches of one shape.
pub(crate) struct CapturedStep {
    shape: GraphShape,
    graph: CapturedGraph<(Tensor<1>, BatchedParams, Option<ConditionGradient>)>,
}

/// What a captured step has read on the host: it replays on no other.
#[derive(PartialEq, Eq)]
struct GraphShape {
    /// The shape of the latents. Those of an upright and of a lying bucket have as many numbers.
    noisy: [usize; 4],
    /// The shape of the text states, and the lengths of the texts in them.
    text: ([usize; 3], Option<Vec<usize>>),
    /// The numbers of each tensor of the inputs.
    sizes: Vec<usize>,
}

impl GraphShape {
    fn of(inputs: &LossInputs) -> Self {
        let (noisy, condition) = (inputs.noisy_dims(), inputs.condition());
        let text = (condition.text.dims(), condition.lengths.clone());
        let sizes = flattened(inputs).iter().map(|x| x.dims()[0]).collect();
        Self { noisy, text, sizes }
    }
}

impl StepGraph {
    /// The loss of `batch` and its gradients, as [`gradients`] of `networks` with `params` gives them.
    /// Replays the graph if the batch has its shape.
    pub(crate) fn gradients(
        &mut self,
        networks: &Networks,
        params: &BatchedParams,
        batch: &Batch,
        config: &TrainConfig,
        loss_scale: f32,
    ) -> (f32, BatchedParams) {
        if let Self::Unsupported = self {
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
        if let Self::Pending = self {
            let captured = CapturedStep::capture(networks, params, &inputs, config);
            *self = captured.map_or(Self::Unsupported, |step| Self::Captured(Box::new(step)));
        }
        let (loss, grads, condition) = match self {
            Self::Captured(step) if step.shape == GraphShape::of(&inputs) => {
                step.replay(params, &inputs)
            }
            _ => {
                let adapted = params.write_to(networks.clone());
                denoiser_gradients(&adapted, params, &inputs, config)
            }
        };
        let grads = match condition.filter(|_| text.needs_gradient()) {
            Some(condition) => grads + params.batch_gradients(text.backward(condition)),
            None => grads,
        };
        (loss.into_scalar::<f32>() / loss_scale, grads)
    }
}

impl CapturedStep {
    fn capture(
        networks: &Networks,
        params: &BatchedParams,
        inputs: &LossInputs,
        config: &TrainConfig,
    ) -> Option<Self> {
        let (networks, layout, shapes) = (networks.clone(), params.clone(), inputs.clone());
        let shape = GraphShape::of(inputs);
        let config = config.clone();
        let graph = CapturedGraph::capture(graph_inputs(params, inputs), move |tensors| {
            let mut tensors = tensors.iter().cloned();
            let params = layout.with_flattened(&mut tensors);
            let inputs = shapes.map(|x| tensors.next().unwrap_or(x));
            let adapted = params.write_to(networks.clone());
            denoiser_gradients(&adapted, &params, &inputs, &config)
        })?;
        Some(Self { shape, graph })
    }

    /// The gradient by the condition is valid until the next replay; the other results are copies.
    fn replay(
        &mut self,
        params: &BatchedParams,
        inputs: &LossInputs,
    ) -> (Tensor<1>, BatchedParams, Option<ConditionGradient>) {
        let (loss, grads, condition) = self.graph.replay(graph_inputs(params, inputs));
        // The next replay overwrites the originals.
        (loss.clone(), grads.deep_copy(), condition.clone())
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

fn flattened(inputs: &LossInputs) -> Vec<Tensor<1>> {
    let mut tensors = Vec::new();
    let _ = inputs.map(|x| {
        tensors.push(x.clone());
        x
    });
    tensors
}
