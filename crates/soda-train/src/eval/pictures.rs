//! The pictures of a data set at the model's size, for the report and the judges.

use std::path::Path;

use image::RgbImage;
use soda_models::image::{grid, read_rgb, resize_center_crop};

use crate::data::dataset::{Dataset, Example};
use crate::error::TrainError;
use crate::eval::sampling::SampledImages;
use crate::eval::scores::ScoreReference;
use crate::output::run_folder::{RunFolder, SHEET, UNRELATED};

/// The pictures of the data set at the model's size.
#[derive(Debug)]
pub struct DatasetImages {
    /// What is learnt from.
    pub subject: Vec<RgbImage>,
    /// Pictures that are not learnt.
    held_out: Vec<RgbImage>,
    /// By prompt.
    truth: Vec<(String, RgbImage)>,
}

impl DatasetImages {
    /// Reads all of them, cropped to squares of `size` pixels.
    ///
    /// # Errors
    /// A file that is no picture, by name.
    pub fn read(dataset: &Dataset, held_out: &[Example], size: u32) -> Result<Self, TrainError> {
        let read = |path: &Path| -> Result<RgbImage, TrainError> {
            Ok(resize_center_crop(&read_rgb(path)?, size, size))
        };
        let all = |examples: &[Example]| {
            examples.iter().map(|example| read(&example.image)).collect::<Result<Vec<_>, _>>()
        };
        let (subject, held_out) = (all(&dataset.examples)?, all(held_out)?);
        let truth = dataset
            .truth
            .iter()
            .map(|example| Ok((example.caption.clone(), read(&example.image)?)))
            .collect::<Result<_, TrainError>>()?;
        Ok(Self { subject, held_out, truth })
    }

    /// The truths of `prompts`, all or none.
    fn truths(&self, prompts: &[String]) -> Vec<RgbImage> {
        let truth = |prompt: &String| {
            self.truth.iter().find(|(caption, _)| caption == prompt).map(|(_, image)| image.clone())
        };
        prompts.iter().map(truth).collect::<Option<_>>().unwrap_or_default()
    }

    /// What pictures of `prompts` are judged against: what was held out, or else what was learnt.
    pub fn reference(&self, dataset: &Dataset, prompts: &[String]) -> ScoreReference {
        ScoreReference {
            prompts: prompts.iter().map(|prompt| dataset.without_identifier(prompt)).collect(),
            subject: if self.held_out.is_empty() { &self.subject } else { &self.held_out }.clone(),
            truth: self.truths(prompts),
        }
    }

    /// Writes what was learnt from and what was drawn, all that the scores are taken from.
    pub(crate) fn write(
        &self,
        folder: &RunFolder,
        before: &SampledImages,
        after: &SampledImages,
    ) -> Result<(), TrainError> {
        let rows = [self.subject.clone(), before.images.clone(), after.images.clone()];
        folder.write_png(SHEET, &grid(&rows))?;
        if before.unrelated.is_empty() {
            return Ok(());
        }
        folder.write_png(UNRELATED, &grid(&[before.unrelated.clone(), after.unrelated.clone()]))
    }
}
