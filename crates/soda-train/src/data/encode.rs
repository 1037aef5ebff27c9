//! The data set as the network sees it: latent distributions and text states, computed once.
//!
//! Pictures and captions never change during a run, so the autoencoder and the text encoder run once per
//! variant (see `variants`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;
use sha2::{Digest as _, Sha256};
use soda_models::image::read_rgb_and_alpha;
use soda_models::pipeline::Pipeline;

use crate::config::{AugmentConfig, BucketConfig, MaskConfig, TrainConfig};
use crate::data::augment::{captions, views};
use crate::data::buckets::{Buckets, Size};
use crate::data::cache::{self, EncodeCache};
use crate::data::captions::Captions;
use crate::data::dataset::Example;
use crate::data::latents::{Latents, LatentsBuilder, Posterior};
use crate::data::masks;
use crate::data::prompts::Prompts;
use crate::error::TrainError;
use crate::output::tensor_file::hex;

/// What examples are made into.
#[derive(Clone, Debug, Default)]
pub struct EncodeConfig {
    /// Their variants.
    pub augment: AugmentConfig,
    /// Their sizes; without it the centre square.
    pub buckets: Option<BucketConfig>,
    /// What their parts count; without it all count alike.
    pub masks: Option<MaskConfig>,
    /// Whether captions stay tokens, for text encoders or new words that learn.
    pub tokens: bool,
    /// Decides crops and orders of tags.
    pub seed: u64,
}

impl EncodeConfig {
    /// That of a run's own examples.
    pub fn of(config: &TrainConfig) -> Self {
        Self {
            augment: config.augment.clone(),
            buckets: config.buckets.clone(),
            masks: config.masks.clone(),
            tokens: config.trains_text_encoder(),
            seed: config.seed,
        }
    }

    /// The same without variants, for what is measured and not learnt.
    #[must_use]
    pub fn without_augmentation(self) -> Self {
        Self { augment: AugmentConfig::default(), ..self }
    }

    /// The same without masks, for pictures of the class.
    #[must_use]
    pub fn without_masks(self) -> Self {
        Self { masks: None, ..self }
    }
}

/// Encoded examples in all their variants, on one device.
#[derive(Clone, Debug)]
pub struct EncodedDataset {
    /// By size; at least one.
    buckets: Vec<Bucket>,
    /// The captions; the last one is no caption.
    texts: Captions,
    dropout: f64,
    /// What tells these examples from others: a hash of their pixels, masks, captions and repeats.
    digest: String,
    /// Pictures smaller than what they are learnt at.
    pub enlarged: Vec<PathBuf>,
    /// Captions that were longer than the text encoder reads, and were cut.
    pub cut: Vec<String>,
}

/// The examples of one size.
#[derive(Clone, Debug)]
struct Bucket {
    size: Size,
    latents: Latents,
    examples: Examples,
}

/// The variants of examples.
#[derive(Clone, Debug, Default)]
struct Examples {
    /// Of each.
    variants: Vec<Variants>,
    /// Those of an epoch: each as often as it is repeated.
    epoch: Vec<usize>,
}

/// Rows of an example, pictures in its bucket.
#[derive(Clone, Debug)]
struct Variants {
    pictures: Range<usize>,
    captions: Range<usize>,
}

/// The variants that samples are made of, all of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    bucket: usize,
    pictures: Vec<i64>,
    captions: Vec<i64>,
}

