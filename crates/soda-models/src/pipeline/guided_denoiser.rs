//! The denoiser's guided prediction, from a CUDA graph where the device can capture one.
//!
//! A call of the denoiser is a thousand launches or more. For a few images, most of them take the device less
//! time than the host needs to issue the next. A captured call is one launch.

use burn::tensor::{FloatDType, Tensor};
use soda_kernels::{LazyGraph, deep_copy, with_copies_ahead};

use super::denoiser::Denoiser;
use crate::batch_shards::BatchShards;
use crate::condition::{AddedCondition, Condition};

/// A denoiser with classifier-free guidance, for the calls of one request.
pub(super) struct GuidedDenoiser {
    network: GuidedNetwork,
    graph: LazyGraph<InputShape, Tensor<4>>,
}

impl GuidedDenoiser {
    /// Prepares about `calls` predictions with guidance of the factor `guidance`, if there is any.
    pub(super) fn new(denoiser: Denoiser, guidance: Option<f64>, calls: usize) -> Self {
        Self { network: GuidedNetwork { denoiser, guidance }, graph: LazyGraph::new(calls) }
    }

    /// The prediction for `input`, `[n, c, h, w]`, at the timestep `t`, as f32.
    ///
    /// `condition` has `n` samples. With guidance it has `2 n`, of which the first half is the negative
    /// prompt's.
    pub(super) fn predict(
        &mut self,
        input: Tensor<4>,
        t: f64,
        condition: &Condition,
        shards: &BatchShards,
    ) -> Tensor<4> {
        let steps = Tensor::full([condition.text.dims()[0]], t, &input.device());
        let inputs = Inputs { input, steps, condition: condition.clone() };
        let network = &self.network;
        let replayed = self.graph.call(inputs.shape(), inputs.flattened(), || {
            let (network, shapes) = (network.clone(), inputs.clone());
            let serial = BatchShards::default();
            move |tensors: &[Tensor<1>]| {
                let mut tensors = tensors.iter().cloned();
                network.predict(shapes.map(|x| tensors.next().unwrap_or(x)), &serial)
            }
        });
        match replayed {
            // The next replay overwrites the original, and a sampler keeps predictions.
            Some(prediction) => deep_copy(prediction),
            None => self.network.predict(inputs, shards),
        }
    }
}

/// A denoiser, and the factor of its guidance.
#[derive(Clone)]
struct GuidedNetwork {
    denoiser: Denoiser,
    guidance: Option<f64>,
}

impl GuidedNetwork {
    fn predict(&self, inputs: Inputs, shards: &BatchShards) -> Tensor<4> {
        let Inputs { input, steps, condition } = inputs;
        let count = input.dims()[0];
        let input = if self.guidance.is_some() { input.repeat_dim(0, 2) } else { input };
        let input = input.cast(self.denoiser.dtype());
        let (all, parts) = (input.dims()[0], shards.count().min(input.dims()[0]));
        let part = |i| {
            let rows = all * i / parts..all * (i + 1) / parts;
            let input = input.clone().narrow(0, rows.start, rows.len());
            let steps = steps.clone().narrow(0, rows.start, rows.len());
            (self.denoiser.clone(), input, steps, condition.rows(rows))
        };
        let done =
            shards.map((0..parts).map(part).collect(), |(denoiser, input, steps, condition)| {
                with_copies_ahead(|| denoiser.forward(input, steps, condition))
            });
        let prediction = Tensor::cat(done, 0).cast(FloatDType::F32);
        let Some(factor) = self.guidance else { return prediction };
        let empty = prediction.clone().narrow(0, 0, count);
        let prompted = prediction.narrow(0, count, count);
        empty.clone() + (prompted - empty).mul_scalar(factor)
    }
}

/// The inputs of one call.
#[derive(Clone)]
struct Inputs {
    /// `[n, c, h, w]`
    input: Tensor<4>,
    /// One timestep for each sample of the condition.
    steps: Tensor<1>,
    condition: Condition,
}

impl Inputs {
    /// Applies `f` to each tensor as a vector.
    fn map(&self, mut f: impl FnMut(Tensor<1>) -> Tensor<1>) -> Self {
        fn apply<const D: usize>(
            x: &Tensor<D>,
            f: &mut impl FnMut(Tensor<1>) -> Tensor<1>,
        ) -> Tensor<D> {
            let shape = x.shape();
            f(x.clone().reshape([shape.num_elements()])).reshape(shape)
        }
        let Condition { text, lengths, added } = &self.condition;
        let input = apply(&self.input, &mut f);
        let steps = apply(&self.steps, &mut f);
        let text = apply(text, &mut f);
        let added = added.as_ref().map(|added| AddedCondition {
            pooled: apply(&added.pooled, &mut f),
            time_ids: apply(&added.time_ids, &mut f),
        });
        Self { input, steps, condition: Condition { text, lengths: lengths.clone(), added } }
    }

    fn flattened(&self) -> Vec<Tensor<1>> {
        let mut tensors = Vec::new();
        let _ = self.map(|x| {
            tensors.push(x.clone());
            x
        });
        tensors
    }

    fn shape(&self) -> InputShape {
        let Condition { text, lengths, .. } = &self.condition;
        InputShape { input: self.input.dims(), text: text.dims(), lengths: lengths.clone() }
    }
}

/// What a captured call has read on the host: the shapes of latents and text states, and the lengths of the
/// texts.
#[derive(Clone, PartialEq, Eq)]
struct InputShape {
    input: [usize; 4],
    text: [usize; 3],
    lengths: Option<Vec<usize>>,
}
