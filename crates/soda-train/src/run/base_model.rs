//! The base model at the start of a run: in the precisions of the settings, with the noise schedule and the
//! new words.

use std::collections::BTreeSet;

use burn::tensor::Device;
use soda_models::pipeline::{DenoiserConfig, LoadOptions, Pipeline, TextEncoderUse};
use soda_models::weights::{WeightPrecision, WeightStorage};
use soda_pipeline::TARGET_PRESETS;

use crate::config::{Precision, TrainConfig};
use crate::data::augment::caption_variants;
use crate::data::dataset::Dataset;
use crate::data::folder::Example;
use crate::data::rng;
use crate::error::{ConfigError, TrainError};
use crate::eval::sampling::evaluation_prompts;
use crate::event::Event;

/// Reads the base model. Adapted weights stay as they are in the file until their adapters are made;
/// all other weights have the precisions of the settings.
///
/// # Errors
/// A base model that cannot be read, an unusable noise schedule, or a word that the vocabulary has already.
pub(crate) fn load(
    config: &TrainConfig,
    dataset: &Dataset,
    device: &Device,
) -> Result<Pipeline, TrainError> {
    let denoiser = DenoiserConfig::read(&config.base)?;
    check_settings(config, &denoiser)?;
    let storage = config.denoiser_storage();
    let exact = match config.precision {
        Precision::F32 if storage == WeightStorage::default() => BTreeSet::new(),
        Precision::F32 | Precision::Bf16 | Precision::F16 => {
            config.targets.matching_paths(&denoiser.init(device), TARGET_PRESETS)?
        }
    };
    let options = LoadOptions {
        dtype: config.encoder_precision.dtype(),
        storage: config.text_encoder_storage(),
        denoiser: Some(WeightPrecision { dtype: config.precision.dtype(), storage, exact }),
        resolution: config.resolution,
        prompt_encoding: config.prompt_encoding(),
        text_encoder: TextEncoderUse::EncodeAndFree {
            prompts: all_prompts(config, dataset)?,
            hash: true,
        },
        ..LoadOptions::default()
    };
    let mut pipeline = Pipeline::load_with(&config.base, &options, device)?;
    pipeline.scheduler =
        pipeline.scheduler.with_overrides(config.objective.scheduler_overrides())?;
    add_words(config, &mut pipeline)?;
    Ok(pipeline)
}

/// All prompts of a run: captions, those of samples and of class images, and the empty one of guidance and of
/// dropped captions.
fn all_prompts(config: &TrainConfig, dataset: &Dataset) -> Result<Vec<String>, TrainError> {
    let mut kept = dataset.clone();
    let held_out = kept.hold_out(config.validation.held_out, config.seed)?;
    let variants = |examples: &[Example]| {
        let of_example = |(index, example): (usize, &Example)| {
            caption_variants(&example.caption, &config.augment, config.seed, index as u64)
        };
        examples.iter().enumerate().flat_map(of_example).collect::<Vec<_>>()
    };
    let mut prompts = BTreeSet::from([String::new()]);
    let captions = dataset.examples.iter().map(|example| example.caption.clone());
    prompts.extend(captions.chain(variants(&kept.examples)).chain(variants(&held_out)));
    prompts.extend(evaluation_prompts(config, dataset));
    prompts.extend(config.samples.unrelated.iter().cloned());
    if let Some(prior) = &config.prior {
        prompts.insert(prior.prompt.clone());
        if let Some(data) = &prior.data {
            let class = Dataset::read(data, Some(&prior.prompt))?;
            prompts.extend(class.examples.into_iter().map(|example| example.caption));
        }
    }
    Ok(prompts.into_iter().collect())
}

/// Refuses settings that a transformer does not have yet.
fn check_settings(config: &TrainConfig, denoiser: &DenoiserConfig) -> Result<(), ConfigError> {
    if denoiser.as_unet().is_some() {
        return Ok(());
    }
    if config.trains_text_encoder() {
        return Err(ConfigError::Conflict(
            "text encoders and new words are trained with Stable Diffusion only: remove \
             `text_encoder` and `tokens` for this base",
        ));
    }
    Ok(())
}

