//! The images of a data set at the base model's size, for the report and the scores.

use std::path::Path;

use image::RgbImage;
use soda_models::image::{grid, read_rgb, resize_center_crop};

use crate::data::dataset::Dataset;
use crate::data::folder::Example;
use crate::error::TrainError;
use crate::eval::sampling::SampledImages;
use crate::eval::scores::ScoreReference;
use crate::output::run_folder::RunFolder;

/// The images of a data set as squares of the base model's size.
#[derive(Debug, Default)]
pub struct DatasetImages {
    /// The training images.
    pub training: Vec<RgbImage>,
    /// The images that are held out from training.
    held_out: Vec<RgbImage>,
    /// The ground truth of prompts.
    truth: Vec<(String, RgbImage)>,
}

impl DatasetImages {
    /// Reads all images, resized and cropped at the centre to squares of `size` pixels.
    ///
    /// # Errors
    /// Returns an error if a file is not an image.
    pub fn read(dataset: &Dataset, held_out: &[Example], size: u32) -> Result<Self, TrainError> {
        let read = |path: &Path| -> Result<RgbImage, TrainError> {
            Ok(resize_center_crop(&read_rgb(path)?, size, size))
        };
        let all = |examples: &[Example]| {
            examples.iter().map(|example| read(&example.image)).collect::<Result<Vec<_>, _>>()
        };
        let (training, held_out) = (all(&dataset.examples)?, all(held_out)?);
        let truth = dataset
            .truth
            .iter()
            .map(|example| Ok((example.caption.clone(), read(&example.image)?)))
            .collect::<Result<_, TrainError>>()?;
        Ok(Self { training, held_out, truth })
    }

    /// The ground truth of each of `prompts`. Empty if one of them has none.
    pub(crate) fn truths(&self, prompts: &[String]) -> Vec<RgbImage> {
        let truth = |prompt: &String| {
            self.truth.iter().find(|(caption, _)| caption == prompt).map(|(_, image)| image.clone())
        };
        prompts.iter().map(truth).collect::<Option<_>>().unwrap_or_default()
    }

    /// The reference for scores of samples of `prompts`. Its subject is the images that are held out, or else
    /// the training images.
    pub fn reference(&self, dataset: &Dataset, prompts: &[String]) -> ScoreReference {
        ScoreReference {
            prompts: prompts.iter().map(|prompt| dataset.without_identifier(prompt)).collect(),
            subject: if self.held_out.is_empty() { &self.training } else { &self.held_out }.clone(),
            truth: self.truths(prompts),
        }
    }

    /// Writes the image grids of the training images and of all samples from which the scores are computed.
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
