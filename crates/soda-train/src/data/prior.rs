//! Class images for prior preservation (DreamBooth, arXiv 2208.12242, 3.3): read from a folder, or generated
//! by the base model before training.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use image::RgbImage;
use soda_models::pipeline::{GenerateConfig, Pipeline};

use crate::config::{PriorConfig, TrainConfig};
use crate::data::cache::EncodeCache;
use crate::data::dataset::Dataset;
use crate::data::encode::{EncodeConfig, EncodeOptions};
use crate::data::encoded_dataset::EncodedDataset;
use crate::data::folder::Example;
use crate::divided::{Division, Recipients, Sent, Work};
use crate::error::{DataError, TrainError};
use crate::event::{CLASS_IMAGES, Event};
use crate::output::run_folder::RunFolder;
use crate::output::tensor_file::{Tensors, from_images, to_images};

/// The number of images in a batch. Finished batches are kept if the run is stopped.
const BATCH: usize = 8;
/// Added to the run's seed, so that class images have other noise than samples.
const SEED_SHIFT: u64 = 0x5eed_c1a5;

/// Reads the class images, or generates those that the run's folder lacks. `None` without prior preservation.
///
/// The ranks divide what is generated. Rank 0 has the folder and writes, and the others get no images.
pub(crate) fn images(
    pipeline: &Pipeline,
    config: &TrainConfig,
    folder: Option<&RunFolder>,
    division: Division<'_>,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Vec<Example>>, TrainError> {
    let Some(prior) = &config.prior else { return Ok(None) };
    if prior.data.is_some() {
        return read(prior, on_event).map(Some);
    }
    Generation { pipeline, prior, config, folder, batch: BATCH, division, stop }.run(on_event)?;
    match folder {
        Some(folder) => drawn(prior, &folder.file(RunFolder::CLASS_IMAGES)).map(Some),
        None => Ok(None),
    }
}

/// Reads the class images of the settings' folder. No images without one.
fn read(
    prior: &PriorConfig,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Vec<Example>, TrainError> {
    let Some(data) = &prior.data else { return Ok(Vec::new()) };
    let dataset = Dataset::read(data, Some(&prior.prompt))?;
    for skipped in &dataset.skipped {
        on_event(Event::Warning(&skipped.to_string()));
    }
    Ok(dataset.examples)
}

/// The class images that another process has generated in `folder`.
///
/// # Errors
/// [`DataError::NoClassImages`] if this machine does not see them.
pub(crate) fn drawn(prior: &PriorConfig, folder: &Path) -> Result<Vec<Example>, TrainError> {
    let example = |index| Example {
        image: folder.join(file_name(index)),
        caption: prior.prompt.clone(),
        repeats: 1,
    };
    let examples: Vec<Example> = (0..prior.count).map(example).collect();
    match examples.iter().all(|example| example.image.is_file()) {
        true => Ok(examples),
        false => Err(DataError::NoClassImages { folder: folder.to_owned() }.into()),
    }
}

/// Encodes class images, without masks and augmentation.
pub(crate) fn encode(
    pipeline: &Pipeline,
    config: &TrainConfig,
    examples: &[Example],
    cache: Option<&EncodeCache>,
    division: Division<'_>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<EncodedDataset, TrainError> {
    on_event(Event::Stage { name: "encoding class images" });
    let progress = &mut |done, total| on_event(Event::Progress { done, total, loss: None });
    let options = EncodeOptions { cache, on_progress: Some(progress) };
    let encode = EncodeConfig::from_train_config(config).without_augmentation().without_masks();
    EncodedDataset::divided(pipeline, examples, &encode, options, division)
}

/// The name of a class image in its folder.
fn file_name(index: usize) -> String {
    format!("{index:04}.png")
}

/// The class images of one batch, on their way to rank 0.
struct Drawn(Vec<RgbImage>);

impl Sent for Drawn {
    fn to_tensors(&self) -> Tensors {
        Tensors::from([("images".to_owned(), from_images(&self.0))])
    }

    fn from_tensors(tensors: &Tensors, _: &Device) -> Option<Self> {
        to_images(tensors.get("images")?).map(Self)
    }
}

/// The generation of class images.
struct Generation<'a> {
    pipeline: &'a Pipeline,
    prior: &'a PriorConfig,
    config: &'a TrainConfig,
    /// The run's folder, on the rank that writes.
    folder: Option<&'a RunFolder>,
    /// The number of images in a batch.
    batch: usize,
    division: Division<'a>,
    stop: &'a AtomicBool,
}

