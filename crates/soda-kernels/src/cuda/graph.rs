//! Capture and replay of CUDA graphs.

use burn::tensor::{Graph as BurnGraph, Tensor, capture};

use super::tensors::overwrite;

/// A captured graph with the buffers of its inputs.
pub(crate) struct Graph<T> {
    inputs: Vec<Tensor<1>>,
    graph: BurnGraph<T, Box<dyn FnMut() -> T>>,
}

impl<T> Graph<T> {
    /// Runs `compute` a few times on `inputs` and captures it. `None` for no inputs, and if the driver
    /// refuses.
    ///
    /// The graph overwrites the inputs, so no other tensor shares their memory.
    pub(crate) fn capture(
        inputs: Vec<Tensor<1>>,
        mut compute: impl FnMut(&[Tensor<1>]) -> T + 'static,
    ) -> Option<Self> {
        let device = inputs.first()?.device();
        let read = inputs.clone();
        let compute: Box<dyn FnMut() -> T> = Box::new(move || compute(&read));
        let graph = capture(&device.inner(), compute);
        graph.is_hardware().then_some(Self { inputs, graph })
    }

    /// Copies `inputs` into the captured buffers and launches the graph.
    ///
    /// # Panics
    /// If the inputs differ in number, length, dtype or device from the captured ones, or if the driver
    /// refuses the launch.
    #[allow(unsafe_code, reason = "a replay works on captured addresses")]
    pub(crate) fn replay(&mut self, inputs: Vec<Tensor<1>>) -> &T {
        assert_eq!(
            inputs.len(),
            self.inputs.len(),
            "a captured graph is replayed on as many inputs as were captured"
        );
        overwrite(self.inputs.iter().cloned().zip(inputs).collect());
        // SAFETY: the closure and this struct own every tensor that the graph reads, and the graph owns its
        // result. A device executes the work of one thread in order, and `&mut self` excludes other threads.
        unsafe { self.graph.replay() }
    }
}
