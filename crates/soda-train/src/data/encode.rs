//! Encoding of a data set: latent distributions of all image variants, embeddings or tokens of all captions.
//!
//! Images and captions never change during a run, so that the autoencoder and the text encoders run once per
//! variant.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::Device;
use image::{GrayImage, RgbImage};
use sha2::{Digest as _, Sha256};
use soda_models::image::read_rgb_and_alpha;
use soda_models::pipeline::Pipeline;

use crate::config::{AugmentConfig, BucketConfig, MaskConfig, TrainConfig};
use crate::data::augment::{ImageVariant, caption_variants, image_variants};
use crate::data::buckets::{Buckets, Size};
use crate::data::cache::{EncodeCache, image_hash};
use crate::data::captions::Captions;
use crate::data::encoded_dataset::{Bucket, EncodedDataset, ExampleVariants, Examples};
use crate::data::folder::Example;
use crate::data::latents::{LatentsBuilder, Posterior};
use crate::data::masks;
use crate::divided::{Division, Recipients, Work};
use crate::error::{ConfigError, DataError, TrainError};
use crate::output::tensor_file::hex;

/// What is encoded of each example.
#[derive(Clone, Debug, Default)]
pub struct EncodeConfig {
    /// The variants of images and captions.
    pub augment: AugmentConfig,
    /// The training sizes. Without buckets all images are squares.
    pub buckets: Option<BucketConfig>,
    /// The weights of image parts in the loss. Without masks all parts have the same weight.
    pub masks: Option<MaskConfig>,
    /// Whether captions stay tokens, because text encoders or new words are trained.
    pub tokens: bool,
    /// The seed of random crops and tag orders.
    pub seed: u64,
}

impl EncodeConfig {
    /// The configuration for the training examples of a run.
    pub fn from_train_config(config: &TrainConfig) -> Self {
        Self {
            augment: config.augment.clone(),
            buckets: config.buckets.clone(),
            masks: config.masks.clone(),
            tokens: config.trains_text_encoder(),
            seed: config.seed,
        }
    }

    /// Removes data augmentation, for images that are measured and not trained on.
    #[must_use]
    pub fn without_augmentation(self) -> Self {
        Self { augment: AugmentConfig::default(), ..self }
    }

    /// Removes masks, for class images.
    #[must_use]
    pub fn without_masks(self) -> Self {
        Self { masks: None, ..self }
    }
}

/// Options of [`EncodedDataset::new`] that do not change its result.
#[derive(Default)]
pub struct EncodeOptions<'a> {
    /// The cache of encodings on disk.
    pub cache: Option<&'a EncodeCache>,
    /// Called after each example with the number of finished examples and the number of all examples.
    pub on_progress: Option<&'a mut dyn FnMut(usize, usize)>,
}

impl EncodedDataset {
    /// Encodes `examples` with the autoencoder and the text encoders of `pipeline`, as far as the cache lacks
    /// them.
    ///
    /// # Errors
    /// Returns an error in these cases:
    ///
    /// - An image cannot be read or fits no bucket.
    /// - A mask does not fit its image.
    /// - The base model does not allow the buckets.
    /// - The cache can be neither read nor written.
    pub fn new(
        pipeline: &Pipeline,
        examples: &[Example],
        config: &EncodeConfig,
        options: EncodeOptions<'_>,
    ) -> Result<Self, TrainError> {
        Self::divided(pipeline, examples, config, options, Division::default())
    }

    /// Encodes `examples` as [`EncodedDataset::new`] does. The ranks divide the image variants and the
    /// captions; all of them read all images.
    ///
    /// # Errors
    /// As [`EncodedDataset::new`]; a rank that has gone.
    pub(crate) fn divided(
        pipeline: &Pipeline,
        examples: &[Example],
        config: &EncodeConfig,
        options: EncodeOptions<'_>,
        division: Division<'_>,
    ) -> Result<Self, TrainError> {
        let EncodeOptions { cache, mut on_progress } = options;
        let mut encoder = Encoder {
            pipeline,
            config,
            cache,
            division,
            variants: Vec::new(),
            own: Vec::new(),
            buckets: buckets_for(pipeline, config.buckets.as_ref())?,
            by_size: BTreeMap::new(),
            captions: Vec::new(),
            upscaled: Vec::new(),
            hash: Sha256::new(),
        };
        for (index, example) in examples.iter().enumerate() {
            encoder.add(index as u64, example)?;
            if let Some(on_progress) = &mut on_progress {
                on_progress(index + 1, examples.len());
            }
        }
        encoder.finish(examples)
    }
}