impl Generation<'_> {
    /// Generates the class images that the run's folder lacks, a batch on each rank at a time.
    fn run(&self, on_event: &mut dyn FnMut(Event<'_>)) -> Result<(), TrainError> {
        let missing = self.missing()?;
        on_event(Event::Stage { name: CLASS_IMAGES });
        let side = self.pipeline.image_size() as u32;
        for batches in missing.chunks(self.division.world()) {
            let fits = |item: usize, found: &Drawn, _: &[Drawn]| {
                found.0.len() == self.indices(batches[item]).len()
                    && found.0.iter().all(|image| image.dimensions() == (side, side))
            };
            let work = Work {
                what: "class images",
                count: batches.len(),
                recipients: Recipients::Rank0,
                device: &self.pipeline.device,
                fits: &fits,
            };
            let drawn = self.division.each(&work, |item| self.draw(batches[item], on_event))?;
            let Some(folder) = self.folder else { continue };
            for (batch, Drawn(images)) in batches.iter().zip(&drawn) {
                for (index, image) in self.indices(*batch).zip(images) {
                    folder.write_png(&name(index), image)?;
                }
            }
        }
        Ok(())
    }

    /// The batches of which rank 0 lacks an image.
    fn missing(&self) -> Result<Vec<usize>, TrainError> {
        let batches = self.prior.count.div_ceil(self.batch);
        let mut missing = vec![0; batches];
        if let Some(folder) = self.folder {
            folder.create_subfolder(RunFolder::CLASS_IMAGES)?;
            for (batch, missing) in missing.iter_mut().enumerate() {
                let is_there = |index: usize| folder.file(&name(index)).is_file();
                *missing = u8::from(!self.indices(batch).all(is_there));
            }
        }
        let missing = self.division.of_rank_0(missing, batches)?;
        Ok((0..batches).filter(|batch| missing.get(*batch) == Some(&1)).collect())
    }

    /// The images of a batch.
    fn indices(&self, batch: usize) -> Range<usize> {
        let first = batch * self.batch;
        first..(first + self.batch).min(self.prior.count)
    }

    fn draw(&self, batch: usize, on_event: &mut dyn FnMut(Event<'_>)) -> Result<Drawn, TrainError> {
        let here = self.indices(batch);
        let request = GenerateConfig {
            prompts: vec![self.prior.prompt.clone(); here.len()],
            seed: self.config.seed.wrapping_add(SEED_SHIFT).wrapping_add(here.start as u64),
            tiling: self.config.samples.tiling(&self.pipeline.vae_config),
            shards: self.config.shards.unwrap_or(1),
            ..GenerateConfig::default()
        };
        let mut on_step = |done, total| {
            let (done, total) = (here.start * total + done * here.len(), self.prior.count * total);
            on_event(Event::Progress { done, total, loss: None });
        };
        let images = self.pipeline.generate_unless(&request, self.stop, &mut on_step);
        images.map(Drawn).map_err(TrainError::sampling(self.folder.map(RunFolder::path)))
    }
}

/// The name of a class image in the run's folder.
fn name(index: usize) -> String {
    format!("{}/{}", RunFolder::CLASS_IMAGES, file_name(index))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use soda_models::image::read_rgb;

    use super::*;
    use crate::config::{apply_setting, preset};

    fn config(shards: usize) -> TrainConfig {
        let mut table = preset("toybox").unwrap();
        let shards = format!("shards={shards}");
        for setting in ["base=b", "data=d", "prior.prompt=a mug", "prior.count=3", &shards] {
            apply_setting(&mut table, setting).unwrap();
        }
        TrainConfig::from_table(table).unwrap()
    }

    /// Threads change the rounding of a pixel by at most 1 of 255. A run that was stopped between two images
    /// keeps those that it has.
    #[test]
    fn class_images_are_the_same_with_any_number_of_threads_and_after_a_stop() {
        let toybox = soda_testing::workspace_path("examples/toybox/base");
        let pipeline = Pipeline::load(&toybox, &Device::default()).unwrap();
        let root = tempfile::tempdir().unwrap();
        let go = AtomicBool::new(false);
        let mut all = Vec::new();
        for shards in [1, 2] {
            let config = config(shards);
            let folder = RunFolder::create(root.path(), None, "run", "").unwrap();
            let prior = config.prior.clone().unwrap();
            let mut progress = Vec::new();
            let generate = |stop: &AtomicBool, on_event: &mut dyn FnMut(Event<'_>)| {
                let (pipeline, prior, config) = (&pipeline, &prior, &config);
                let (folder, division) = (Some(&folder), Division::default());
                Generation { pipeline, prior, config, folder, batch: 2, division, stop }
                    .run(on_event)
            };
            generate(&go, &mut |event| {
                if let Event::Progress { done, total, .. } = event {
                    progress.push((done, total));
                }
            })
            .unwrap();
            assert_eq!(progress.last(), Some(&(3 * 30, 3 * 30)));
            assert!(progress.windows(2).all(|pair| pair[0] < pair[1]));
            let examples = drawn(&prior, &folder.file(RunFolder::CLASS_IMAGES)).unwrap();
            assert!(examples.iter().all(|example| example.caption == "a mug"));
            let read = |example: &Example| read_rgb(&example.image).unwrap().into_raw();
            all.push(examples.iter().map(read).collect::<Vec<_>>());

            std::fs::remove_file(&examples[2].image).unwrap();
            let stop = AtomicBool::new(true);
            let stopped = generate(&stop, &mut |_| ()).unwrap_err();
            assert!(stopped.to_string().contains("--resume"), "{stopped}");
            generate(&go, &mut |_| ()).unwrap();
            assert_eq!(read(&examples[2]), all[all.len() - 1][2]);
        }
        let pairs = all[0].iter().flatten().zip(all[1].iter().flatten());
        let worst = pairs.map(|(one, many)| one.abs_diff(*many)).max();
        assert!(worst.is_some_and(|worst| worst <= 1), "{worst:?}");
    }
}
