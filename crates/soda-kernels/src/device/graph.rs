//! Capture of a computation as one launch: a CUDA graph.
//!
//! A training step of Stable Diffusion is thousands of launches. Most of them take the device less time than
//! the host needs to issue the next. A captured step is one launch.
//!
//! A graph holds addresses. A replay reads what is stored at the addresses of the inputs and writes to the
//! addresses of the results.

use burn::tensor::Tensor;

use super::memory::deep_copy;
use super::vendor_blas::has_vendor_blas;
use crate::cuda::Graph;

/// A computation that was captured as a graph of the device.
pub struct CapturedGraph<T>(Graph<T>);

impl<T> CapturedGraph<T> {
    /// Runs `compute` on `inputs` a few times and captures it.
    ///
    /// The result is `None` if the device of the inputs captures nothing or the driver refuses, for want of
    /// memory for example. `compute` owns all other tensors that it reads, does not wait for results, and
    /// does the same every time. It receives copies of the inputs; every view or copy that it makes of them
    /// is part of the graph.
    pub fn capture(
        inputs: Vec<Tensor<1>>,
        compute: impl FnMut(&[Tensor<1>]) -> T + 'static,
    ) -> Option<Self> {
        inputs.first().filter(|x| has_vendor_blas(*x))?;
        let inputs = inputs.into_iter().map(deep_copy).collect();
        Graph::capture(inputs, compute).map(Self)
    }

    /// Runs the captured computation on `inputs`, in the order of [`CapturedGraph::capture`].
    ///
    /// The next replay overwrites the result. A value that is needed longer has to be copied.
    ///
    /// # Panics
    /// If the inputs differ in number, length, dtype or device from the captured ones, or if the driver
    /// refuses the launch.
    pub fn replay(&mut self, inputs: Vec<Tensor<1>>) -> &T {
        self.0.replay(inputs)
    }
}
