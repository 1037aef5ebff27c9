//! The training loop: fixed pictures, random noise, one mean squared error (DreamBooth, arXiv
//! 2208.12242, on latents; Ho et al., arXiv 2006.11239, eq. 14).
//!
//! Everything random is a function of the seed and the step, never of what ran before.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use soda_adapters::Method;
use soda_models::noise::gaussian;
use soda_models::scheduler::Ddpm;
use soda_models::unet::Unet;

use crate::config::TrainConfig;
use crate::encode::Encoded;
use crate::error::TrainError;
use crate::optimizer::AdapterOptimizer;

/// Random streams of one seed. Samples use small stream numbers; these stay clear of them.
mod stream {
    pub(super) const ORDER: u64 = 1 << 40;
    pub(super) const TIMESTEP: u64 = 2 << 40;
    pub(super) const NOISE: u64 = 3 << 40;
    pub(super) const POSTERIOR: u64 = 4 << 40;
}

/// Trains the adapters of `unet` (attached, on a plain device) and returns it, plain again.
///
/// `on_step` gets the step, from 1, and its loss.
///
/// # Errors
/// A loss that is not finite.
pub fn train<M: Method>(
    unet: Unet,
    method: &M,
    data: &Encoded,
    schedule: &Ddpm,
    config: &TrainConfig,
    mut on_step: impl FnMut(usize, f32),
) -> Result<Unet, TrainError> {
    let mut unet = unet.train();
    let mut optimizer = AdapterOptimizer::new(&config.optimizer);
    for step in 0..config.steps {
        let batch = Batch::draw(data, schedule, config, step as u64);
        let loss = batch.loss(&unet);
        let grads = loss.backward();
        let factor = config.optimizer.schedule.factor(step, config.steps);
        unet = optimizer.step(method, unet, &grads, factor);

        let loss = loss.into_scalar::<f32>();
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step: step + 1, loss });
        }
        on_step(step + 1, loss);
    }
    Ok(unet.valid())
}

/// One step's noisy latents and what the network should say of them.
struct Batch {
    /// `x_t`, `[b, c, h, w]`.
    noisy: Tensor<4>,
    /// `t`, `[b]`.
    timesteps: Tensor<1, Int>,
    /// Text states, `[b, 77, width]`.
    text: Tensor<3>,
    /// `ε` or `v`, as the model predicts, `[b, c, h, w]`.
    target: Tensor<4>,
}

impl Batch {
    fn draw(data: &Encoded, schedule: &Ddpm, config: &TrainConfig, step: u64) -> Self {
        let device = data.text.device();
        let size = config.batch_size;
        let rows = Tensor::from_data(
            TensorData::new(order(data.len(), size, config.seed, step), [size]),
            &device,
        );
        let latents = data.latents(rows.clone(), config.seed, stream::POSTERIOR + step);
        let noise = gaussian(config.seed, stream::NOISE + step, latents.dims(), &device);
        let timesteps = timesteps(size, schedule.num_train_timesteps(), config.seed, step, &device);
        Self {
            noisy: schedule.add_noise(latents.clone(), noise.clone(), timesteps.clone()),
            text: data.text.clone().select(0, rows),
            target: schedule.target(latents, noise, timesteps.clone()),
            timesteps,
        }
    }

    /// `mean |f(x_t, t, c) - target|²`
    fn loss(self, unet: &Unet) -> Tensor<1> {
        let prediction = unet.forward(
            Tensor::from_inner(self.noisy),
            Tensor::from_inner(self.timesteps),
            Tensor::from_inner(self.text),
        );
        (prediction - Tensor::from_inner(self.target)).square().mean()
    }
}

/// Which examples a step sees: epoch after epoch, each in its own order.
fn order(examples: usize, size: usize, seed: u64, step: u64) -> Vec<i64> {
    let first = step as usize * size;
    let mut rows = Vec::with_capacity(size);
    while rows.len() < size {
        let position = first + rows.len();
        let (epoch, skip) = (position / examples, position % examples);
        let mut permutation: Vec<i64> = (0..examples as i64).collect();
        permutation.shuffle(&mut rng(seed, stream::ORDER + epoch as u64));
        rows.extend(permutation.into_iter().skip(skip).take(size - rows.len()));
    }
    rows
}

fn timesteps(size: usize, count: usize, seed: u64, step: u64, device: &Device) -> Tensor<1, Int> {
    let mut rng = rng(seed, stream::TIMESTEP + step);
    let values: Vec<i64> = (0..size).map(|_| rng.random_range(0..count as i64)).collect();
    Tensor::from_data(TensorData::new(values, [size]), device)
}

fn rng(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_sees_every_example_once() {
        for (examples, size) in [(5, 5), (5, 2), (3, 7), (1, 4)] {
            let epochs = 6;
            let steps = (examples * epochs) / size;
            let rows: Vec<i64> =
                (0..steps as u64).flat_map(|step| order(examples, size, 7, step)).collect();
            for epoch in rows.chunks_exact(examples) {
                let mut seen = epoch.to_vec();
                seen.sort_unstable();
                assert_eq!(seen, (0..examples as i64).collect::<Vec<_>>());
            }
        }
        assert_ne!(order(20, 20, 7, 0), order(20, 20, 7, 1));
        assert_ne!(order(20, 20, 7, 0), order(20, 20, 8, 0));
    }
}
