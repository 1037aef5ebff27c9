//! The data set as the network sees it: latent distributions and text states, computed once.
//!
//! Pictures and captions never change during a run, so the autoencoder and the text encoder run once per
//! variant (see `variants`). What is kept of a picture is the encoder's distribution, not one sample of
//! it: every step draws anew, as the reference trainers do.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;
use sha2::{Digest as _, Sha256};
use soda_models::image::{read_rgb, to_tensor};
use soda_models::noise::gaussian;
use soda_models::pipeline::Pipeline;
use soda_models::unet::{AddedCondition, Condition};

use crate::config::AugmentConfig;
use crate::dataset::Example;
use crate::error::TrainError;
use crate::variants::{captions, views};

/// Captions read by the text encoder at once.
const TEXTS_AT_ONCE: usize = 32;

/// Encoded examples in all their variants, on one device.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Mean of the latent distribution of each picture, scaled as the network expects, `[n, c, h, w]`.
    mean: Tensor<4>,
    /// Its standard deviation, scaled alike, `[n, c, h, w]`.
    std: Tensor<4>,
    /// Sizes and crops of the pictures as SDXL is told them, `[n, 6]`.
    time_ids: Tensor<2>,
    /// Text states of the captions, `[m, 77, width]`; the last one is that of no caption.
    text: Tensor<3>,
    /// SDXL's summaries of them, `[m, p]`.
    pooled: Option<Tensor<2>>,
    /// The variants of each example.
    variants: Vec<Variants>,
    /// The examples of an epoch: each as often as it is repeated.
    epoch: Vec<usize>,
    dropout: f64,
    /// What tells these examples from others: a hash of their pixels, captions and repeats.
    digest: String,
    /// Captions that were longer than the text encoder reads, and were cut.
    pub cut: Vec<String>,
}

/// Rows of an example.
#[derive(Clone, Debug)]
struct Variants {
    pictures: Range<usize>,
    captions: Range<usize>,
}

/// The variants that samples are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    pictures: Vec<i64>,
    captions: Vec<i64>,
}

