//! The base as a run begins with it: in the precisions of its settings, with its noise schedule and its new words.

use std::collections::BTreeSet;

use burn::tensor::Device;
use soda_models::pipeline::{LoadOptions, Pipeline, UnetPrecision};
use soda_models::unet::UnetConfig;

use crate::config::Precision;
use crate::config::TrainConfig;
use crate::data::rng;
use crate::error::TrainError;

/// Reads the base: what is adapted in f32 until its adapters are made, all else in the precisions of the settings.
///
/// # Errors
/// A base that cannot be read, a schedule that it cannot have, or a word that it has already.
pub(crate) fn load(config: &TrainConfig, device: &Device) -> Result<Pipeline, TrainError> {
    let exact = match config.precision {
        Precision::F32 => BTreeSet::new(),
        Precision::Bf16 | Precision::F16 => {
            let unet: UnetConfig =
                soda_models::config::read(&config.base.join("unet/config.json"))?;
            config.targets.expected(&unet.init(device))?
        }
    };
    let options = LoadOptions {
        dtype: config.encoder_precision.dtype(),
        unet: Some(UnetPrecision { dtype: config.precision.dtype(), exact }),
        ..LoadOptions::default()
    };
    let mut pipeline = Pipeline::load_with(&config.base, &options, device)?;
    pipeline.scheduler = pipeline.scheduler.changed(config.objective.change())?;
    add_words(config, &mut pipeline)?;
    Ok(pipeline)
}

/// Adds the words that are to be learnt to the vocabulary.
fn add_words(config: &TrainConfig, pipeline: &mut Pipeline) -> Result<(), TrainError> {
    let Some(tokens) = config.trained_tokens() else { return Ok(()) };
    for (index, (word, like)) in tokens.words.iter().enumerate() {
        let stream = rng::WORD + index as u64;
        let word = pipeline.word_like(word, like, tokens.vectors, (config.seed, stream));
        pipeline.add_word(&word)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use std::path::Path;

    use burn::tensor::DType;
    use soda_adapters::leaves;

    use super::*;
    use crate::config::{apply_setting, preset};

    /// An adapter made on a network in half precision is one of the same base, and the network was never whole in f32.
    #[test]
    fn what_is_adapted_is_read_as_it_is_and_all_else_in_half_precision() {
        let device = Device::default();
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/toybox/base");
        let loaded = |settings: &[&str]| {
            let mut table = preset("toybox").unwrap();
            let base = format!("base={}", base.display());
            for setting in [base.as_str(), "data=d"].iter().chain(settings) {
                apply_setting(&mut table, setting).unwrap();
            }
            let config = TrainConfig::from_table(table).unwrap();
            let pipeline = load(&config, &device).unwrap();
            let weights = config.targets.select(&pipeline.unet).unwrap();
            let expected = config.targets.expected(&pipeline.unet).unwrap();
            assert_eq!(weights.keys().collect::<Vec<_>>(), expected.iter().collect::<Vec<_>>());
            let hash = soda_adapters::fingerprint(&weights);
            (config, pipeline, hash)
        };
        let half = ["precision=bf16", "encoder_precision=bf16"];
        let (_, single, expected) = loaded(&[]);
        let (config, half, hash) = loaded(&half);
        assert_eq!(hash, expected);

        assert_eq!(single.vae.quant_conv.weight.val().dtype(), DType::F32);
        assert_eq!(half.vae.quant_conv.weight.val().dtype(), DType::BF16);
        let adapted = config.targets.expected(&half.unet).unwrap();
        for leaf in leaves(&half.unet) {
            let exact = adapted.contains(&leaf.path);
            let wanted = if exact { DType::F32 } else { DType::BF16 };
            assert_eq!(leaf.value().dtype(), wanted, "{}", leaf.path);
        }
        let unet = config.precision.of(half.unet);
        assert!(leaves(&unet).iter().all(|leaf| leaf.value().dtype() == DType::BF16));
    }
}
