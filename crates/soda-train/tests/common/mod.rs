//! The fixture with six training steps, and trainers of the bundled model.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
#![allow(dead_code, reason = "no test file uses all of it")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::{Device, Int, Tensor, TensorData};
use soda_adapters::{Method as _, PlanOptions};
use soda_models::pipeline::{Pipeline, TokenEmbedding, TokenIds};
use soda_models::unet::{Unet, UnetConfig};
use soda_models::{config, weights};
use soda_pipeline::{Component, TARGET_PRESETS};
use soda_train::{Batch, Prompts, TrainConfig, Trainer, apply_setting, preset};

pub(crate) fn path(name: &str) -> PathBuf {
    soda_testing::workspace_path(name)
}

/// The denoiser of the bundled model.
pub(crate) fn denoiser(device: &Device) -> Unet {
    let folder = path("examples/toybox/base/unet");
    let config: UnetConfig = config::read(&folder.join("config.json")).unwrap();
    weights::load(config.init(device), &folder.join("diffusion_pytorch_model.safetensors")).unwrap()
}

/// The preset `toybox` on a few layers, with `settings` applied.
pub(crate) fn settings(settings: &[&str]) -> TrainConfig {
    let mut table = preset("toybox").unwrap();
    let targets = r#"targets=['mid_block\..*attn\d\.to_(q|k)\.weight$']"#;
    let common = ["base=b", "data=d", "batch_size=3", "optimizer.schedule=constant", targets];
    for setting in common.iter().chain(settings) {
        apply_setting(&mut table, setting).unwrap();
    }
    let config = TrainConfig::from_table(table).unwrap();
    config.check().unwrap();
    config
}

/// A trainer of the denoiser alone.
pub(crate) fn trainer<'a>(config: &'a TrainConfig, device: &Device) -> Trainer<'a> {
    Trainer::new(adapted_denoiser(config, device), &config.method, config).unwrap()
}

pub(crate) fn adapted_denoiser(config: &TrainConfig, device: &Device) -> Unet {
    let denoiser = denoiser(device);
    config.method.plan(&config.targets, &denoiser).unwrap().attach(denoiser)
}

/// The settings of the text encoder in the fixture.
pub(crate) const TEXT: [&str; 2] = [
    r#"text_encoder.targets=['layers\.[02]\.self_attn\.(q|out)_proj\.weight$']"#,
    "text_encoder.learning_rate=1e-3",
];

/// The settings of the new word in the fixture, which also has its first embedding.
pub(crate) const WORD: [&str; 2] = [r#"tokens.words={"<mug>"=""}"#, "tokens.learning_rate=2e-3"];

/// A trainer of the denoiser with its text encoder, which has adapters if the settings ask for it. `word` is
/// the first embedding of a new word.
pub(crate) fn text_trainer<'a>(
    config: &'a TrainConfig,
    word: Option<Tensor<2>>,
    device: &Device,
) -> Trainer<'a> {
    let mut pipeline = Pipeline::load(&path("examples/toybox/base"), device).unwrap();
    if let Some(first) = word {
        pipeline
            .add_token_embedding(&TokenEmbedding { token: "<mug>".to_owned(), first, second: None })
            .unwrap();
    }
    let networks = pipeline.networks();
    let mut options = PlanOptions { presets: TARGET_PRESETS, ..PlanOptions::default() };
    let plan = config.method.plan_with(&config.targets, &networks.denoiser, &mut options).unwrap();
    let mut plan = plan.with_prefix(&Component::Unet.prefix());
    if let Some(text) = config.trained_text_encoder() {
        let text =
            config.method.plan_with(&text.targets, &networks.text_encoder, &mut options).unwrap();
        plan.extend(text.with_prefix(&Component::TextEncoder.prefix()));
    }
    let networks = plan.attach(networks).with_trainable_tokens();
    Trainer::new(networks, &config.method, config).unwrap()
}

/// The tensors that `training.py` writes: shape and values by name.
pub(crate) struct Fixture(pub(crate) BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Fixture {
    pub(crate) fn read() -> Self {
        let files = ["training", "training_text", "training_words"].map(Self::entries);
        Self(files.into_iter().flatten().collect())
    }

    fn entries(name: &str) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
        let bytes =
            std::fs::read(path(&format!("crates/soda-train/tests/fixtures/{name}.safetensors")))
                .unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let values = |view: &safetensors::tensor::TensorView<'_>| {
            let word = |bytes: &[u8]| -> [u8; 4] { bytes.try_into().unwrap() };
            view.data()
                .chunks_exact(4)
                .map(|bytes| match view.dtype() {
                    safetensors::Dtype::I32 => i32::from_le_bytes(word(bytes)) as f32,
                    _ => f32::from_le_bytes(word(bytes)),
                })
                .collect::<Vec<f32>>()
        };
        let tensors = file.tensors();
        let entry = |(name, view): &(String, safetensors::tensor::TensorView<'_>)| {
            (name.clone(), (view.shape().to_vec(), values(view)))
        };
        tensors.iter().map(entry).collect()
    }

    pub(crate) fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let (shape, values) = self.0[name].clone();
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// The samples of `step`, with encoded prompts.
    pub(crate) fn batch(&self, step: usize, device: &Device) -> Batch {
        let at = |name: &str| -> Tensor<4> {
            self.tensor::<5>(name, device).narrow(0, step, 1).squeeze_dim(0)
        };
        let timesteps: Tensor<1> =
            self.tensor::<2>("timesteps", device).narrow(0, step, 1).squeeze_dim(0);
        let count = timesteps.dims()[0];
        Batch {
            noisy: at("noisy"),
            target: at("target"),
            prompts: self.tensor::<3>("text", device).into(),
            timesteps,
            weight: Tensor::full([count], 1.0 / count as f64, device),
            mask: None,
        }
    }

    /// The samples of `step` with the tokens named `ids` or `word_ids`; the latter contain the new word.
    pub(crate) fn tokens(&self, ids: &str, step: usize, device: &Device) -> Batch {
        let ids: Tensor<2, Int> = self.tensor::<2>(ids, device).int();
        let prompts =
            Prompts::Tokens { ids: TokenIds { first: ids, second: None }, time_ids: None };
        Batch { prompts, ..self.batch(step, device) }
    }

    /// The tensors whose names start with `prefix`, by the rest of the name.
    pub(crate) fn under(&self, prefix: &str) -> BTreeMap<String, TensorData> {
        let entries = self.0.iter().filter_map(|(name, (shape, values))| {
            let name = name.strip_prefix(prefix)?;
            let elements = shape.iter().product::<usize>();
            Some((name.to_owned(), TensorData::new(values.clone(), [elements])))
        });
        entries.collect()
    }
}

/// The path of the embeddings of new words.
pub(crate) const EMBEDDINGS: &str = "text_encoder.text_model.embeddings.new_tokens.vectors";
