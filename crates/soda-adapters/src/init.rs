//! Random starts that are a function of a seed, the weight's path and the parameter's name alone: the
//! same on every machine, backend and order of planning.

use burn::tensor::{DType, Device, Tensor, TensorData};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use sha2::{Digest, Sha256};

use crate::fold::{Weight, compute_dtype};

/// Draws the starts of one weight's parameters.
pub(crate) struct Init<'a> {
    seed: u64,
    path: &'a str,
    device: Device,
    dtype: DType,
}

impl<'a> Init<'a> {
    pub(crate) fn new(seed: u64, path: &'a str, weight: &Weight) -> Self {
        let dtype = compute_dtype(weight.matrix.dtype());
        Self { seed, path, device: weight.matrix.device(), dtype }
    }

    /// Normal with mean 0 and the given standard deviation.
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

    /// Uniform in `±1/√fan_in`: torch's start of a linear layer, `kaiming_uniform_(a=√5)`.
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
