//! A computation that is recorded once and repeated as one launch: a CUDA graph.
//!
//! A training step of Stable Diffusion is some thousands of launches, most of which take the device less time than the host
//! needs to ask for the next. Repeated from a recording they are one.
//!
//! What is recorded are addresses. A repetition reads what then lies where the inputs lay, and writes where the
//! results lay.

use burn::tensor::Tensor;
#[cfg(feature = "cuda")]
use burn::tensor::{Graph, capture};

/// A recorded computation.
pub struct CapturedGraph<T> {
    #[cfg(feature = "cuda")]
    inputs: Vec<Tensor<1>>,
    #[cfg(feature = "cuda")]
    graph: Graph<T, Box<dyn FnMut() -> T>>,
    #[cfg(not(feature = "cuda"))]
    nothing: std::convert::Infallible,
    #[cfg(not(feature = "cuda"))]
    result: std::marker::PhantomData<T>,
}

/// A copy that shares its memory with nothing.
pub fn deep_copy<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    // The clone keeps the product from being written over its factor.
    let shared = x.clone();
    let copy = x.mul_scalar(1);
    drop(shared);
    copy
}

impl<T> CapturedGraph<T> {
    /// Runs `compute` some times on `inputs` and records it; `None` where their device records nothing, or the driver
    /// refuses (for want of memory, say).
    ///
    /// `compute` owns all other tensors that it reads, waits for no result, and does the same every time. What it is given
    /// are vectors with memory of their own: all that it makes of them, be it a view or a copy, is part of the recording.
    pub fn capture(
        inputs: Vec<Tensor<1>>,
        mut compute: impl FnMut(&[Tensor<1>]) -> T + 'static,
    ) -> Option<Self> {
        #[cfg(feature = "cuda")]
        {
            let device = inputs.first().filter(|x| crate::has_vendor_blas(*x))?.device();
            let inputs: Vec<_> = inputs.into_iter().map(deep_copy).collect();
            let read = inputs.clone();
            let compute: Box<dyn FnMut() -> T> = Box::new(move || compute(&read));
            let graph = capture(&device.inner(), compute);
            graph.is_hardware().then_some(Self { inputs, graph })
        }
        #[cfg(not(feature = "cuda"))]
        {
            let _ = (inputs, &mut compute);
            None
        }
    }

    /// The computation on these inputs, given in the order of [`CapturedGraph::capture`]. The next repetition writes its result
    /// over this one: what is to outlive it has to be copied.
    ///
    /// # Panics
    /// On inputs of other lengths, types or devices, and where the driver refuses the launch.
    #[allow(unsafe_code, reason = "a repetition works on recorded addresses")]
    pub fn replay(&mut self, inputs: Vec<Tensor<1>>) -> &T {
        #[cfg(feature = "cuda")]
        {
            assert_eq!(inputs.len(), self.inputs.len(), "a recording has as many inputs as it had");
            crate::copies::overwrite(self.inputs.iter().cloned().zip(inputs).collect());
            // SAFETY: the closure and this struct own every tensor that was read, the graph its result. A device runs
            // what one thread asks for in order, and `&mut self` keeps others away.
            unsafe { self.graph.replay() }
        }
        #[cfg(not(feature = "cuda"))]
        {
            let _ = inputs;
            match self.nothing {}
        }
    }
}
