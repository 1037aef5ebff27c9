//! The stand-in for the module `cuda` in a build without the feature `cuda`: no tensor is on a CUDA device.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::time::Duration;

use burn::tensor::Tensor;

#[cfg(feature = "cube")]
impl crate::backend::Kernels for burn::backend::Cube {}
#[cfg(feature = "cube")]
impl crate::backend::KernelGradients for burn::backend::Cube {}

pub(crate) fn has_blas<const D: usize>(_x: &Tensor<D>) -> bool {
    false
}

pub(crate) fn has_fp8_products<const D: usize>(_x: &Tensor<D>) -> bool {
    false
}

pub(crate) fn workspace_bytes() -> u64 {
    0
}

pub(crate) fn checksum(_x: &Tensor<1>) -> Option<Tensor<1>> {
    None
}

pub(crate) fn free_bytes(_x: &Tensor<1>) -> Option<u64> {
    None
}

pub(crate) fn pin(_bytes: &[u8], _like: &Tensor<1>) -> Option<crate::host_matrix::Pin> {
    None
}

pub(crate) fn begin_pass() -> bool {
    false
}

pub(crate) fn end_pass() {}

pub(crate) fn kronecker_product(
    _shape: (&[usize], bool),
    _x: &Tensor<2>,
    _factors: &[Tensor<1>],
) -> Option<Tensor<2>> {
    None
}

pub(crate) type KroneckerGradients = (Option<Tensor<2>>, Vec<Tensor<1>>, Option<Tensor<2>>);

pub(crate) fn kronecker_gradient(
    _shape: (&[usize], bool),
    _x: &Tensor<2>,
    _factors: &[Tensor<1>],
    _dy: &Tensor<2>,
    _with_dx: bool,
    _with_product: bool,
) -> Option<KroneckerGradients> {
    None
}

pub(crate) fn multi_tensor_cat(_tensors: &[Tensor<1>]) -> Option<Tensor<1>> {
    None
}

pub(crate) fn multi_tensor_split(_x: &Tensor<1>, _lengths: &[usize]) -> Option<Vec<Tensor<1>>> {
    None
}

/// A split matrix, of which there is none.
pub(crate) struct Tf32Split(Infallible);

pub(crate) fn tf32_split(_x: &Tensor<3>) -> Option<Tf32Split> {
    None
}

pub(crate) fn polar_step(
    split: Tf32Split,
    _gram: &Tensor<3>,
    _coefficients: [f64; 3],
) -> Option<(Tf32Split, Tensor<3>, Tensor<3>)> {
    match split.0 {}
}

pub(crate) fn nccl_refusal(_x: &Tensor<1>) -> Option<String> {
    Some("this soda was built without CUDA".to_owned())
}

pub(crate) fn nccl_unique_id() -> Result<[u8; 128], String> {
    Err("this soda was built without CUDA".to_owned())
}

/// The GPUs of several processes, of which there are none.
pub(crate) struct Communicator(Infallible);

impl Communicator {
    pub(crate) fn join(
        _x: &Tensor<1>,
        _rank: usize,
        _world: usize,
        _id: [u8; 128],
        _patience: Duration,
    ) -> Result<Option<Self>, String> {
        Err("this soda was built without CUDA".to_owned())
    }

    pub(crate) fn abort(self) {
        match self.0 {}
    }

    pub(crate) fn sum(&self, _x: &Tensor<1>, _patience: Duration) -> Result<Tensor<1>, String> {
        match self.0 {}
    }
}

/// A captured graph, of which there is none.
pub(crate) struct Graph<T>(Infallible, PhantomData<T>);

impl<T> Graph<T> {
    pub(crate) fn capture(
        _inputs: Vec<Tensor<1>>,
        _compute: impl FnMut(&[Tensor<1>]) -> T + 'static,
    ) -> Option<Self> {
        None
    }

    pub(crate) fn replay(&mut self, _inputs: Vec<Tensor<1>>) -> &T {
        match self.0 {}
    }
}