impl EncodedDataset {
    /// Encodes `examples`, as far as `cache` does not have them; `progress` is told (examples done, examples in all) after each.
    ///
    /// # Errors
    /// A picture that cannot be read, or that fits no bucket; a mask that does not fit its picture; buckets
    /// that this base cannot have; a cache that can be neither read nor written.
    pub fn new(
        pipeline: &Pipeline,
        examples: &[Example],
        config: &EncodeConfig,
        cache: Option<&EncodeCache>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, TrainError> {
        let EncodeConfig { augment, buckets, masks, tokens, seed } = config;
        let device = &pipeline.device;
        let buckets = buckets_of(pipeline, buckets.as_ref())?;
        let grid = pipeline.vae_config.downscale() as u32;
        let mut found: BTreeMap<Size, (LatentsBuilder, Examples)> = BTreeMap::new();
        let (mut texts, mut enlarged) = (Vec::new(), Vec::new());
        let mut hash = Sha256::new();
        for (index, example) in examples.iter().enumerate() {
            let (picture, alpha) = read_rgb_and_alpha(&example.image)?;
            let (width, height) = picture.dimensions();
            hash.update(format!("{width} {height} {} {:?}", example.repeats, example.caption));
            hash.update(picture.as_raw());
            let mask = match masks {
                Some(masks) => masks::read(masks, &example.image, (width, height), alpha)?,
                None => None,
            };
            hash.update(mask.as_ref().map_or(&[][..], |mask| mask.as_raw()));
            let content = cache.map(|_| cache::picture(&picture));
            let size = buckets.of((width, height)).ok_or_else(|| TrainError::SmallPicture {
                path: example.image.clone(),
                width,
                height,
                step: buckets.step(),
            })?;
            if width < size[0] || height < size[1] {
                enlarged.push(example.image.clone());
            }
            let (latents, bucket) = found.entry(size).or_default();
            let (first, first_text) = (latents.len(), texts.len());
            for view in views((width, height), size, augment, *seed, index as u64) {
                let mask = masks.as_ref().zip(mask.as_ref());
                let mask = mask.map(|(masks, mask)| masks::weights(masks, mask, &view, grid));
                let make = || Posterior::of(view.of(&picture), &pipeline.vae, device);
                let posterior = match (cache, &content) {
                    (Some(cache), Some(content)) => {
                        cache.posterior(content, &view, device, make)?
                    }
                    _ => make(),
                };
                latents.push(&view, posterior, mask);
            }
            texts.extend(captions(&example.caption, augment, *seed, index as u64));
            bucket.epoch.extend(std::iter::repeat_n(bucket.variants.len(), example.repeats));
            bucket.variants.push(Variants {
                pictures: first..latents.len(),
                captions: first_text..texts.len(),
            });
            progress(index + 1, examples.len());
        }
        let cut = examples.iter().map(|example| &example.caption);
        let cut = cut.filter(|caption| pipeline.is_cut(caption)).cloned().collect();
        texts.push(String::new());
        let texts = match tokens {
            true => Captions::Tokens(pipeline.token_ids(&texts)),
            false => Captions::read(pipeline, &texts, cache)?,
        };
        let bucket = |(size, (latents, examples)): (Size, (LatentsBuilder, Examples))| Bucket {
            size,
            latents: latents.finish(device),
            examples,
        };
        Ok(Self {
            buckets: found.into_iter().map(bucket).collect(),
            texts,
            dropout: augment.caption_dropout,
            digest: hex(hash),
            enlarged,
            cut,
        })
    }

    /// Samples in an epoch: the number of examples, each counted as often as it is repeated.
    pub fn len(&self) -> usize {
        self.lens().iter().sum()
    }

    /// The same of each bucket.
    pub(crate) fn lens(&self) -> Vec<usize> {
        self.buckets.iter().map(|bucket| bucket.examples.epoch.len()).collect()
    }

    /// Never true of what [`EncodedDataset::new`] makes from a data set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of pictures and of captions, all variants counted.
    pub fn num_variants(&self) -> (usize, usize) {
        let pictures = self.buckets.iter().map(|bucket| bucket.latents.len()).sum();
        (pictures, self.texts.len() - 1)
    }

    /// Width and height of each bucket, and how many examples it has.
    pub fn buckets(&self) -> impl Iterator<Item = ([u32; 2], usize)> {
        self.buckets.iter().map(|bucket| (bucket.size, bucket.examples.variants.len()))
    }

    /// What tells the examples from others.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// Where the encoded examples are.
    pub fn device(&self) -> Device {
        self.texts.device()
    }

    /// A variant of each of the samples `positions` in the epoch of a bucket, drawn.
    pub(crate) fn rows(&self, bucket: usize, positions: &[i64], rng: &mut impl Rng) -> Rows {
        let mut rows = Rows { bucket, ..Rows::default() };
        let none = self.texts.len() as i64 - 1;
        let Examples { variants, epoch } = &self.buckets[bucket].examples;
        for &position in positions {
            let Variants { pictures, captions } = &variants[epoch[position as usize]];
            rows.pictures.push(rng.random_range(pictures.start as i64..pictures.end as i64));
            let caption = rng.random_range(captions.start as i64..captions.end as i64);
            let dropped = rng.random::<f64>() < self.dropout;
            rows.captions.push(if dropped { none } else { caption });
        }
        rows
    }

    /// The first variant of every example, a bucket at a time.
    pub(crate) fn first_rows(&self) -> Vec<Rows> {
        let first = |range: &Range<usize>| range.start as i64;
        let rows = |(index, bucket): (usize, &Bucket)| {
            let variants = &bucket.examples.variants;
            Rows {
                bucket: index,
                pictures: variants.iter().map(|variants| first(&variants.pictures)).collect(),
                captions: variants.iter().map(|variants| first(&variants.captions)).collect(),
            }
        };
        self.buckets.iter().enumerate().map(rows).collect()
    }

    /// One sample of the latents of each of `rows`, `[b, c, h, w]`.
    pub(crate) fn latents(&self, rows: &Rows, rng: &mut impl Rng) -> Tensor<4> {
        self.buckets[rows.bucket].latents.sample(&rows.pictures, rng)
    }

    /// The likeliest latents of each of `rows`, `[b, c, h, w]`.
    pub(crate) fn mode(&self, rows: &Rows) -> Tensor<4> {
        self.buckets[rows.bucket].latents.mode(&rows.pictures)
    }

    /// What each latent of `rows` counts, `[b, 1, h, w]`, where they do not count alike.
    pub(crate) fn mask(&self, rows: &Rows) -> Option<Tensor<4>> {
        self.buckets[rows.bucket].latents.mask(&rows.pictures)
    }

    /// Whether any picture has a mask.
    pub(crate) fn is_masked(&self) -> bool {
        self.first_rows().iter().any(|rows| self.mask(rows).is_some())
    }

    /// What the network is told of `rows`.
    pub(crate) fn prompts(&self, rows: &Rows) -> Prompts {
        let data = TensorData::new(rows.captions.clone(), [rows.len()]);
        let captions: Tensor<1, Int> = Tensor::from_data(data, &self.device());
        self.texts.select(captions, || self.buckets[rows.bucket].latents.time_ids(&rows.pictures))
    }
}

impl Rows {
    /// Number of samples.
    pub(crate) fn len(&self) -> usize {
        self.pictures.len()
    }
}

/// The sizes that pictures may have with this base.
///
/// # Errors
/// Settings that the base does not allow.
pub(crate) fn buckets_of(
    pipeline: &Pipeline,
    config: Option<&BucketConfig>,
) -> Result<Buckets, TrainError> {
    Buckets::new(config, pipeline.image_size(), pipeline.vae_config.downscale())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::path::Path;

    use soda_models::image::{read_rgb, resize_center_crop, to_tensor};
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
        let config = EncodeConfig { augment: augment.clone(), seed: 7, ..EncodeConfig::default() };
        let data =
            EncodedDataset::new(&pipeline, &examples, &config, None, &mut |_, _| ()).unwrap();
        let orders = captions(&examples[0].caption, &augment, 7, 0).len() as i64;
        assert!(orders > 1);
        let last = orders + 1;
        assert_eq!((data.len(), data.num_variants()), (3, (4, last as usize)));

        let picture = resize_center_crop(&read_rgb(&examples[0].image).unwrap(), 64, 64);
        let mirrored = image::imageops::flip_horizontal(&picture);
        let pixels = to_tensor(&[mirrored], &device).mul_scalar(2.0).sub_scalar(1.0);
        let expected = pipeline.vae.encode(pixels).mean.mul_scalar(pipeline.vae.scaling_factor);
        let found = data.buckets[0].latents.mode(&[1]);
        assert_eq!(expected.into_data(), found.into_data());
        let states = |text: &str| pipeline.encode_prompts(&[text.to_owned()]);
        let none = data.prompts(&Rows { bucket: 0, pictures: vec![0], captions: vec![last] });
        let none = none.ready().unwrap().text;
        let difference = (none - states("")).abs().max().into_scalar::<f32>();
        assert!(difference < 1e-5, "{difference}");

        // Every variant is drawn, the caption of one example only with its pictures, and as often dropped
        // as was asked: 0.3 of 3000, within five deviations.
        let rows = data.rows(0, &[0, 1, 2].repeat(1000), &mut generator(1, 1));
        let dropped = rows.captions.iter().filter(|row| **row == last).count();
        assert!((775..=1025).contains(&dropped), "{dropped}");
        for (sample, (picture, caption)) in rows.pictures.iter().zip(&rows.captions).enumerate() {
            let (pictures, captions) =
                if sample % 3 == 0 { (0..2, 0..orders) } else { (2..4, orders..last) };
            assert!(pictures.contains(picture) && (captions.contains(caption) || *caption == last));
        }
        assert!((0..4).all(|row| rows.pictures.contains(&row)));
        assert!((0..=last).all(|row| rows.captions.contains(&row)));
        assert_eq!(rows, data.rows(0, &[0, 1, 2].repeat(1000), &mut generator(1, 1)));
        let first = Rows { bucket: 0, pictures: vec![0, 2], captions: vec![0, orders] };
        assert_eq!(data.first_rows(), [first]);
    }

