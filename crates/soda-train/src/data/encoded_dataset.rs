//! An encoded data set, from which each step draws its samples.

use std::ops::Range;
use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use rand::Rng;

use crate::data::buckets::Size;
use crate::data::captions::Captions;
use crate::data::latents::Latents;
use crate::data::prompts::Prompts;

/// All variants of the examples of a data set, encoded, on one device. [`EncodedDataset::new`] makes it.
#[derive(Clone, Debug)]
pub struct EncodedDataset {
    /// The examples by training size. There is at least one size.
    pub(super) buckets: Vec<Bucket>,
    /// All captions. The last one is the empty caption.
    pub(super) captions: Captions,
    pub(super) caption_dropout: f64,
    /// A hash of the pixels, masks, captions and repeats of all examples.
    pub(super) digest: String,
    /// The images that are smaller than their training size and were upscaled.
    pub upscaled: Vec<PathBuf>,
    /// The captions that are longer than the text encoder's context and were truncated.
    pub truncated_captions: Vec<String>,
}

/// The examples of one training size.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    pub(super) size: Size,
    pub(super) latents: Latents,
    pub(super) examples: Examples,
}

/// The variants of the examples of one bucket.
#[derive(Clone, Debug, Default)]
pub(super) struct Examples {
    /// The variants of each example.
    pub(super) variants: Vec<ExampleVariants>,
    /// The examples of an epoch: each index as often as its example is repeated.
    pub(super) epoch: Vec<usize>,
}

/// The rows of the variants of one example: images in its bucket, captions in the data set.
#[derive(Clone, Debug)]
pub(super) struct ExampleVariants {
    pub(super) images: Range<usize>,
    pub(super) captions: Range<usize>,
}

/// The variants that are drawn for some samples, all in one bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    pub(super) bucket: usize,
    pub(super) images: Vec<i64>,
    pub(super) captions: Vec<i64>,
}

impl EncodedDataset {
    /// The number of samples in an epoch: each example counts as often as it is repeated.
    pub fn len(&self) -> usize {
        self.lens().iter().sum()
    }

    /// The number of samples of each bucket in an epoch.
    pub(crate) fn lens(&self) -> Vec<usize> {
        self.buckets.iter().map(|bucket| bucket.examples.epoch.len()).collect()
    }

    /// Whether there are no samples. [`EncodedDataset::new`] of a data set is never empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number of image variants and of caption variants.
    pub fn num_variants(&self) -> (usize, usize) {
        let images = self.buckets.iter().map(|bucket| bucket.latents.len()).sum();
        (images, self.captions.len() - 1)
    }

    /// The size of each bucket (width, height, in pixels) and its number of examples.
    pub fn buckets(&self) -> impl Iterator<Item = ([u32; 2], usize)> {
        self.buckets.iter().map(|bucket| (bucket.size, bucket.examples.variants.len()))
    }

    /// A hash of the pixels, masks, captions and repeats of all examples.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// The device of the encoded examples.
    pub fn device(&self) -> Device {
        self.captions.device()
    }

    /// Draws an image variant and a caption variant for each of the samples `positions` in the epoch of a
    /// bucket.
    pub(crate) fn rows(&self, bucket: usize, positions: &[i64], rng: &mut impl Rng) -> Rows {
        let mut rows = Rows { bucket, ..Rows::default() };
        let empty = self.captions.len() as i64 - 1;
        let Examples { variants, epoch } = &self.buckets[bucket].examples;
        for &position in positions {
            let ExampleVariants { images, captions } = &variants[epoch[position as usize]];
            rows.images.push(rng.random_range(images.start as i64..images.end as i64));
            let caption = rng.random_range(captions.start as i64..captions.end as i64);
            let dropped = rng.random::<f64>() < self.caption_dropout;
            rows.captions.push(if dropped { empty } else { caption });
        }
        rows
    }

    /// The first variant of every example, by bucket.
    pub(crate) fn first_rows(&self) -> Vec<Rows> {
        let first = |range: &Range<usize>| range.start as i64;
        let rows = |(index, bucket): (usize, &Bucket)| {
            let variants = &bucket.examples.variants;
            Rows {
                bucket: index,
                images: variants.iter().map(|variants| first(&variants.images)).collect(),
                captions: variants.iter().map(|variants| first(&variants.captions)).collect(),
            }
        };
        self.buckets.iter().enumerate().map(rows).collect()
    }

    /// Draws one sample of the latents of each of `rows`, `[b, c, h, w]`.
    pub(crate) fn latents(&self, rows: &Rows, rng: &mut impl Rng) -> Tensor<4> {
        self.buckets[rows.bucket].latents.sample(&rows.images, rng)
    }

    /// The mode of the latents of each of `rows`, `[b, c, h, w]`.
    pub(crate) fn mode(&self, rows: &Rows) -> Tensor<4> {
        self.buckets[rows.bucket].latents.mode(&rows.images)
    }

    /// The weights in the loss of the latents of `rows`, `[b, 1, h, w]`. `None` if all weights are 1.
    pub(crate) fn mask(&self, rows: &Rows) -> Option<Tensor<4>> {
        self.buckets[rows.bucket].latents.mask(&rows.images)
    }

    /// Whether any image has a mask.
    pub(crate) fn is_masked(&self) -> bool {
        self.first_rows().iter().any(|rows| self.mask(rows).is_some())
    }

    /// The captions of `rows`.
    pub(crate) fn prompts(&self, rows: &Rows) -> Prompts {
        let time_ids = || self.buckets[rows.bucket].latents.time_ids(&rows.images);
        self.captions.select(&rows.captions, time_ids)
    }
}

impl Rows {
    /// The number of samples.
    pub(crate) fn len(&self) -> usize {
        self.images.len()
    }
}
