//! A graph that the first call captures.

use burn::tensor::Tensor;

use super::graph::CapturedGraph;

/// The fewest calls for which a graph is captured. A capture costs four calls.
const CALLS_WORTH_A_GRAPH: usize = 10;

/// A computation that is called several times, mostly on inputs of one shape. The first call captures a graph
/// of it, and calls with inputs of the same shape replay it.
///
/// `S` is everything that the computation reads of its inputs on the host, such as shapes.
pub struct LazyGraph<S, T>(State<S, T>);

enum State<S, T> {
    /// There was no call yet.
    Pending,
    /// The graph of inputs of this shape.
    Captured(S, CapturedGraph<T>),
    /// The device captures no graphs, or there are too few calls.
    Unsupported,
}

impl<S: Clone + PartialEq, T: Clone> LazyGraph<S, T> {
    /// A graph of about `calls` calls. With fewer than ten there is none, since a capture costs four.
    pub fn new(calls: usize) -> Self {
        Self(if calls >= CALLS_WORTH_A_GRAPH { State::Pending } else { State::Unsupported })
    }

    /// Runs the graph on `inputs` of the shape `shape`. Without a graph of this shape the result is `None`,
    /// and the caller computes by itself.
    ///
    /// The first call captures `compute()` as [`CapturedGraph::capture`] does. The next call overwrites the
    /// result. A value that is needed longer has to be copied.
    pub fn call<F>(
        &mut self,
        shape: S,
        inputs: Vec<Tensor<1>>,
        compute: impl FnOnce() -> F,
    ) -> Option<T>
    where
        F: FnMut(&[Tensor<1>]) -> T + 'static,
    {
        if let State::Pending = self.0 {
            self.0 = match CapturedGraph::capture(inputs.clone(), compute()) {
                Some(graph) => State::Captured(shape.clone(), graph),
                None => State::Unsupported,
            };
        }
        match &mut self.0 {
            State::Captured(own, graph) if *own == shape => Some(graph.replay(inputs).clone()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn values(x: &Tensor<1>) -> Vec<f32> {
        x.to_data().iter::<f32>().collect()
    }

    /// Whatever a device can capture: a result is that of the computation, and inputs of another shape, or of
    /// fewer calls than a capture is worth, have none.
    #[test]
    fn what_a_call_gives_is_what_the_computation_gives() {
        let input = |start: f32| {
            Tensor::<1>::from_floats([start, start + 1.0, start + 2.0], &Device::default())
        };
        let double = || |inputs: &[Tensor<1>]| inputs[0].clone().mul_scalar(2.0);
        let mut graph = LazyGraph::new(CALLS_WORTH_A_GRAPH);
        for start in [1.0, 5.0, -3.0] {
            if let Some(found) = graph.call(3, vec![input(start)], double) {
                let expected = [start, start + 1.0, start + 2.0].map(|x| 2.0 * x);
                assert_eq!(values(&found), expected);
            }
        }
        assert!(graph.call(4, vec![input(1.0)], double).is_none());

        let mut few = LazyGraph::new(CALLS_WORTH_A_GRAPH - 1);
        let never = || -> fn(&[Tensor<1>]) -> Tensor<1> { panic!("nothing is captured") };
        assert!(few.call((), vec![input(1.0)], never).is_none());
    }
}