    /// Pictures of every shape: each in the bucket that is nearest, its latents those of its crop.
    #[test]
    fn every_picture_is_in_its_bucket() {
        let folder = tempfile::tempdir().unwrap();
        let picture = read_rgb(&example("", 1).image).unwrap();
        let examples: Vec<Example> = [(64, 64), (90, 60), (60, 90), (200, 130)]
            .into_iter()
            .map(|(width, height)| {
                let image = folder.path().join(format!("{width}.png"));
                let filter = image::imageops::FilterType::Triangle;
                image::imageops::resize(&picture, width, height, filter).save(&image).unwrap();
                Example { image, caption: format!("{width}"), repeats: 2 }
            })
            .collect();
        let device = Device::default();
        let pipeline = Pipeline::load(&toybox("base"), &device).unwrap();
        let buckets = Some(BucketConfig { step: 8, ..BucketConfig::default() });
        let config = EncodeConfig { buckets, ..EncodeConfig::default() };
        let mut told = Vec::new();
        let data = EncodedDataset::new(&pipeline, &examples, &config, None, &mut |done, all| {
            told.push((done, all))
        })
        .unwrap();
        assert_eq!(told, [(1, 4), (2, 4), (3, 4), (4, 4)]);
        // 60 x 90 for 48 x 80 is not, and so are all others.
        assert!(data.upscaled.is_empty());
        let found: Vec<_> = data.buckets().collect();
        assert_eq!(found, [([48, 80], 1), ([64, 64], 1), ([80, 48], 2)]);
        assert_eq!((data.len(), data.lens()), (8, vec![2, 2, 4]));
        let wide = read_rgb(&examples[3].image).unwrap();
        let pixels = to_tensor(&[resize_center_crop(&wide, 80, 48)], &device);
        let found = data.mode(&data.first_rows()[2]).narrow(0, 1, 1);
        assert_eq!(found.into_data(), pipeline.encode(pixels, false).into_data());

        let narrow = EncodeConfig { buckets: None, ..config };
        let data =
            EncodedDataset::new(&pipeline, &examples, &narrow, None, &mut |_, _| ()).unwrap();
        assert_eq!(data.upscaled, [examples[1].image.clone(), examples[2].image.clone()]);

        let upscale = BucketConfig { step: 8, upscale: false, ..BucketConfig::default() };
        picture.save(folder.path().join("64.png")).unwrap();
        image::imageops::thumbnail(&picture, 7, 9).save(folder.path().join("60.png")).unwrap();
        let config = EncodeConfig { buckets: Some(upscale), ..EncodeConfig::default() };
        let refused =
            EncodedDataset::new(&pipeline, &examples, &config, None, &mut |_, _| ()).unwrap_err();
        let message = refused.to_string();
        assert!(message.contains("60.png has 7 x 9 pixels") && message.contains("8"), "{message}");
    }
}
