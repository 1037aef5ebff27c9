//! Pictures of the class for prior preservation (DreamBooth, arXiv 2208.12242, 3.3): found, or drawn by
//! the base model before it learns anything.

use std::sync::atomic::{AtomicBool, Ordering};

use soda_models::pipeline::{GenerateConfig, Pipeline};

use crate::config::{PriorConfig, TrainConfig};
use crate::data::cache::EncodeCache;
use crate::data::dataset::{Dataset, Example};
use crate::data::encode::{EncodeConfig, EncodedDataset};
use crate::error::TrainError;
use crate::event::Event;
use crate::output::run_folder::RunFolder;

const FOLDER: &str = "class";
/// Drawn at once; what is done is kept if the run is stopped here.
const AT_ONCE: usize = 8;
/// Keeps the class's noise apart from that of the samples.
const SEED_SHIFT: u64 = 0x5eed_c1a5;

/// The class's pictures as the network sees them; `None` without a prior.
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
        Some(data) => Dataset::read(data, Some(&prior.prompt))?.examples,
        None => draw(pipeline, prior, config, folder, AT_ONCE, stop, on_event)?,
    };
    on_event(Event::Stage { name: "encoding class" });
    let progress = &mut |done, total| on_event(Event::Progress { done, total, loss: None });
    let encode = EncodeConfig::from_train_config(config).without_augmentation().without_masks();
    EncodedDataset::new(pipeline, &examples, &encode, cache, progress).map(Some)
}

/// Draws those of the class's pictures that the run's folder lacks, on all threads.
fn draw(
    pipeline: &Pipeline,
    prior: &PriorConfig,
    config: &TrainConfig,
    folder: &RunFolder,
    at_once: usize,
    stop: &AtomicBool,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Vec<Example>, TrainError> {
    let class = folder.file(FOLDER);
    std::fs::create_dir_all(&class).map_err(TrainError::io("create", &class))?;
    let name = |index: usize| format!("{FOLDER}/{index:04}.png");
    on_event(Event::Stage { name: "drawing class" });
    for first in (0..prior.count).step_by(at_once) {
        let here = first..(first + at_once).min(prior.count);
        if here.clone().all(|index| folder.file(&name(index)).is_file()) {
            continue;
        }
        if stop.load(Ordering::Relaxed) {
            return Err(TrainError::Stopped { step: 0, folder: folder.path().to_owned() });
        }
        let request = GenerateConfig {
            prompts: vec![prior.prompt.clone(); here.len()],
            seed: config.seed.wrapping_add(SEED_SHIFT).wrapping_add(first as u64),
            shards: config.shards.unwrap_or(1),
            ..GenerateConfig::default()
        };
        let images = pipeline.generate(&request, &mut |done, total| {
            let (done, total) = (first * total + done * here.len(), prior.count * total);
            on_event(Event::Progress { done, total, loss: None });
        })?;
        for (index, image) in here.zip(&images) {
            folder.write_png(&name(index), image)?;
        }
    }
    let example = |index| Example {
        image: folder.file(&name(index)),
        caption: prior.prompt.clone(),
        repeats: 1,
    };
    Ok((0..prior.count).map(example).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::path::Path;

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

    /// Threads change rounding, which is a step of 255 at most; a run that was stopped between two pictures goes on
    /// with those that it has.
    #[test]
    fn the_class_is_the_same_on_any_number_of_threads_and_after_a_stop() {
        let toybox = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/toybox/base");
        let pipeline = Pipeline::load(&toybox, &Device::default()).unwrap();
        let root = tempfile::tempdir().unwrap();
        let go = AtomicBool::new(false);
        let mut all = Vec::new();
        for shards in [1, 2] {
            let config = config(shards);
            let folder = RunFolder::create(root.path(), None, "run").unwrap();
            let prior = config.prior.clone().unwrap();
            let mut told = Vec::new();
            let examples = draw(&pipeline, &prior, &config, &folder, 2, &go, &mut |event| {
                if let Event::Progress { done, total, .. } = event {
                    told.push((done, total));
                }
            });
            assert_eq!(told.last(), Some(&(3 * 30, 3 * 30)));
            assert!(told.windows(2).all(|pair| pair[0] < pair[1]));
            let examples = examples.unwrap();
            assert!(examples.iter().all(|example| example.caption == "a mug"));
            let read = |example: &Example| read_rgb(&example.image).unwrap().into_raw();
            all.push(examples.iter().map(read).collect::<Vec<_>>());

            std::fs::remove_file(&examples[2].image).unwrap();
            let stop = AtomicBool::new(true);
            let stopped =
                draw(&pipeline, &prior, &config, &folder, 2, &stop, &mut |_| ()).unwrap_err();
            assert!(stopped.to_string().contains("--resume"), "{stopped}");
            draw(&pipeline, &prior, &config, &folder, 2, &go, &mut |_| ()).unwrap();
            assert_eq!(read(&examples[2]), all[all.len() - 1][2]);
        }
        let pairs = all[0].iter().flatten().zip(all[1].iter().flatten());
        let worst = pairs.map(|(one, many)| one.abs_diff(*many)).max();
        assert!(worst <= Some(1), "{worst:?}");
    }
}
