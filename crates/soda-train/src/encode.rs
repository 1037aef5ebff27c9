//! The data set as the network sees it: latent distributions and text states, computed once.
//!
//! Pictures and captions never change during a run, so the autoencoder and the text encoder run once per
//! example. What is kept of a picture is the encoder's distribution, not one sample of it: every step
//! draws anew, as the reference trainers do.

use burn::tensor::{Device, Int, Tensor};
use soda_models::image::{read_rgb, resize_center_crop, to_tensor};
use soda_models::noise::gaussian;
use soda_models::pipeline::Pipeline;

use crate::dataset::Example;
use crate::error::TrainError;

/// Encoded examples, all on one device.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Mean of the latent distribution, scaled as the network expects, `[n, c, h, w]`.
    mean: Tensor<4>,
    /// Its standard deviation, scaled alike, `[n, c, h, w]`.
    std: Tensor<4>,
    /// Text states of the captions, `[n, 77, width]`.
    pub text: Tensor<3>,
    /// Captions that were longer than the text encoder reads, and were cut.
    pub cut: Vec<String>,
}

impl Encoded {
    /// Encodes `examples`, cropping each picture to the centre square of the model's size.
    ///
    /// # Errors
    /// A picture that cannot be read.
    pub fn new(
        pipeline: &Pipeline,
        examples: &[Example],
        device: &Device,
    ) -> Result<Self, TrainError> {
        let size = pipeline.image_size() as u32;
        let mut means = Vec::new();
        let mut stds = Vec::new();
        let scale = pipeline.vae.scaling_factor;
        for example in examples {
            let image = resize_center_crop(&read_rgb(&example.image)?, size, size);
            // The decoder's range is [-1, 1].
            let pixels = to_tensor(&[image], device).mul_scalar(2.0).sub_scalar(1.0);
            let posterior = pipeline.vae.encode(pixels);
            stds.push(posterior.std().mul_scalar(scale));
            means.push(posterior.mean.mul_scalar(scale));
        }
        let captions: Vec<String> =
            examples.iter().map(|example| example.caption.clone()).collect();
        let cut = captions.iter().filter(|caption| pipeline.tokenizer.encode(caption).truncated);
        Ok(Self {
            mean: Tensor::cat(means, 0),
            std: Tensor::cat(stds, 0),
            cut: cut.cloned().collect(),
            text: pipeline.encode_prompts(&captions),
        })
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        self.mean.dims()[0]
    }

    /// Never true of what [`Encoded::new`] makes from a data set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One sample of the latents of the examples `rows` `[b]`, `[b, c, h, w]`.
    pub fn latents(&self, rows: Tensor<1, Int>, seed: u64, stream: u64) -> Tensor<4> {
        let mean = self.mean.clone().select(0, rows.clone());
        let noise = gaussian(seed, stream, mean.dims(), &mean.device());
        mean + self.std.clone().select(0, rows) * noise
    }
}
