//! Squared errors of several batches, from a CUDA graph where the device can capture one.

use burn::tensor::Tensor;
use soda_kernels::CapturedGraph;
use soda_models::pipeline::Networks;

use crate::data::batch::Batch;
use crate::step::graph::{GraphShape, flattened};
use crate::step::loss::LossInputs;

/// The fewest batches for which a graph is captured. A capture costs four of them.
const BATCHES_WORTH_A_GRAPH: usize = 10;

/// Networks whose squared errors are measured.
pub(crate) struct ErrorGraph<'a> {
    networks: &'a Networks,
    graph: Captured,
}

/// The graph, which the first batch captures.
enum Captured {
    /// No batch has been seen yet.
    Pending,
    /// The graph of batches of one shape. Others are computed without it.
    Graph(GraphShape, Box<CapturedGraph<Tensor<1>>>),
    /// The device captures no graphs, the caller asked for none, or there are too few batches.
    Unsupported,
}

impl<'a> ErrorGraph<'a> {
    /// Prepares the errors of `networks` on about `count` batches. `with_graph` allows graphs.
    pub(crate) fn new(networks: &'a Networks, count: usize, with_graph: bool) -> Self {
        let is_worth_it = with_graph && count >= BATCHES_WORTH_A_GRAPH;
        Self {
            networks,
            graph: if is_worth_it { Captured::Pending } else { Captured::Unsupported },
        }
    }

    /// The weighted squared error of `batch`, without gradients.
    pub(crate) fn squared_error(&mut self, batch: &Batch) -> f32 {
        let denoiser = &self.networks.denoiser;
        let inputs = LossInputs::without_gradients(self.networks, batch);
        if let Captured::Pending = self.graph {
            let (denoiser, shapes) = (denoiser.clone(), inputs.clone());
            let graph = CapturedGraph::capture(flattened(&inputs), move |tensors| {
                let mut tensors = tensors.iter().cloned();
                shapes.map(|x| tensors.next().unwrap_or(x)).squared_error(&denoiser)
            });
            self.graph = match graph {
                Some(graph) => Captured::Graph(GraphShape::of(&inputs), Box::new(graph)),
                None => Captured::Unsupported,
            };
        }
        let error = match &mut self.graph {
            Captured::Graph(shape, graph) if *shape == GraphShape::of(&inputs) => {
                graph.replay(flattened(&inputs)).clone()
            }
            _ => inputs.squared_error(denoiser),
        };
        error.into_scalar::<f32>()
    }
}
