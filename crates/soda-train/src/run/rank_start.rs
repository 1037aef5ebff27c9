//! What the ranks of a run exchange before its first step.

use std::path::PathBuf;

use soda_distributed::Item;
use soda_models::input_file::SizeLimit;
use soda_models::metrics::Judges;
use soda_pipeline::counted;

use crate::config::TrainConfig;
use crate::data::dataset::Dataset;
use crate::data::encoded_dataset::EncodedDataset;
use crate::error::{CheckpointError, TrainError};
use crate::event::Event;
use crate::output::run_folder::RunFolder;
use crate::output::tensor_file::hex;
use crate::run::checkpoint::Checkpoint;
use crate::run::fingerprint::{RunFingerprint, judges_hash};
use crate::step::ranks::Ranks;

/// The most bytes of a checkpoint: as of its file.
const CHECKPOINT: usize = SizeLimit::TENSORS.bytes as usize;
/// The most bytes of a path.
const PATH: usize = 1 << 16;

/// Compares settings, data folder and base model of all ranks.
///
/// # Errors
/// The first rank and the setting, part or picture in which it differs from rank 0.
pub(super) fn agree(
    ranks: &Ranks,
    config: &TrainConfig,
    fingerprint: &RunFingerprint,
    dataset: &Dataset,
    judges: Option<&Judges>,
) -> Result<(), TrainError> {
    if ranks.world() == 1 {
        return Ok(());
    }
    let mut items = fingerprint.items();
    for (key, value) in [("steps", config.steps), ("validation.every", config.validation.every)] {
        let what = format!("the setting `{key}`; give all ranks the same");
        items.push(Item::new(what, value.to_string()));
    }
    // The ranks divide the prompts, and each scores what it draws.
    let samples = format!("{:?}", config.samples);
    let what = "the settings `samples` or the prompts of the data folder; give all ranks the same";
    items.push(Item::new(what, short(&samples)));
    let weights = judges.map(judges_hash);
    let what = "`judges`; give all ranks copies of one folder, or none";
    items.push(Item::new(what, weights.unwrap_or_default()));
    items.extend(listing(dataset));
    Ok(ranks.reduce().agree(&items)?)
}

/// The pictures of a data folder by name, size and caption. Their pixels are compared when they are read.
fn listing(dataset: &Dataset) -> Vec<Item> {
    let count = dataset.examples.len();
    let all = "the training data; give all ranks copies of one folder".to_owned();
    let item = |example: &crate::data::folder::Example| {
        let name = example.name();
        let bytes = std::fs::metadata(&example.image).map_or(0, |data| data.len());
        let value = format!("{bytes} {} {}", example.repeats, example.caption);
        let what = format!("the picture or caption `{name}`; give all ranks copies of one folder");
        Item::new(what, short(&value))
    };
    let examples = dataset.examples.iter().take(100_000).map(item);
    std::iter::once(Item::new(all, count.to_string())).chain(examples).collect()
}

/// A hash that is short enough for a list of many.
fn short(text: &str) -> String {
    use sha2::{Digest as _, Sha256};
    hex(Sha256::new_with_prefix(text)).chars().take(16).collect()
}

/// Compares the pixels and captions that all ranks have read.
pub(super) fn agree_on_data(ranks: &Ranks, data: &EncodedDataset) -> Result<(), TrainError> {
    let what = "the pixels or captions of the training data; give all ranks copies of one folder";
    Ok(ranks.reduce().agree(&[Item::new(what, data.digest())])?)
}

/// Gives the checkpoint of rank 0 to the others, which need not see its folder.
pub(super) fn give_checkpoint(
    ranks: &Ranks,
    checkpoint: Option<&Checkpoint>,
) -> Result<(), TrainError> {
    if ranks.world() > 1 {
        let bytes = checkpoint.map(Checkpoint::to_sent_bytes).transpose()?.unwrap_or_default();
        ranks.reduce().broadcast(bytes, CHECKPOINT)?;
    }
    Ok(())
}

/// The checkpoint of rank 0, on another rank.
pub(super) fn take_checkpoint(ranks: &Ranks) -> Result<Option<Checkpoint>, TrainError> {
    let bytes = ranks.reduce().broadcast(Vec::new(), CHECKPOINT)?;
    let sent = PathBuf::from("sent by rank 0");
    let damaged = || CheckpointError::Damaged { path: sent.clone() }.into();
    match bytes.is_empty() {
        true => Ok(None),
        false => Checkpoint::from_sent_bytes(&bytes).map(Some).ok_or_else(damaged),
    }
}

/// Tells the others whether something holds on rank 0.
pub(super) fn give_flag(ranks: &Ranks, holds: bool) -> Result<(), TrainError> {
    ranks.reduce().broadcast(vec![u8::from(holds)], 1)?;
    Ok(())
}

/// Whether something holds on rank 0, on another rank.
pub(super) fn take_flag(ranks: &Ranks) -> Result<bool, TrainError> {
    Ok(ranks.reduce().broadcast(Vec::new(), 1)? == [1])
}

/// Tells the others where rank 0 has drawn the class images.
pub(super) fn give_class_images(
    ranks: &Ranks,
    config: &TrainConfig,
    folder: &RunFolder,
) -> Result<(), TrainError> {
    if ranks.world() > 1 && draws_class_images(config) {
        let folder = std::path::absolute(folder.path())
            .map_err(TrainError::io("find the path of", folder.path()))?;
        let not_utf8 = || std::io::Error::other("the path is not UTF-8, and other ranks read it");
        let path = folder.to_str().ok_or_else(not_utf8);
        let path = path.map_err(TrainError::io("send the path of", &folder))?;
        ranks.reduce().broadcast(path.as_bytes().to_vec(), PATH)?;
    }
    Ok(())
}

/// The run's folder with the class images of rank 0, on another rank. `None` if there are none.
pub(super) fn take_class_images(
    ranks: &Ranks,
    config: &TrainConfig,
) -> Result<Option<PathBuf>, TrainError> {
    if !draws_class_images(config) {
        return Ok(None);
    }
    let bytes = ranks.reduce().broadcast(Vec::new(), PATH)?;
    Ok(Some(PathBuf::from(String::from_utf8_lossy(&bytes).into_owned())))
}

fn draws_class_images(config: &TrainConfig) -> bool {
    config.prior.as_ref().is_some_and(|prior| prior.data.is_none())
}

/// Says how many images a step learns, and who computes them.
pub(super) fn describe(ranks: &Ranks, config: &TrainConfig, on_event: &mut dyn FnMut(Event<'_>)) {
    let begun = config.ranks.unwrap_or(1);
    if ranks.world() == 1 && begun == 1 {
        return;
    }
    let processes = match ranks.world() {
        1 => "one process".to_owned(),
        count => format!("{count} processes"),
    };
    on_event(Event::Note(&format!(
        "{processes} for {begun} ranks: a step learns {} ({} x {} x {}: ranks, batch_size, accumulation)",
        counted(config.images_per_step(), "image"),
        begun,
        config.batch_size,
        config.accumulation,
    )));
}
