//! The validation loss: the squared error, weighted by masks where there are some, of fixed pictures at fixed noise and
//! timesteps.

use burn::tensor::{Int, Tensor};
use soda_models::noise::{generator, normal};
use soda_models::pipeline::Networks;
use soda_models::scheduler::Ddpm;

use crate::config::TrainConfig;
use crate::data::batch::Batch;
use crate::data::encode::{EncodedDataset, Rows};
use crate::data::rng;
use crate::step::loss::value;

/// What is measured, ready.
pub(crate) struct Validation {
    batches: Vec<Batch>,
}

impl Validation {
    /// The first variant of every example in `data` at `config.validation.timesteps` timesteps, each the
    /// middle of its share of those that are trained. The latents are the likeliest, the noise is the seed's.
    pub(crate) fn new(data: &EncodedDataset, schedule: &Ddpm, config: &TrainConfig) -> Self {
        let rows = data.first_rows();
        let (device, count) = (data.device(), rows.iter().map(Rows::len).sum::<usize>());
        let [first, end] =
            config.objective.timesteps.unwrap_or([0, schedule.num_train_timesteps()]);
        let shares = config.validation.timesteps;
        let mut batches = Vec::new();
        for share in 0..shares {
            let t = first + (end - first) * (2 * share + 1) / (2 * shares);
            let mut noise = generator(config.seed, rng::VALIDATION + share as u64);
            for rows in &rows {
                let (latents, samples) = (data.mode(rows), rows.len());
                let noise = normal(&mut noise, latents.dims(), &device);
                let timesteps = Tensor::<1, Int>::full([samples], t as i64, &device);
                let batch = Batch {
                    noisy: schedule.add_noise(latents.clone(), noise.clone(), timesteps.clone()),
                    target: schedule.target(latents, noise, timesteps.clone()),
                    prompts: data.prompts(rows),
                    weight: Tensor::full([samples], 1.0 / (count * shares) as f64, &device),
                    timesteps: timesteps.float(),
                    mask: data.mask(rows),
                };
                batches.extend(batch.parts(samples.div_ceil(config.batch_size)));
            }
        }
        Self { batches }
    }

    /// The mean over pictures and timesteps.
    pub(crate) fn loss(&self, networks: &Networks) -> f32 {
        self.batches.iter().map(|batch| value(networks, batch)).sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::path::Path;

    use soda_models::noise::gaussian;
    use soda_models::pipeline::Pipeline;

    use super::*;
    use crate::config::{apply_setting, preset};
    use crate::data::dataset::Dataset;
    use crate::data::encode::EncodeConfig;

    /// Against the definition, sample by sample. 1e-5: batches add in another order.
    #[test]
    fn the_loss_is_the_mean_of_the_samples_own() {
        let toybox = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/toybox");
        let mut table = preset("toybox").unwrap();
        for setting in [
            "base=b",
            "data=d",
            "batch_size=2",
            "validation.timesteps=2",
            "objective.timesteps=[100, 500]",
        ] {
            apply_setting(&mut table, setting).unwrap();
        }
        let config = TrainConfig::from_table(table).unwrap();
        let device = Default::default();
        let pipeline = Pipeline::load(&toybox.join("base"), &device).unwrap();
        let examples = Dataset::read(&toybox.join("subjects/castle_mug"), None).unwrap().examples;
        let encode = EncodeConfig::from_train_config(&config);
        let data =
            EncodedDataset::new(&pipeline, &examples[..3], &encode, None, &mut |_, _| ()).unwrap();
        let schedule = pipeline.noise_schedule();
        let validation = Validation::new(&data, &schedule, &config);
        let networks = pipeline.networks();
        let found = validation.loss(&networks);
        assert_eq!(found, Validation::new(&data, &schedule, &config).loss(&networks));

        let mut sum = 0.0;
        let latents = data.mode(&data.first_rows()[0]);
        let text = data.prompts(&data.first_rows()[0]).ready().unwrap().text;
        for (share, t) in [(0, 200), (1, 400)] {
            let noise: Tensor<4> =
                gaussian(config.seed, rng::VALIDATION + share, latents.dims(), &device);
            let alpha = schedule.schedule.snr(t) / (1.0 + schedule.schedule.snr(t));
            for row in 0..3 {
                let [x, e] = [&latents, &noise].map(|tensor| tensor.clone().narrow(0, row, 1));
                let noisy = x.mul_scalar(alpha.sqrt()) + e.clone().mul_scalar((1.0 - alpha).sqrt());
                let timestep = Tensor::<1>::full([1], t as f64, &device);
                let told = text.clone().narrow(0, row, 1);
                let error = pipeline.unet.forward(noisy, timestep, told) - e;
                sum += error.square().mean().into_scalar::<f32>() / 6.0;
            }
        }
        assert!((found - sum).abs() < 1e-5 * sum, "{found} for {sum}");
    }
}
