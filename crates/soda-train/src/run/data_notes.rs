//! What a run says about its data.

use crate::config::TrainConfig;
use crate::data::dataset::Dataset;
use crate::data::encoded_dataset::EncodedDataset;
use crate::data::masks;
use crate::event::Event;

/// Reports problems of the data, and how it is used, and rates that are never reached.
pub(super) fn describe_data(
    config: &TrainConfig,
    data: &EncodedDataset,
    dataset: &Dataset,
    on_event: &mut dyn FnMut(Event<'_>),
) {
    let warmup = config.optimizer.warmup_steps;
    if warmup > 0 && warmup >= config.steps {
        on_event(Event::Warning(&format!(
            "the run ends before its rates are reached: `optimizer.warmup_steps` is {warmup}, `steps` is {}",
            config.steps
        )));
    }
    for caption in &data.truncated_captions {
        on_event(Event::Warning(&format!(
            "a caption is too long for the text encoder and was cut: {caption}"
        )));
    }
    if let Some(first) = data.upscaled.first() {
        on_event(Event::Warning(&format!(
            "{} of {} pictures are smaller than what they are learnt at and are enlarged, such as {}",
            data.upscaled.len(),
            dataset.examples.len(),
            first.display()
        )));
    }
    let lacks = |trigger: &&String| {
        let trigger = trigger.to_lowercase();
        !dataset.examples.iter().any(|example| example.caption.to_lowercase().contains(&trigger))
    };
    if let Some(trigger) = config.trigger.iter().find(lacks) {
        on_event(Event::Warning(&format!(
            "no caption has the trigger `{trigger}`, so that it will not call the subject: add it to captions"
        )));
    }
    for skipped in &dataset.skipped {
        on_event(Event::Warning(&skipped.to_string()));
    }
    if let Some(folders) = dataset.describe_folders() {
        on_event(Event::Note(&format!("folders: {folders}")));
    }
    let unused = dataset.examples.iter().filter(|e| masks::mask_file(&e.image).is_some()).count();
    if config.masks.is_none() && unused > 0 {
        let text = format!("{unused} of the pictures have masks, which only `masks={{}}` uses");
        on_event(Event::Warning(&text));
    }
    if config.buckets.is_some() {
        on_event(Event::Note(&format!("buckets: {}", bucket_sizes(data))));
    }
    if config.trains_text_encoder() {
        on_event(Event::Note(
            "text encoders or new words learn: captions are read in every step, and not kept in a cache",
        ));
    }
}

/// The number of images in each bucket.
pub(super) fn bucket_sizes(data: &EncodedDataset) -> String {
    let bucket =
        |([width, height], count): ([u32; 2], usize)| format!("{count} of {width} x {height}");
    data.buckets().map(bucket).collect::<Vec<_>>().join(", ")
}
