//! The images of a data set at the base model's size, for the report and the scores.

use std::path::{Path, PathBuf};

use image::RgbImage;
use soda_models::image::{grid, read_rgb, resize_center_crop};
use soda_models::metrics::{Judges, ReferenceFeatures};

use crate::data::dataset::Dataset;
use crate::data::folder::Example;
use crate::error::TrainError;
use crate::eval::sampling::SampledImages;
use crate::eval::scores::ScoreReference;
use crate::output::run_folder::RunFolder;

/// The most training images that are shown. A data set may have more than memory holds.
const MOST_SHOWN: usize = 24;

/// The images that are in memory at once while their features are computed.
const AT_ONCE: usize = 32;

/// The images of a data set as squares of the base model's size.
#[derive(Debug, Default)]
pub struct DatasetImages {
    /// The first training images.
    pub training: Vec<RgbImage>,
    /// The first images that are held out from training.
    held_out: Vec<RgbImage>,
    /// All images that samples are compared with: those held out, or else the training images.
    subject: Vec<PathBuf>,
    /// The ground truth of prompts.
    truth: Vec<(String, RgbImage)>,
    /// The side of the squares in pixels.
    size: u32,
}

impl DatasetImages {
    /// Reads the images that are shown and the ground truth, resized and cropped at the centre to squares of
    /// `size` pixels.
    ///
    /// # Errors
    /// Returns an error if a file is not an image.
    pub fn read(dataset: &Dataset, held_out: &[Example], size: u32) -> Result<Self, TrainError> {
        let first = |examples: &[Example]| {
            let shown = examples.iter().take(MOST_SHOWN);
            shown.map(|example| read(&example.image, size)).collect::<Result<Vec<_>, _>>()
        };
        let truth = dataset.truth.iter();
        let truth = truth.map(|example| Ok((example.caption.clone(), read(&example.image, size)?)));
        let subject = if held_out.is_empty() { &dataset.examples } else { held_out };
        Ok(Self {
            training: first(&dataset.examples)?,
            held_out: first(held_out)?,
            subject: subject.iter().map(|example| example.image.clone()).collect(),
            truth: truth.collect::<Result<_, TrainError>>()?,
            size,
        })
    }

    /// The first images that samples are compared with.
    pub fn shown_subject(&self) -> &[RgbImage] {
        if self.held_out.is_empty() { &self.training } else { &self.held_out }
    }

    /// The ground truth of each of `prompts`. Empty if one of them has none.
    pub(crate) fn truths(&self, prompts: &[String]) -> Vec<RgbImage> {
        let truth = |prompt: &String| {
            self.truth.iter().find(|(caption, _)| caption == prompt).map(|(_, image)| image.clone())
        };
        prompts.iter().map(truth).collect::<Option<_>>().unwrap_or_default()
    }

    /// The reference for scores of samples of `prompts`. Its subject is all images that are held out, or else
    /// all training images. Without judges the reference has no subject.
    ///
    /// # Errors
    /// Returns an error if a file is not an image.
    pub fn reference(
        &self,
        dataset: &Dataset,
        prompts: &[String],
        judges: Option<&Judges>,
    ) -> Result<ScoreReference, TrainError> {
        let mut subject = ReferenceFeatures::default();
        if let Some(judges) = judges {
            for part in self.subject.chunks(AT_ONCE) {
                let images = part.iter().map(|path| read(path, self.size));
                subject.extend(judges, &images.collect::<Result<Vec<_>, _>>()?);
            }
        }
        Ok(ScoreReference {
            prompts: prompts.iter().map(|prompt| dataset.without_identifier(prompt)).collect(),
            subject,
            truth: self.truths(prompts),
        })
    }

    /// Writes the image grids of the first training images and of all samples from which the scores are
    /// computed.
    pub(crate) fn write(
        &self,
        folder: &RunFolder,
        before: &SampledImages,
        after: &SampledImages,
    ) -> Result<(), TrainError> {
        let rows = [self.training.clone(), before.images.clone(), after.images.clone()];
        folder.write_png(RunFolder::SAMPLES_GRID, &grid(&rows))?;
        folder.write_png(RunFolder::AFTER_GRID, &grid(&rows[2..]))?;
        if before.unrelated.is_empty() {
            return Ok(());
        }
        let rows = [before.unrelated.clone(), after.unrelated.clone()];
        folder.write_png(RunFolder::UNRELATED_GRID, &grid(&rows))
    }
}

/// The image at `path` as a square of `size` pixels.
fn read(path: &Path, size: u32) -> Result<RgbImage, TrainError> {
    Ok(resize_center_crop(&read_rgb(path)?, size, size))
}
