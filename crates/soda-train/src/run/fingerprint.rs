//! What a run was begun with: the base model and the settings that decide its result.
//!
//! A checkpoint holds the fingerprint of its run. A run that is resumed with another one would be neither the
//! run that was begun nor a new one, and is refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use soda_distributed::Item;
use soda_models::metrics::Judges;
use soda_models::pipeline::{Pipeline, TextEncoders};

use crate::config::{BestMetric, TrainConfig};
use crate::data::dataset::Dataset;
use crate::error::{CheckpointError, ConfigError, TrainError};
use crate::network_hash::network_hash;
use crate::output::tensor_file::hex;

/// Settings that a resumed run may have changed: lengths, outputs, and paths of files whose content is
/// compared. An entry stands for the settings below it as well. Where a score of samples chooses the adapter,
/// [`SCORED`] says which of them may.
const MAY_CHANGE: [&str; 9] = [
    "base",
    "data",
    "judges",
    "prior.data",
    "steps",
    "checkpoints",
    "samples",
    "validation.every",
    "tensorboard",
];

/// Settings of samples that change no score.
const SCORED: [&str; 2] = ["samples.every", "samples.tile_size"];

/// The base model and the settings of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunFingerprint {
    /// A hash of each part of the base model, by the name of its folder.
    base: BTreeMap<String, String>,
    /// The settings that decide the result, by their keys in TOML.
    settings: BTreeMap<String, Value>,
}

impl RunFingerprint {
    /// The fingerprint of a run with these settings on this base model. The tokenizer counts by the tokens
    /// that it makes of the captions, and the judges count if they choose the adapter.
    ///
    /// # Errors
    /// Settings that cannot be written, such as a path that is not UTF-8.
    pub(crate) fn new(
        config: &TrainConfig,
        pipeline: &Pipeline,
        dataset: &Dataset,
        judges: Option<&Judges>,
    ) -> Result<Self, TrainError> {
        let mut base = BTreeMap::from([
            (pipeline.denoiser.folder().to_owned(), network_hash(&pipeline.denoiser)),
            ("vae".to_owned(), network_hash(&pipeline.vae)),
            ("scheduler".to_owned(), text_hash(&format!("{:?}", pipeline.forward_process()))),
        ]);
        let tokens = |tokenizer: &soda_models::tokenizer::Tokenizer| {
            let captions = dataset.examples.iter();
            let ids = captions.map(|example| tokenizer.encode(&example.caption).ids);
            text_hash(&format!("{:?}", ids.collect::<Vec<_>>()))
        };
        match &pipeline.text {
            TextEncoders::Clip(clip) => {
                base.insert("text_encoder".to_owned(), network_hash(&clip.text_encoder));
                base.insert("tokenizer".to_owned(), tokens(&clip.tokenizer));
                if let Some(second) = &clip.second {
                    base.insert("text_encoder_2".to_owned(), network_hash(&second.text_encoder));
                    base.insert("tokenizer_2".to_owned(), tokens(&second.tokenizer));
                }
            }
            TextEncoders::Qwen3(qwen3) => {
                let captions = dataset.examples.iter();
                let ids = captions.map(|example| pipeline.text.token_ids(&example.caption));
                let ids = text_hash(&format!("{:?}", ids.collect::<Vec<_>>()));
                base.insert("text_encoder".to_owned(), qwen3.weights_hash());
                base.insert("tokenizer".to_owned(), ids);
            }
        }
        let mut settings = settings(config)?;
        if let Some(judges) = judges.filter(|_| config.validation.chooses_by_score()) {
            settings.insert("judges".to_owned(), Value::String(judges_hash(judges)));
        }
        Ok(Self { base, settings })
    }

    /// A hash of everything that the gradients at the base model depend on, apart from the training data.
    pub(crate) fn of_first_gradient(&self) -> String {
        let matters = |key: &str| {
            !["optimizer", "validation"].iter().any(|table| key.starts_with(&format!("{table}.")))
        };
        let settings: Vec<_> = self.settings.iter().filter(|(key, _)| matters(key)).collect();
        text_hash(&format!("{:?} {settings:?}", self.base))
    }

    /// The settings and parts of the base model, which all ranks of a run must have alike. The threads of a
    /// machine are its own.
    pub(crate) fn items(&self) -> Vec<Item> {
        let settings = self.settings.iter().filter(|(key, _)| *key != "shards");
        let setting = |(key, value): (&String, &Value)| {
            let what = format!("the setting `{key}`; give all ranks the same");
            Item::new(what, text_hash(&value.to_string()))
        };
        let part = |(part, hash): (&String, &String)| {
            let what = format!("`{part}` of the base model; give all ranks copies of one folder");
            Item::new(what, hash.as_str())
        };
        settings.map(setting).chain(self.base.iter().map(part)).collect()
    }

