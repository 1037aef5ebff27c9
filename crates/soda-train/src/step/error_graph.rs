//! Squared errors of several batches, from a CUDA graph where the device can capture one.

use burn::tensor::Tensor;
use soda_kernels::LazyGraph;
use soda_models::pipeline::Networks;

use crate::data::batch::Batch;
use crate::step::graph::{GraphShape, flattened};
use crate::step::loss::LossInputs;

/// Networks whose squared errors are measured.
pub(crate) struct ErrorGraph<'a> {
    networks: &'a Networks,
    graph: LazyGraph<GraphShape, Tensor<1>>,
}

impl<'a> ErrorGraph<'a> {
    /// Prepares the errors of `networks` on about `count` batches. `with_graph` allows graphs.
    pub(crate) fn new(networks: &'a Networks, count: usize, with_graph: bool) -> Self {
        Self { networks, graph: LazyGraph::new(if with_graph { count } else { 0 }) }
    }

    /// The weighted squared error of `batch`, without gradients.
    pub(crate) fn squared_error(&mut self, batch: &Batch) -> f32 {
        let denoiser = &self.networks.denoiser;
        let inputs = LossInputs::without_gradients(self.networks, batch);
        let replayed = self.graph.call(GraphShape::of(&inputs), flattened(&inputs), || {
            let (denoiser, shapes) = (denoiser.clone(), inputs.clone());
            move |tensors: &[Tensor<1>]| {
                let mut tensors = tensors.iter().cloned();
                shapes.map(|x| tensors.next().unwrap_or(x)).squared_error(&denoiser)
            }
        });
        let error = replayed.unwrap_or_else(|| inputs.squared_error(denoiser));
        error.into_scalar::<f32>()
    }
}
