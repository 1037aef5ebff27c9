//! Random initial values that depend on a seed, the path of the weight and the name of the parameter only.
//!
//! The values are the same on every machine and backend, and for every order of planning.

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use sha2::{Digest, Sha256};

use crate::weight::{Weight, compute_dtype};

/// Initializes the parameters of one weight's adapter.
pub(crate) struct SeededInit<'a> {
    seed: u64,
    path: &'a str,
    device: Device,
    dtype: DType,
}

impl<'a> SeededInit<'a> {
    /// Prepares the initialization for `weight` at `path`, on its device and in the type that adapters
    /// compute in.
    pub(crate) fn new(seed: u64, path: &'a str, weight: &Weight) -> Self {
        let dtype = compute_dtype(weight.dtype());
        Self { seed, path, device: weight.device(), dtype }
    }

    /// Normal values with mean 0 and standard deviation `std`.
    pub(crate) fn normal<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        std: f64,
    ) -> Tensor<D> {
        let rng = self.rng(name);
        let values = StandardNormal.sample_iter(rng).take(shape.iter().product());
        self.tensor(values.map(|value: f64| value * std).collect(), shape)
    }

    /// Uniform values in `±1/√fan_in`, as torch's `kaiming_uniform_(a=√5)` for a linear layer.
    pub(crate) fn kaiming<const D: usize>(
        &self,
        name: &str,
        shape: [usize; D],
        fan_in: usize,
    ) -> Tensor<D> {
        let unit = Uniform::new_inclusive(-1.0, 1.0).expect("-1 is below 1");
        let bound = 1.0 / (fan_in.max(1) as f64).sqrt();
        let values = unit.sample_iter(self.rng(name)).take(shape.iter().product());
        self.tensor(values.map(|value: f64| value * bound).collect(), shape)
    }

    /// Zeros.
    pub(crate) fn zeros<const D: usize>(&self, shape: [usize; D]) -> Tensor<D> {
        Tensor::zeros(shape, (&self.device, self.dtype))
    }

    fn tensor<const D: usize>(&self, values: Vec<f64>, shape: [usize; D]) -> Tensor<D> {
        let data = TensorData::new(values, shape).convert_dtype(self.dtype);
        Tensor::from_data(data, (&self.device, self.dtype))
    }

    fn rng(&self, name: &str) -> ChaCha8Rng {
        let digest = Sha256::digest(format!("{} {} {name}", self.seed, self.path));
        ChaCha8Rng::from_seed(digest.into())
    }
}
