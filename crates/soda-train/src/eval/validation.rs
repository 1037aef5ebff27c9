//! The validation loss: the squared error of fixed images at fixed noise and timesteps, weighted by masks if
//! there are any.

use burn::tensor::{Int, Tensor};
use soda_models::noise::{generator, randn_with};
use soda_models::pipeline::Networks;
use soda_models::scheduler::ForwardProcess;

use crate::config::TrainConfig;
use crate::data::batch::Batch;
use crate::data::encoded_dataset::{EncodedDataset, Rows};
use crate::data::rng;
use crate::divided::{Division, Recipients, Work};
use crate::error::TrainError;
use crate::step::error_graph::ErrorGraph;

/// The batches on which the validation loss is measured.
pub(crate) struct Validation {
    batches: Vec<Batch>,
}

impl Validation {
    /// Prepares the first variant of every example at `config.validation.timesteps` timesteps.
    ///
    /// The range of trained timesteps is cut into as many parts of equal length, and the middle of each is
    /// used. The latents are the mode of their distribution and the noise is a function of the seed.
    pub(crate) fn new(
        data: &EncodedDataset,
        schedule: &ForwardProcess,
        config: &TrainConfig,
    ) -> Self {
        let rows = data.first_rows();
        let (device, count) = (data.device(), rows.iter().map(Rows::len).sum::<usize>());
        let [first, end] =
            config.objective.timesteps.unwrap_or([0, schedule.num_train_timesteps()]);
        let parts = config.validation.timesteps;
        let mut batches = Vec::new();
        for part in 0..parts {
            let t = first + (end - first) * (2 * part + 1) / (2 * parts);
            let mut noise = generator(config.seed, rng::VALIDATION + part as u64);
            for rows in &rows {
                let (latents, samples) = (data.mode(rows), rows.len());
                let noise = randn_with(&mut noise, latents.dims(), &device);
                let timesteps = Tensor::<1, Int>::full([samples], t as i64, &device);
                let batch = Batch {
                    noisy: schedule.add_noise(latents.clone(), noise.clone(), timesteps.clone()),
                    target: schedule.target(latents, noise, timesteps.clone()),
                    prompts: data.prompts(rows),
                    weight: Tensor::full([samples], 1.0 / (count * parts) as f64, &device),
                    timesteps: schedule.denoiser_timesteps(timesteps),
                    mask: data.mask(rows),
                };
                batches.extend(batch.split(samples.div_ceil(config.batch_size)));
            }
        }
        Self { batches }
    }

    /// The validation loss of `networks`, on rank 0: the mean over images and timesteps. The ranks divide the
    /// batches, and rank 0 adds their losses in the order of the batches. `with_graph` allows a CUDA graph.
    ///
    /// # Errors
    /// A rank that has gone.
    pub(crate) fn loss(
        &self,
        networks: &Networks,
        with_graph: bool,
        division: Division<'_>,
    ) -> Result<f32, TrainError> {
        let work = Work {
            what: "validation losses",
            count: self.batches.len(),
            recipients: Recipients::Rank0,
            device: &networks.denoiser.device(),
            fits: &|_, _, _| true,
        };
        let own = division.own(self.batches.len()).len();
        let mut errors = ErrorGraph::new(networks, own, with_graph);
        let loss = |batch: usize| Ok(errors.squared_error(&self.batches[batch]));
        Ok(division.each(&work, loss)?.into_iter().sum())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use soda_models::noise::randn;
    use soda_models::pipeline::Pipeline;

    use super::*;
    use crate::config::{apply_setting, preset};
    use crate::data::dataset::Dataset;
    use crate::data::encode::{EncodeConfig, EncodeOptions};

    /// The reference is the definition, sample by sample. The tolerance of 1e-5 allows for the order of sums
    /// in batches.
    #[test]
    fn the_loss_is_the_mean_over_the_samples() {
        let toybox = soda_testing::workspace_path("examples/toybox");
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
            EncodedDataset::new(&pipeline, &examples[..3], &encode, EncodeOptions::default())
                .unwrap();
        let schedule = pipeline.forward_process();
        let validation = Validation::new(&data, &schedule, &config);
        let networks = pipeline.networks();
        let alone = Division::default();
        let found = validation.loss(&networks, false, alone).unwrap();
        let again =
            Validation::new(&data, &schedule, &config).loss(&networks, false, alone).unwrap();
        assert_eq!(found, again);

        let mut sum = 0.0;
        let latents = data.mode(&data.first_rows()[0]);
        let text = data.prompts(&data.first_rows()[0]).encoded().unwrap().text;
        for (share, t) in [(0, 200), (1, 400)] {
            let noise: Tensor<4> =
                randn(config.seed, rng::VALIDATION + share, latents.dims(), &device);
            let alpha = schedule.schedule.snr(t) / (1.0 + schedule.schedule.snr(t));
            for row in 0..3 {
                let [x, e] = [&latents, &noise].map(|tensor| tensor.clone().narrow(0, row, 1));
                let noisy = x.mul_scalar(alpha.sqrt()) + e.clone().mul_scalar((1.0 - alpha).sqrt());
                let timestep = Tensor::<1>::full([1], t as f64, &device);
                let told = text.clone().narrow(0, row, 1);
                let error = pipeline.denoiser.forward(noisy, timestep, told) - e;
                sum += error.square().mean().into_scalar::<f32>() / 6.0;
            }
        }
        assert!((found - sum).abs() < 1e-5 * sum, "{found} for {sum}");
    }
}