/// The training sizes that the base model allows.
///
/// # Errors
/// Returns an error if the base model does not allow the settings.
pub(crate) fn buckets_for(
    pipeline: &Pipeline,
    config: Option<&BucketConfig>,
) -> Result<Buckets, ConfigError> {
    Buckets::new(config, pipeline.image_size(), pipeline.pixels_per_token())
}

/// Encodes examples one after the other.
struct Encoder<'a> {
    pipeline: &'a Pipeline,
    config: &'a EncodeConfig,
    cache: Option<&'a EncodeCache>,
    division: Division<'a>,
    /// All image variants so far, and the hashes of their images where a cache needs them.
    variants: Vec<(ImageVariant, Option<String>)>,
    /// The latents of the variants that this rank encodes.
    own: Vec<Posterior>,
    buckets: Buckets,
    by_size: BTreeMap<Size, (LatentsBuilder, Examples)>,
    captions: Vec<String>,
    upscaled: Vec<PathBuf>,
    hash: Sha256,
}

impl Encoder<'_> {
    /// Encodes one example: reads its image and mask, finds its bucket, encodes its image variants, lists its
    /// captions.
    fn add(&mut self, index: u64, example: &Example) -> Result<(), TrainError> {
        let (image, mask) = self.read(example)?;
        let size = self.training_size(example, image.dimensions())?;
        let first_image = self.by_size.entry(size).or_default().0.len();
        self.encode_image(&image, mask.as_ref(), size, index)?;
        let first_caption = self.captions.len();
        let EncodeConfig { augment, seed, .. } = self.config;
        self.captions.extend(caption_variants(&example.caption, augment, *seed, index));

        let (latents, examples) = self.by_size.entry(size).or_default();
        examples.epoch.extend(std::iter::repeat_n(examples.variants.len(), example.repeats));
        examples.variants.push(ExampleVariants {
            images: first_image..latents.len(),
            captions: first_caption..self.captions.len(),
        });
        Ok(())
    }

    /// Reads image and mask and adds the example to the digest.
    fn read(&mut self, example: &Example) -> Result<(RgbImage, Option<GrayImage>), TrainError> {
        let (image, alpha) = read_rgb_and_alpha(&example.image)?;
        let (width, height) = image.dimensions();
        self.hash.update(format!("{width} {height} {} {:?}", example.repeats, example.caption));
        self.hash.update(image.as_raw());
        let mask = match &self.config.masks {
            Some(masks) => masks::read(masks, &example.image, (width, height), alpha)?,
            None => None,
        };
        self.hash.update(mask.as_ref().map_or(&[][..], |mask| mask.as_raw()));
        Ok((image, mask))
    }

    /// The training size of an image of these dimensions. Notes the image if it will be upscaled.
    fn training_size(
        &mut self,
        example: &Example,
        (width, height): (u32, u32),
    ) -> Result<Size, DataError> {
        let small = || DataError::SmallImage {
            path: example.image.clone(),
            width,
            height,
            step: self.buckets.step(),
        };
        let size = self.buckets.size_for((width, height)).ok_or_else(small)?;
        if width < size[0] || height < size[1] {
            self.upscaled.push(example.image.clone());
        }
        Ok(size)
    }

    /// Encodes this rank's variants of an image, and scales its mask to the latents of all.
    fn encode_image(
        &mut self,
        image: &RgbImage,
        mask: Option<&GrayImage>,
        size: Size,
        index: u64,
    ) -> Result<(), TrainError> {
        let Self { pipeline, config, cache, by_size, division, .. } = self;
        let grid = pipeline.vae_config.pixels_per_patch() as u32;
        let hash = cache.map(|_| image_hash(image));
        let (latents, _) = by_size.entry(size).or_default();
        for variant in image_variants(image.dimensions(), size, &config.augment, config.seed, index)
        {
            let mask = config.masks.as_ref().zip(mask);
            let weights = mask.map(|(masks, mask)| masks::weights(masks, mask, &variant, grid));
            latents.push(&variant, weights);
            if division.owns(self.variants.len()) {
                let make = || Posterior::encode(variant.apply(image), pipeline);
                self.own.push(stored(*cache, hash.as_deref(), &variant, &pipeline.device, make)?);
            }
            self.variants.push((variant, hash.clone()));
        }
        Ok(())
    }

    /// The latents of all image variants in order, of which other ranks have sent theirs.
    fn exchange(&mut self) -> Result<Vec<Posterior>, TrainError> {
        let Self { pipeline, cache, division, variants, .. } = self;
        let fits = |item: usize, found: &Posterior, before: &[Posterior]| {
            let side = |pixels: u32| pixels as usize / pipeline.vae_config.pixels_per_patch();
            let [width, height] = variants[item].0.size;
            let [count, channels, rows, columns] = found.mean.dims();
            let known = before.first().map_or(channels, |first| first.mean.dims()[1]);
            [count, channels, rows, columns] == [1, known, side(height), side(width)]
        };
        let work = Work {
            what: "latents",
            count: variants.len(),
            recipients: Recipients::All,
            device: &pipeline.device,
            fits: &fits,
        };
        let own = std::mem::take(&mut self.own);
        let all = division.run(&work, |_| Ok(own))?;
        for item in division.of_others(variants.len()) {
            let (variant, hash) = &variants[item];
            let make = || all[item].clone();
            stored(*cache, hash.as_deref(), variant, &pipeline.device, make)?;
        }
        Ok(all)
    }

    /// Encodes the captions and the empty caption, and puts everything together.
    fn finish(mut self, examples: &[Example]) -> Result<EncodedDataset, TrainError> {
        for (posterior, (variant, _)) in self.exchange()?.into_iter().zip(&self.variants) {
            self.by_size.entry(variant.size).or_default().0.push_latents(posterior);
        }
        let Self { pipeline, config, cache, division, mut captions, .. } = self;
        let truncated = examples.iter().map(|example| &example.caption);
        let truncated =
            truncated.filter(|caption| pipeline.is_truncated(caption)).cloned().collect();
        captions.push(String::new());
        let captions = match config.tokens {
            true => Captions::Tokens(pipeline.tokenize(&captions)),
            false => Captions::encode(pipeline, &captions, cache, division)?,
        };
        let bucket = |(size, (latents, examples)): (Size, (LatentsBuilder, Examples))| Bucket {
            size,
            latents: latents.finish(&pipeline.device),
            examples,
        };
        Ok(EncodedDataset {
            buckets: self.by_size.into_iter().map(bucket).collect(),
            captions,
            caption_dropout: config.augment.caption_dropout,
            digest: hex(self.hash),
            upscaled: self.upscaled,
            truncated_captions: truncated,
        })
    }
}