    /// Compares the run that is resumed, `self`, with the one that was begun.
    ///
    /// # Errors
    /// An error that names the first setting or part of the base model that differs.
    pub(crate) fn check_against(
        &self,
        begun: &Self,
        config: &TrainConfig,
    ) -> Result<(), CheckpointError> {
        if let Some(key) = first_difference(&begun.settings, &self.settings) {
            let value = |settings: &BTreeMap<String, Value>| {
                settings.get(key).map_or_else(|| "unset".to_owned(), Value::to_string)
            };
            return Err(CheckpointError::OtherSetting {
                key: key.to_owned(),
                begun: value(&begun.settings),
                found: value(&self.settings),
            });
        }
        match first_difference(&begun.base, &self.base) {
            Some(part) => {
                Err(CheckpointError::OtherBase { base: config.base.clone(), part: part.to_owned() })
            }
            None => Ok(()),
        }
    }
}

/// A hash of the weights of all judges.
pub(crate) fn judges_hash(judges: &Judges) -> String {
    network_hash(&judges.clip) + &network_hash(&judges.dino)
}

/// The first key whose value differs, or that only one of the two has.
fn first_difference<'a, V: PartialEq>(
    a: &'a BTreeMap<String, V>,
    b: &'a BTreeMap<String, V>,
) -> Option<&'a str> {
    let differs = |key: &&String| a.get(*key) != b.get(*key);
    a.keys().chain(b.keys()).find(differs).map(String::as_str)
}

/// The settings that decide the result, one entry for each value.
fn settings(config: &TrainConfig) -> Result<BTreeMap<String, Value>, TrainError> {
    let value = serde_json::to_value(config)
        .map_err(|error| ConfigError::Write { reason: error.to_string() })?;
    let mut settings = BTreeMap::new();
    flatten("", &value, &mut settings);
    let scored = config.validation.chooses_by_score();
    let may_change = |key: &str| match scored && key.starts_with("samples.") {
        true => is_in(&SCORED, key),
        false => is_in(&MAY_CHANGE, key),
    };
    settings.retain(|key, _| !may_change(key));
    // Runs that were begun before there was a choice go by the loss.
    if config.validation.metric_for_best_model == BestMetric::Loss {
        settings.remove("validation.metric_for_best_model");
    }
    Ok(settings)
}

/// Whether the setting `key` or a table that it is in is in `list`.
fn is_in(list: &[&str], key: &str) -> bool {
    list.iter().any(|entry| {
        key.strip_prefix(entry).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// Adds the values of a tree of objects under their keys, joined by dots. A value that is not set is left
/// out.
fn flatten(key: &str, value: &Value, settings: &mut BTreeMap<String, Value>) {
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if key.is_empty() { "" } else { "." };
                flatten(&format!("{key}{dot}{name}"), value, settings);
            }
        }
        value => {
            settings.insert(key.to_owned(), value.clone());
        }
    }
}

