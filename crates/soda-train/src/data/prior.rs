//! Class images for prior preservation (DreamBooth, arXiv 2208.12242, 3.3): read from a folder, or generated
//! by the base model before training.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use soda_models::pipeline::{GenerateConfig, Pipeline};

use crate::config::{PriorConfig, TrainConfig};
use crate::data::cache::EncodeCache;
use crate::data::dataset::Dataset;
use crate::data::encode::{EncodeConfig, EncodeOptions};
use crate::data::encoded_dataset::EncodedDataset;
use crate::data::folder::Example;
use crate::error::{DataError, TrainError};
use crate::event::{CLASS_IMAGES, Event};
use crate::output::run_folder::RunFolder;

/// The number of images in a batch. Finished batches are kept if the run is stopped.
const BATCH: usize = 8;
/// Added to the run's seed, so that class images have other noise than samples.
const SEED_SHIFT: u64 = 0x5eed_c1a5;

/// Reads or generates the class images and encodes them. `None` without prior preservation.
pub(crate) fn encode(
    pipeline: &Pipeline,
    config: &TrainConfig,
    folder: &RunFolder,
    cache: Option<&EncodeCache>,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<EncodedDataset>, TrainError> {
    let Some(prior) = &config.prior else { return Ok(None) };
    let examples = match &prior.data {
        Some(_) => read(prior, on_event)?,
        None => generate(pipeline, prior, config, folder, BATCH, stop, on_event)?,
    };
    encode_examples(pipeline, config, &examples, cache, on_event).map(Some)
}

/// Reads the class images of the settings' folder. No images without one.
pub(crate) fn read(
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
pub(crate) fn encode_examples(
    pipeline: &Pipeline,
    config: &TrainConfig,
    examples: &[Example],
    cache: Option<&EncodeCache>,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<EncodedDataset, TrainError> {
    on_event(Event::Stage { name: "encoding class images" });
    let progress = &mut |done, total| on_event(Event::Progress { done, total, loss: None });
    let options = EncodeOptions { cache, on_progress: Some(progress) };
    let encode = EncodeConfig::from_train_config(config).without_augmentation().without_masks();
    EncodedDataset::new(pipeline, examples, &encode, options)
}

/// The name of a class image in its folder.
fn file_name(index: usize) -> String {
    format!("{index:04}.png")
}

/// Generates the class images that the run's folder lacks, `batch` at a time.
fn generate(
    pipeline: &Pipeline,
    prior: &PriorConfig,
    config: &TrainConfig,
    folder: &RunFolder,
    batch: usize,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Vec<Example>, TrainError> {
    folder.create_subfolder(RunFolder::CLASS_IMAGES)?;
    let name = |index: usize| format!("{}/{}", RunFolder::CLASS_IMAGES, file_name(index));
    on_event(Event::Stage { name: CLASS_IMAGES });
    for first in (0..prior.count).step_by(batch) {
        let here = first..(first + batch).min(prior.count);
        if here.clone().all(|index| folder.file(&name(index)).is_file()) {
            continue;
        }
        let request = GenerateConfig {
            prompts: vec![prior.prompt.clone(); here.len()],
            seed: config.seed.wrapping_add(SEED_SHIFT).wrapping_add(first as u64),
            shards: config.shards.unwrap_or(1),
            ..GenerateConfig::default()
        };
        let mut on_step = |done, total| {
            let (done, total) = (first * total + done * here.len(), prior.count * total);
            on_event(Event::Progress { done, total, loss: None });
        };
        let images = pipeline.generate_unless(&request, stop, &mut on_step);
        let images = images.map_err(TrainError::sampling(Some(folder.path())))?;
        for (index, image) in here.zip(&images) {
            folder.write_png(&name(index), image)?;
        }
    }
    drawn(prior, &folder.file(RunFolder::CLASS_IMAGES))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use burn::tensor::Device;
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
            let examples = generate(&pipeline, &prior, &config, &folder, 2, &go, &mut |event| {
                if let Event::Progress { done, total, .. } = event {
                    progress.push((done, total));
                }
            });
            assert_eq!(progress.last(), Some(&(3 * 30, 3 * 30)));
            assert!(progress.windows(2).all(|pair| pair[0] < pair[1]));
            let examples = examples.unwrap();
            assert!(examples.iter().all(|example| example.caption == "a mug"));
            let read = |example: &Example| read_rgb(&example.image).unwrap().into_raw();
            all.push(examples.iter().map(read).collect::<Vec<_>>());

            std::fs::remove_file(&examples[2].image).unwrap();
            let stop = AtomicBool::new(true);
            let stopped =
                generate(&pipeline, &prior, &config, &folder, 2, &stop, &mut |_| ()).unwrap_err();
            assert!(stopped.to_string().contains("--resume"), "{stopped}");
            generate(&pipeline, &prior, &config, &folder, 2, &go, &mut |_| ()).unwrap();
            assert_eq!(read(&examples[2]), all[all.len() - 1][2]);
        }
        let pairs = all[0].iter().flatten().zip(all[1].iter().flatten());
        let worst = pairs.map(|(one, many)| one.abs_diff(*many)).max();
        assert!(worst.is_some_and(|worst| worst <= 1), "{worst:?}");
    }
}