/// The latents of an image variant from the cache, if there is one, else made.
fn stored(
    cache: Option<&EncodeCache>,
    hash: Option<&str>,
    variant: &ImageVariant,
    device: &Device,
    make: impl FnOnce() -> Posterior,
) -> Result<Posterior, TrainError> {
    match cache.zip(hash) {
        Some((cache, hash)) => cache.posterior(hash, variant, device, make),
        None => Ok(make()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use soda_models::image::{read_rgb, resize_center_crop, to_tensor};
    use soda_models::noise::generator;

    use super::*;
    use crate::data::encoded_dataset::Rows;

    fn toybox(name: &str) -> PathBuf {
        soda_testing::workspace_path("examples/toybox").join(name)
    }

    fn example(caption: &str, repeats: usize) -> Example {
        let image = toybox("subjects/castle_mug/00.png");
        Example { image, caption: caption.to_owned(), repeats }
    }

    #[test]
    fn mirrored_variants_have_the_latents_of_the_mirrored_image() {
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
            EncodedDataset::new(&pipeline, &examples, &config, EncodeOptions::default()).unwrap();
        let orders = caption_variants(&examples[0].caption, &augment, 7, 0).len() as i64;
        assert!(orders > 1);
        let last = orders + 1;
        assert_eq!((data.len(), data.num_variants()), (3, (4, last as usize)));

        let image = resize_center_crop(&read_rgb(&examples[0].image).unwrap(), 64, 64);
        let mirrored = image::imageops::flip_horizontal(&image);
        let pixels = to_tensor(&[mirrored], &device).mul_scalar(2.0).sub_scalar(1.0);
        let expected = pipeline.vae.encode(pixels).mean.mul_scalar(pipeline.vae.scaling_factor);
        let found = data.buckets[0].latents.mode(&[1]);
        assert_eq!(expected.into_data(), found.into_data());
        let states = |text: &str| pipeline.encode_prompts(&[text.to_owned()]);
        let none = data.prompts(&Rows { bucket: 0, images: vec![0], captions: vec![last] });
        let none = none.encoded().unwrap().text;
        let error = soda_testing::max_abs((none - states("")).into_data().iter::<f32>());
        assert!(error < 1e-5, "{error}");

        // All variants are drawn, captions only with the images of their example. The dropped share of 3000
        // samples is 0.3 within five standard deviations.
        let rows = data.rows(0, &[0, 1, 2].repeat(1000), &mut generator(1, 1));
        let dropped = rows.captions.iter().filter(|row| **row == last).count();
        assert!((775..=1025).contains(&dropped), "{dropped}");
        for (sample, (image, caption)) in rows.images.iter().zip(&rows.captions).enumerate() {
            let (images, captions) =
                if sample % 3 == 0 { (0..2, 0..orders) } else { (2..4, orders..last) };
            assert!(images.contains(image) && (captions.contains(caption) || *caption == last));
        }
        assert!((0..4).all(|row| rows.images.contains(&row)));
        assert!((0..=last).all(|row| rows.captions.contains(&row)));
        assert_eq!(rows, data.rows(0, &[0, 1, 2].repeat(1000), &mut generator(1, 1)));
        let first = Rows { bucket: 0, images: vec![0, 2], captions: vec![0, orders] };
        assert_eq!(data.first_rows(), [first]);
    }

    /// Images of all shapes are in the nearest bucket and have the latents of their crops.
    #[test]
    fn every_image_is_in_its_bucket() {
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
        let mut progress = Vec::new();
        let options = EncodeOptions {
            on_progress: Some(&mut |done, total| progress.push((done, total))),
            ..EncodeOptions::default()
        };
        let data = EncodedDataset::new(&pipeline, &examples, &config, options).unwrap();
        assert_eq!(progress, [(1, 4), (2, 4), (3, 4), (4, 4)]);
        // All images are at least as large as their training sizes, such as 60 x 90 for 48 x 80.
        assert!(data.upscaled.is_empty());
        let found: Vec<_> = data.buckets().collect();
        assert_eq!(found, [([48, 80], 1), ([64, 64], 1), ([80, 48], 2)]);
        assert_eq!((data.len(), data.lens()), (8, vec![2, 2, 4]));
        let wide = read_rgb(&examples[3].image).unwrap();
        let pixels = to_tensor(&[resize_center_crop(&wide, 80, 48)], &device);
        let found = data.mode(&data.first_rows()[2]).narrow(0, 1, 1);
        assert_eq!(found.into_data(), pipeline.encode(pixels, None).into_data());

        let narrow = EncodeConfig { buckets: None, ..config };
        let data =
            EncodedDataset::new(&pipeline, &examples, &narrow, EncodeOptions::default()).unwrap();
        assert_eq!(data.upscaled, [examples[1].image.clone(), examples[2].image.clone()]);

        let upscale = BucketConfig { step: 8, upscale: false, ..BucketConfig::default() };
        picture.save(folder.path().join("64.png")).unwrap();
        image::imageops::thumbnail(&picture, 7, 9).save(folder.path().join("60.png")).unwrap();
        let config = EncodeConfig { buckets: Some(upscale), ..EncodeConfig::default() };
        let refused = EncodedDataset::new(&pipeline, &examples, &config, EncodeOptions::default())
            .unwrap_err();
        let message = refused.to_string();
        assert!(message.contains("60.png has 7 x 9 pixels") && message.contains("8"), "{message}");
    }
}