/// Reports what is unusual about the base model, and which sampler draws in place of its own.
pub(crate) fn describe(pipeline: &Pipeline, on_event: &mut dyn FnMut(Event<'_>)) {
    for warning in &pipeline.warnings {
        on_event(Event::Warning(&warning.to_string()));
    }
    if pipeline.is_distilled {
        on_event(Event::Warning(
            "the base is distilled to draw in few steps, which training undoes: train on the model \
             that it was distilled from",
        ));
    }
    if let Some(replaced) = &pipeline.scheduler.replaced {
        on_event(Event::Warning(&format!(
            "the base's sampler, {replaced}, is not implemented; {} draws the samples, the nearest \
             to it",
            pipeline.scheduler.class.class_name()
        )));
    }
}

/// Adds the new words of the settings to the vocabulary.
fn add_words(config: &TrainConfig, pipeline: &mut Pipeline) -> Result<(), TrainError> {
    let Some(tokens) = config.trained_tokens() else { return Ok(()) };
    for (index, (word, like)) in tokens.words.iter().enumerate() {
        let stream = rng::WORD + index as u64;
        let word =
            pipeline.init_token_embedding(word, like, tokens.vectors, (config.seed, stream))?;
        pipeline.add_token_embedding(&word)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use burn::tensor::DType;
    use soda_adapters::{METHOD_PRESETS, Method as _, NamedParam, PlanOptions, named_params};
    use soda_models::pipeline::Denoiser;

    use super::*;
    use crate::config::{apply_setting, preset};

    /// A half-precision network has the adapters of the f32 base, and their fingerprint: adapted weights are
    /// read as the file has them, here in f16. All other weights are read in half precision.
    #[test]
    fn adapted_weights_are_read_as_in_the_file_and_all_others_in_half_precision() {
        let device = Device::default();
        let base = soda_testing::workspace_path("examples/toybox/base");
        let loaded = |settings: &[&str]| {
            let mut table = preset("toybox").unwrap();
            let base = format!("base={}", base.display());
            for setting in [base.as_str(), "data=d"].iter().chain(settings) {
                apply_setting(&mut table, setting).unwrap();
            }
            let config = TrainConfig::from_table(table).unwrap();
            let dataset = Dataset::read(
                &soda_testing::workspace_path("examples/toybox/subjects/castle_mug"),
                None,
            )
            .unwrap();
            let pipeline = load(&config, &dataset, &device).unwrap();
            let weights =
                config.targets.select_within(&pipeline.denoiser, "", TARGET_PRESETS).unwrap();
            let expected =
                config.targets.matching_paths(&pipeline.denoiser, TARGET_PRESETS).unwrap();
            assert_eq!(weights.keys().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
            let hash = soda_adapters::fingerprint(&weights);
            (config, pipeline, hash)
        };
        let half = ["precision=bf16", "encoder_precision=bf16"];
        let (_, single, expected) = loaded(&[]);
        let (config, half, hash) = loaded(&half);
        assert_eq!(hash, expected);

        assert_eq!(single.vae.any_weight().dtype(), DType::F32);
        assert_eq!(half.vae.any_weight().dtype(), DType::BF16);
        let adapted = config.targets.matching_paths(&half.denoiser, TARGET_PRESETS).unwrap();
        for param in named_params(&half.denoiser) {
            let exact = adapted.contains(&param.path);
            let wanted = if exact { DType::F16 } else { DType::BF16 };
            assert_eq!(param.value().dtype(), wanted, "{}", param.path);
        }
        for (name, method) in METHOD_PRESETS {
            let method = method();
            if method.calibration().is_some() {
                continue;
            }
            let adapters = |denoiser: &Denoiser| {
                let options = &mut PlanOptions { presets: TARGET_PRESETS, ..Default::default() };
                let plan = method.plan_with(&config.targets, denoiser, options).unwrap();
                let params = named_params(&plan.attach(denoiser.clone())).into_iter();
                let params = params.filter(|param| param.path.contains(".adapter."));
                let data = |param: NamedParam| {
                    assert_eq!(param.value().dtype(), DType::F32, "{name}: {}", param.path);
                    let values = param.value().into_data().iter::<f32>().collect::<Vec<_>>();
                    (param.path, values)
                };
                params.map(data).collect::<Vec<_>>()
            };
            let (expected, found) = (adapters(&single.denoiser), adapters(&half.denoiser));
            assert!(!expected.is_empty() && expected.len() == found.len(), "{name}");
            for ((path, expected), (_, found)) in expected.iter().zip(&found) {
                assert!(found == expected, "{name}: {path}");
            }
        }
        let denoiser = config.precision.cast_denoiser(half.denoiser);
        assert!(named_params(&denoiser).iter().all(|param| param.value().dtype() == DType::BF16));
    }
}
