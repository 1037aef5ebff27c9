//! Seeded Gaussian noise that is the same on every backend.
//!
//! The numbers come from a counter-based generator on the host (ChaCha with 8 rounds), since each
//! device's own generator gives other ones: a picture drawn from seed 7 on a CPU and on a GPU then
//! starts from the same latent, and so does the picture drawn before and after training.

use burn::tensor::{Device, Shape, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// Standard normal numbers of a given shape, in row-major order.
///
/// `stream` separates uses of one seed (the n-th picture, the n-th step): streams of one seed are
/// independent, and each can be drawn without the others.
pub fn gaussian<const D: usize>(
    seed: u64,
    stream: u64,
    shape: impl Into<Shape>,
    device: &Device,
) -> Tensor<D> {
    normal(&mut generator(seed, stream), shape, device)
}

/// The next numbers of a stream, standard normal, in row-major order: two draws, one after the other, are one
/// of both lengths.
pub fn normal<const D: usize>(
    rng: &mut impl Rng,
    shape: impl Into<Shape>,
    device: &Device,
) -> Tensor<D> {
    let shape = shape.into();
    let values: Vec<f32> = (0..shape.num_elements()).map(|_| rng.sample(StandardNormal)).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// The generator behind [`gaussian`], for other draws that must not depend on the backend.
pub fn generator(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(seed: u64, stream: u64, n: usize) -> Vec<f32> {
        let noise = gaussian::<1>(seed, stream, [n], &Device::default());
        noise.into_data().iter::<f32>().collect()
    }

    #[test]
    fn noise_is_a_function_of_seed_and_stream() {
        assert_eq!(draw(7, 3, 64), draw(7, 3, 64));
        assert_ne!(draw(7, 3, 64), draw(7, 4, 64));
        assert_ne!(draw(7, 3, 64), draw(8, 3, 64));
        // A longer draw continues a shorter one: the numbers do not depend on the batch.
        assert_eq!(draw(7, 3, 64), draw(7, 3, 128)[..64]);
    }

    #[test]
    fn noise_is_standard_normal() {
        let values = draw(0, 0, 100_000);
        let mean = values.iter().sum::<f32>() / 1e5;
        let square = values.iter().map(|x| x * x).sum::<f32>() / 1e5;
        // Five standard errors of each.
        assert!(mean.abs() < 5.0 * 1e-5f32.sqrt(), "{mean}");
        assert!((square - 1.0).abs() < 5.0 * 2e-5f32.sqrt(), "{square}");
    }
}
