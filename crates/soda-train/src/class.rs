//! Pictures of the class for prior preservation (DreamBooth, arXiv 2208.12242, 3.3): found, or drawn by
//! the base model before it learns anything.

use soda_models::pipeline::{GenerateConfig, Pipeline};

use crate::cache::EncodeCache;
use crate::config::{PriorConfig, TrainConfig};
use crate::dataset::{Dataset, Example};
use crate::encode::{EncodeConfig, Encoded};
use crate::error::TrainError;
use crate::personalise::Event;
use crate::run::RunFolder;

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
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Encoded>, TrainError> {
    let Some(prior) = &config.prior else { return Ok(None) };
    let examples = match &prior.data {
        Some(data) => Dataset::read(data, Some(&prior.prompt))?.examples,
        None => draw(pipeline, prior, config.seed, folder, on_event)?,
    };
    on_event(Event::Stage { name: "encoding class" });
    let progress = &mut |done, total| on_event(Event::Progress { done, total, loss: None });
    let encode = EncodeConfig::of(config).unvaried().unmasked();
    Encoded::new(pipeline, &examples, &encode, cache, progress).map(Some)
}

/// Draws those of the class's pictures that the run's folder lacks.
fn draw(
    pipeline: &Pipeline,
    prior: &PriorConfig,
    seed: u64,
    folder: &RunFolder,
    on_event: &mut dyn FnMut(Event<'_>),
) -> Result<Vec<Example>, TrainError> {
    let class = folder.file(FOLDER);
    std::fs::create_dir_all(&class).map_err(TrainError::io("create", &class))?;
    let name = |index: usize| format!("{FOLDER}/{index:04}.png");
    on_event(Event::Stage { name: "drawing class" });
    for first in (0..prior.count).step_by(AT_ONCE) {
        let here = first..(first + AT_ONCE).min(prior.count);
        if here.clone().all(|index| folder.file(&name(index)).is_file()) {
            continue;
        }
        let request = GenerateConfig {
            prompts: vec![prior.prompt.clone(); here.len()],
            seed: seed.wrapping_add(SEED_SHIFT).wrapping_add(first as u64),
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