fn text_hash(text: &str) -> String {
    hex(Sha256::new_with_prefix(text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use burn::tensor::Device;

    use super::*;
    use crate::config::{apply_setting, preset};

    fn config(changes: &[&str]) -> TrainConfig {
        let mut table = preset("toybox").unwrap();
        for setting in ["base=b", "data=d", "prior.prompt=a mug"].iter().chain(changes) {
            apply_setting(&mut table, setting).unwrap();
        }
        TrainConfig::from_table(table).unwrap()
    }

    fn refusal(change: &str) -> Option<String> {
        refusal_beside(&[], change)
    }

    fn refusal_beside(begun: &[&str], change: &str) -> Option<String> {
        let fingerprint = |changes: &[&str]| RunFingerprint {
            settings: settings(&config(changes)).unwrap(),
            ..RunFingerprint::default()
        };
        let resumed = fingerprint(&[begun, &[change]].concat());
        let check = resumed.check_against(&fingerprint(begun), &config(&[]));
        check.err().map(|error| error.to_string())
    }

    #[test]
    fn a_changed_setting_is_named_with_both_values() {
        for (change, key) in [
            ("seed=9", "seed"),
            ("batch_size=3", "batch_size"),
            ("shards=7", "shards"),
            ("optimizer.rotation_lr=0.5", "optimizer.rotation_lr"),
            ("optimizer.schedule=constant", "optimizer.schedule"),
            ("objective.min_snr_gamma=5", "objective.min_snr_gamma"),
            ("objective.timesteps=[10, 20]", "objective.timesteps"),
            ("prior.weight=0.25", "prior.weight"),
            ("method=lora", "method"),
            ("validation.held_out=0.5", "validation.held_out"),
            ("text_encoder.learning_rate=1e-3", "text_encoder"),
        ] {
            let message = refusal(change).unwrap_or_else(|| panic!("{change} is accepted"));
            assert!(message.contains(&format!("`{key}")), "{change}: {message}");
        }
        let message = refusal("optimizer.rotation_lr=0.5").unwrap();
        assert!(message.contains("0.5") && message.contains("put it back"), "{message}");
    }

    #[test]
    fn lengths_outputs_and_paths_may_change() {
        for change in [
            "steps=999",
            "base=elsewhere",
            "data=elsewhere",
            "judges=elsewhere",
            "prior.data=elsewhere",
            "checkpoints.every=7",
            "samples.prompts=['a cup']",
            "samples.every=3",
            "validation.every=3",
            "tensorboard=true",
        ] {
            assert_eq!(refusal(change), None, "{change}");
        }
    }

    #[test]
    fn samples_may_not_change_where_their_score_chooses() {
        let begun = [
            "validation.metric_for_best_model=dino",
            "validation.load_best_model_at_end=true",
            "samples.every=5",
        ];
        for (change, key) in [
            ("samples.prompts=['a cup']", "samples.prompts"),
            ("samples.steps=3", "samples.steps"),
            ("validation.metric_for_best_model=clip_t", "validation.metric_for_best_model"),
        ] {
            let message = refusal_beside(&begun, change).unwrap_or_else(|| panic!("{change}"));
            assert!(message.contains(&format!("`{key}")), "{change}: {message}");
        }
        let of_loss = settings(&config(&[])).unwrap();
        assert!(!of_loss.contains_key("validation.metric_for_best_model"), "{of_loss:?}");
        assert_eq!(refusal_beside(&begun, "samples.every=3"), None);
        assert_eq!(refusal_beside(&begun, "steps=999"), None);
    }

    /// A fingerprint is compared after it was written to and read from a checkpoint.
    #[test]
    fn a_fingerprint_survives_json() {
        let changes = ["optimizer.rotation_lr=1e-3", "objective.noise_offset=0.1"];
        let settings = settings(&config(&changes)).unwrap();
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<BTreeMap<String, Value>>(&text).unwrap(), settings);
        let toml = config(&changes).to_toml().unwrap();
        assert_eq!(super::settings(&TrainConfig::from_toml(&toml).unwrap()).unwrap(), settings);
    }

    #[test]
    fn each_part_of_the_base_model_is_named() {
        let base = soda_testing::workspace_path("examples/toybox");
        let dataset =
            Dataset::read(&base.join("subjects/castle_mug"), Some("a photo of a mug")).unwrap();
        let pipeline = Pipeline::load(&base.join("base"), &Device::default()).unwrap();
        let config = config(&[]);
        let begun = RunFingerprint::new(&config, &pipeline, &dataset, None).unwrap();
        assert_eq!(begun, RunFingerprint::new(&config, &pipeline, &dataset, None).unwrap());
        let refused = |change: &dyn Fn(&mut Pipeline)| {
            let mut pipeline = Pipeline::load(&base.join("base"), &Device::default()).unwrap();
            change(&mut pipeline);
            let other = RunFingerprint::new(&config, &pipeline, &dataset, None).unwrap();
            other.check_against(&begun, &config).unwrap_err().to_string()
        };
        let message = refused(&|pipeline| {
            let mut unet = pipeline.denoiser.as_unet().unwrap().clone();
            unet.conv_in.weight = unet.conv_in.weight.map(|weight| weight.mul_scalar(1.0001));
            pipeline.denoiser = unet.into();
        });
        assert!(message.contains("`unet`"), "{message}");
        let message = refused(&|pipeline| {
            let weight = &mut pipeline.vae.quant_conv.as_mut().unwrap().weight;
            *weight = weight.clone().map(|weight| weight.add_scalar(1e-3));
        });
        assert!(message.contains("`vae`"), "{message}");
        let message = refused(&|pipeline| pipeline.scheduler.beta_end *= 1.1);
        assert!(message.contains("`scheduler`"), "{message}");
        let message = refused(&|pipeline| {
            pipeline.text.clip_mut().unwrap().text_encoder.text_model.eos_token += 1;
        });
        assert!(message.contains("`text_encoder`"), "{message}");
    }
}
