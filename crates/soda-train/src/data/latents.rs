//! Latents of images: the autoencoder's posterior distributions, those of one size in one tensor.
//!
//! The distribution is kept instead of one sample, so that every step draws a new sample, as the trainers of
//! diffusers do.

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use image::RgbImage;
use rand::Rng;
use soda_models::image::to_tensor;
use soda_models::noise::randn_with;
use soda_models::pipeline::Pipeline;

use crate::data::augment::ImageVariant;
use crate::divided::Sent;
use crate::output::tensor_file::{Tensors, tensor};

/// The posterior distribution of an image's latents, in the scale that the denoiser sees.
#[derive(Clone, Debug)]
pub(crate) struct Posterior {
    /// The mean, `[1, c, h, w]`.
    pub(crate) mean: Tensor<4>,
    /// The standard deviation, `[1, c, h, w]`.
    pub(crate) std: Tensor<4>,
}

impl Posterior {
    /// Encodes `image` with the autoencoder of `pipeline`.
    pub(crate) fn encode(image: RgbImage, pipeline: &Pipeline) -> Self {
        let vae = &pipeline.vae;
        // Pixels of the autoencoder are in [-1, 1].
        let pixels = to_tensor(&[image], &pipeline.device).mul_scalar(2.0).sub_scalar(1.0);
        let posterior = vae.encode(pixels.cast(vae.any_weight().dtype()));
        let mean = vae.normalize(posterior.mode());
        let std = match takes_mode(pipeline) {
            true => mean.zeros_like(),
            false => posterior.std().cast(FloatDType::F32).mul_scalar(vae.scaling_factor),
        };
        Self { mean, std }
    }
}

impl Sent for Posterior {
    fn to_tensors(&self) -> Tensors {
        [("mean", &self.mean), ("std", &self.std)]
            .map(|(name, tensor)| (name.to_owned(), tensor.to_data()))
            .into()
    }

    fn from_tensors(tensors: &Tensors, device: &Device) -> Option<Self> {
        let [mean, std] = ["mean", "std"].map(|name| tensor(tensors, name, device));
        let (mean, std) = (mean?, std?);
        (mean.dims() == std.dims()).then_some(Self { mean, std })
    }
}

/// Whether an image has the mode of its latents alone.
///
/// diffusers' trainers of FLUX.2 and Z-Image take it. The statistics of FLUX.2's latents were measured on it.
pub(crate) fn takes_mode(pipeline: &Pipeline) -> bool {
    pipeline.scheduler.is_flow()
}

/// The latents of image variants of one size, on one device.
#[derive(Clone, Debug)]
pub(crate) struct Latents {
    /// The means, `[n, c, h, w]`.
    mean: Tensor<4>,
    /// The standard deviations, `[n, c, h, w]`.
    std: Tensor<4>,
    /// SDXL's time ids, `[n, 6]`.
    time_ids: Tensor<2>,
    /// The weight of each latent in the loss, `[n, 1, h, w]`. Without it all weights are 1.
    mask: Option<Tensor<4>>,
}

impl Latents {
    /// The number of image variants.
    pub(crate) fn len(&self) -> usize {
        self.mean.dims()[0]
    }

    pub(crate) fn device(&self) -> Device {
        self.mean.device()
    }

    /// Draws one sample of the latents of each of `rows`, `[b, c, h, w]`.
    pub(crate) fn sample(&self, rows: &[i64], rng: &mut impl Rng) -> Tensor<4> {
        let mean = self.mode(rows);
        let noise = randn_with(rng, mean.dims(), &mean.device());
        mean + self.std.clone().select(0, self.indices(rows)) * noise
    }

    /// The mode of the latents of each of `rows`, `[b, c, h, w]`, which is the mean.
    pub(crate) fn mode(&self, rows: &[i64]) -> Tensor<4> {
        self.mean.clone().select(0, self.indices(rows))
    }

    /// SDXL's time ids of `rows`, `[b, 6]`.
    pub(crate) fn time_ids(&self, rows: &[i64]) -> Tensor<2> {
        self.time_ids.clone().select(0, self.indices(rows))
    }

    /// The weights in the loss of the latents of `rows`, `[b, 1, h, w]`. `None` if all weights are 1.
    pub(crate) fn mask(&self, rows: &[i64]) -> Option<Tensor<4>> {
        self.mask.clone().map(|mask| mask.select(0, self.indices(rows)))
    }

    fn indices(&self, rows: &[i64]) -> Tensor<1, Int> {
        Tensor::from_data(TensorData::new(rows.to_vec(), [rows.len()]), &self.device())
    }
}

/// Collects image variants of one size for [`Latents`].
#[derive(Debug, Default)]
pub(crate) struct LatentsBuilder {
    means: Vec<Tensor<4>>,
    stds: Vec<Tensor<4>>,
    ids: Vec<f32>,
    /// The weights in the loss. `None` if all weights are 1.
    masks: Vec<Option<Vec<f32>>>,
}

impl LatentsBuilder {
    /// The number of image variants so far.
    pub(crate) fn len(&self) -> usize {
        self.masks.len()
    }

    /// Adds an image variant, whose latents come later.
    pub(crate) fn push(&mut self, variant: &ImageVariant, mask: Option<Vec<f32>>) {
        self.masks.push(mask);
        self.ids.extend(variant.time_ids());
    }

    /// Adds the latents of the next image variant.
    pub(crate) fn push_latents(&mut self, Posterior { mean, std }: Posterior) {
        self.means.push(mean);
        self.stds.push(std);
    }

    /// Concatenates all variants. There must be at least one, and latents of each.
    pub(crate) fn finish(self, device: &Device) -> Latents {
        let count = self.len();
        let mean = Tensor::cat(self.means, 0);
        let [_, _, height, width] = mean.dims();
        let mask = self.masks.iter().any(Option::is_some).then(|| {
            let each = |mask: Option<Vec<f32>>| mask.unwrap_or_else(|| vec![1.0; height * width]);
            let all: Vec<f32> = self.masks.into_iter().flat_map(each).collect();
            Tensor::from_data(TensorData::new(all, [count, 1, height, width]), device)
        });
        Latents {
            mask,
            mean,
            std: Tensor::cat(self.stds, 0),
            time_ids: Tensor::from_data(TensorData::new(self.ids, [count, 6]), device),
        }
    }
}
