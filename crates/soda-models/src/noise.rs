//! Seeded Gaussian noise that is the same on every backend.
//!
//! The numbers come from a counter-based generator on the host (ChaCha with 8 rounds), because each device's
//! own generator gives other numbers. An image generated from seed 7 therefore starts from the same latents
//! on a CPU and on a GPU.

use burn::tensor::{Device, Shape, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// Makes a tensor of standard normal numbers, in row-major order.
///
/// `stream` separates the uses of one seed, such as the n-th image or the n-th step. Streams of one seed are
/// independent, and each can be drawn without the others.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use soda_models::noise::randn;
///
/// let device = Device::default();
/// let latents: Tensor<4> = randn(7, 0, [1, 4, 8, 8], &device);
/// let again: Tensor<4> = randn(7, 0, [1, 4, 8, 8], &device);
/// assert_eq!(latents.into_data(), again.into_data());
/// ```
pub fn randn<const D: usize>(
    seed: u64,
    stream: u64,
    shape: impl Into<Shape>,
    device: &Device,
) -> Tensor<D> {
    randn_with(&mut generator(seed, stream), shape, device)
}

/// Makes a tensor of the next standard normal numbers of `rng`, in row-major order.
///
/// Two tensors made one after the other hold the same numbers as one tensor of both lengths.
pub fn randn_with<const D: usize>(
    rng: &mut impl Rng,
    shape: impl Into<Shape>,
    device: &Device,
) -> Tensor<D> {
    let shape = shape.into();
    let values: Vec<f32> = (0..shape.num_elements()).map(|_| rng.sample(StandardNormal)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The random number generator of a seed and a stream, which [`randn`] uses. It serves other draws that must
/// not depend on the backend.
pub fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(seed: u64, stream: u64, n: usize) -> Vec<f32> {
        let noise = randn::<1>(seed, stream, [n], &Device::default());
        noise.into_data().iter::<f32>().collect()
    }

    #[test]
    fn noise_is_a_function_of_seed_and_stream() {
        assert_eq!(values(7, 3, 64), values(7, 3, 64));
        assert_ne!(values(7, 3, 64), values(7, 4, 64));
        assert_ne!(values(7, 3, 64), values(8, 3, 64));
        // A longer tensor continues a shorter one: the numbers do not depend on the batch.
        assert_eq!(values(7, 3, 64), values(7, 3, 128)[..64]);
    }

    #[test]
    fn noise_is_standard_normal() {
        let values = values(0, 0, 100_000);
        let mean = values.iter().sum::<f32>() / 1e5;
        let square = values.iter().map(|x| x * x).sum::<f32>() / 1e5;
        // The bounds are five standard errors.
        assert!(mean.abs() < 5.0 * 1e-5f32.sqrt(), "{mean}");
        assert!((square - 1.0).abs() < 5.0 * 2e-5f32.sqrt(), "{square}");
    }
}