impl Encoded {
    /// Encodes `examples` in the variants that `augment` asks for.
    ///
    /// # Errors
    /// A picture that cannot be read.
    pub fn new(
        pipeline: &Pipeline,
        examples: &[Example],
        augment: &AugmentConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Self, TrainError> {
        let size = pipeline.image_size() as u32;
        let scale = pipeline.vae.scaling_factor;
        let (mut means, mut stds, mut ids) = (Vec::new(), Vec::new(), Vec::new());
        let (mut texts, mut variants, mut epoch) = (Vec::new(), Vec::new(), Vec::new());
        let mut hash = Sha256::new();
        for (index, example) in examples.iter().enumerate() {
            let (first, first_text) = (means.len(), texts.len());
            let picture = read_rgb(&example.image)?;
            let (width, height) = picture.dimensions();
            hash.update(format!("{width} {height} {} {:?}", example.repeats, example.caption));
            hash.update(picture.as_raw());
            for view in views(picture.dimensions(), size, augment, seed, index as u64) {
                // The decoder's range is [-1, 1].
                let pixels =
                    to_tensor(&[view.of(&picture)], device).mul_scalar(2.0).sub_scalar(1.0);
                let posterior = pipeline.vae.encode(pixels);
                stds.push(posterior.std().mul_scalar(scale));
                means.push(posterior.mean.mul_scalar(scale));
                ids.extend(view.time_ids());
            }
            texts.extend(captions(&example.caption, augment, seed, index as u64));
            variants
                .push(Variants { pictures: first..means.len(), captions: first_text..texts.len() });
            epoch.extend(std::iter::repeat_n(index, example.repeats));
        }
        let cut = examples.iter().map(|example| &example.caption);
        let cut = cut.filter(|caption| pipeline.is_cut(caption)).cloned().collect();
        texts.push(String::new());
        let (text, pooled) = read(pipeline, &texts);
        let count = means.len();
        Ok(Self {
            mean: Tensor::cat(means, 0),
            std: Tensor::cat(stds, 0),
            time_ids: Tensor::from_data(TensorData::new(ids, [count, 6]), device),
            text,
            pooled,
            variants,
            epoch,
            dropout: augment.caption_dropout,
            digest: hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            cut,
        })
    }

    /// Samples in an epoch: the number of examples, each counted as often as it is repeated.
    pub fn len(&self) -> usize {
        self.epoch.len()
    }

    /// Never true of what [`Encoded::new`] makes from a data set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of pictures and of captions, all variants counted.
    pub fn num_variants(&self) -> (usize, usize) {
        (self.mean.dims()[0], self.text.dims()[0] - 1)
    }

    /// What tells the examples from others.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// Where the encoded examples are.
    pub fn device(&self) -> Device {
        self.mean.device()
    }

    /// A variant of each of the epoch's samples `positions`, drawn.
    pub(crate) fn rows(&self, positions: &[i64], rng: &mut impl Rng) -> Rows {
        let mut rows = Rows::default();
        let none = self.text.dims()[0] as i64 - 1;
        for &position in positions {
            let Variants { pictures, captions } = &self.variants[self.epoch[position as usize]];
            rows.pictures.push(rng.random_range(pictures.start as i64..pictures.end as i64));
            let caption = rng.random_range(captions.start as i64..captions.end as i64);
            let dropped = rng.random::<f64>() < self.dropout;
            rows.captions.push(if dropped { none } else { caption });
        }
        rows
    }

    /// The first variant of every example.
    pub(crate) fn first_rows(&self) -> Rows {
        let first = |range: &Range<usize>| range.start as i64;
        Rows {
            pictures: self.variants.iter().map(|variants| first(&variants.pictures)).collect(),
            captions: self.variants.iter().map(|variants| first(&variants.captions)).collect(),
        }
    }

    /// One sample of the latents of each of `rows`, `[b, c, h, w]`.
    pub(crate) fn latents(&self, rows: &Rows, seed: u64, stream: u64) -> Tensor<4> {
        let rows = self.select(&rows.pictures);
        let mean = self.mean.clone().select(0, rows.clone());
        let noise = gaussian(seed, stream, mean.dims(), &mean.device());
        mean + self.std.clone().select(0, rows) * noise
    }

    /// The likeliest latents of each of `rows`, `[b, c, h, w]`.
    pub(crate) fn likeliest(&self, rows: &Rows) -> Tensor<4> {
        self.mean.clone().select(0, self.select(&rows.pictures))
    }

    /// What the network is told of `rows`.
    pub(crate) fn condition(&self, rows: &Rows) -> Condition {
        let captions = self.select(&rows.captions);
        let added = self.pooled.clone().map(|pooled| AddedCondition {
            pooled: pooled.select(0, captions.clone()),
            time_ids: self.time_ids.clone().select(0, self.select(&rows.pictures)),
        });
        Condition { text: self.text.clone().select(0, captions), added }
    }

    fn select(&self, rows: &[i64]) -> Tensor<1, Int> {
        Tensor::from_data(TensorData::new(rows.to_vec(), [rows.len()]), &self.device())
    }
}

impl Rows {
    /// Number of samples.
    pub(crate) fn len(&self) -> usize {
        self.pictures.len()
    }
}

/// Text states `[m, 77, width]` and, of SDXL, summaries `[m, p]`.
fn read(pipeline: &Pipeline, texts: &[String]) -> (Tensor<3>, Option<Tensor<2>>) {
    let (mut states, mut summaries) = (Vec::new(), Vec::new());
    for texts in texts.chunks(TEXTS_AT_ONCE) {
        let Condition { text, added } = pipeline.condition(texts, 0, [pipeline.image_size(); 2]);
        states.push(text);
        summaries.extend(added.map(|added| added.pooled));
    }
    let summaries = (!summaries.is_empty()).then(|| Tensor::cat(summaries, 0));
    (Tensor::cat(states, 0), summaries)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::path::{Path, PathBuf};

    use soda_models::image::resize_center_crop;
    use soda_models::noise::generator;

    use super::*;

    fn toybox(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/toybox").join(name)
    }

    fn example(caption: &str, repeats: usize) -> Example {
        let image = toybox("subjects/castle_mug/00.png");
        Example { image, caption: caption.to_owned(), repeats }
    }

    #[test]
    fn variants_are_what_the_autoencoder_says_of_the_mirrored_picture() {
        let device = Device::default();
        let pipeline = Pipeline::load(&toybox("base"), &device).unwrap();
        let augment = AugmentConfig {
            flip: true,
            tag_orders: 3,
            caption_dropout: 0.3,
            ..AugmentConfig::default()
        };
        let examples = [example("sks mug, red, big, old", 1), example("a mug", 2)];
        let data = Encoded::new(&pipeline, &examples, &augment, 7, &device).unwrap();
        let orders = captions(&examples[0].caption, &augment, 7, 0).len() as i64;
        assert!(orders > 1);
        let last = orders + 1;
        assert_eq!((data.len(), data.num_variants()), (3, (4, last as usize)));

        let picture = resize_center_crop(&read_rgb(&examples[0].image).unwrap(), 64, 64);
        let mirrored = image::imageops::flip_horizontal(&picture);
        let pixels = to_tensor(&[mirrored], &device).mul_scalar(2.0).sub_scalar(1.0);
        let expected = pipeline.vae.encode(pixels).mean.mul_scalar(pipeline.vae.scaling_factor);
        let found = data.mean.clone().narrow(0, 1, 1);
        assert_eq!(expected.into_data(), found.into_data());
        let states = |text: &str| pipeline.encode_prompts(&[text.to_owned()]);
        let none = data.condition(&Rows { pictures: vec![0], captions: vec![last] }).text;
        let difference = (none - states("")).abs().max().into_scalar::<f32>();
        assert!(difference < 1e-5, "{difference}");

        // Every variant is drawn, the caption of one example only with its pictures, and as often dropped
        // as was asked: 0.3 of 3000, within five deviations.
        let rows = data.rows(&[0, 1, 2].repeat(1000), &mut generator(1, 1));
        let dropped = rows.captions.iter().filter(|row| **row == last).count();
        assert!((775..=1025).contains(&dropped), "{dropped}");
        for (sample, (picture, caption)) in rows.pictures.iter().zip(&rows.captions).enumerate() {
            let (pictures, captions) =
                if sample % 3 == 0 { (0..2, 0..orders) } else { (2..4, orders..last) };
            assert!(pictures.contains(picture) && (captions.contains(caption) || *caption == last));
        }
        assert!((0..4).all(|row| rows.pictures.contains(&row)));
        assert!((0..=last).all(|row| rows.captions.contains(&row)));
        assert_eq!(rows, data.rows(&[0, 1, 2].repeat(1000), &mut generator(1, 1)));
        assert_eq!(data.first_rows(), Rows { pictures: vec![0, 2], captions: vec![0, orders] });
    }
}
