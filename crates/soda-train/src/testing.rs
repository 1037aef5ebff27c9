//! Small networks and settings for tests. All parameters are functions of a seed, because all threads share
//! burn's generator.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Tensor;
use serde_json::{Value, json};
use soda_adapters::{map_params, named_params};
use soda_models::noise::{generator, randn_with};

use crate::config::{TrainConfig, apply_setting, preset};

/// A temporary folder with these files and their texts.
pub(crate) fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

/// The configuration of a small denoiser with the architecture of SDXL.
pub(crate) fn sdxl() -> Value {
    json!({
        "block_out_channels": [16, 32],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2],
        "norm_num_groups": 8,
        "cross_attention_dim": 24,
        "attention_head_dim": [2, 4],
        "use_linear_projection": true,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 60,
    })
}

/// The preset `toybox` with `settings` applied.
pub(crate) fn settings(settings: &[&str]) -> TrainConfig {
    let mut table = preset("toybox").unwrap();
    for setting in ["base=b", "data=d"].iter().chain(settings) {
        apply_setting(&mut table, setting).unwrap();
    }
    TrainConfig::from_table(table).unwrap()
}

/// Fills `module` with weights that keep the size of activations.
pub(crate) fn filled<N: Module>(module: N) -> N {
    random(module, 0.0, |shape| match shape {
        [_] => 0.1,
        [out, rest @ ..] => (rest.iter().product::<usize>().min(*out) as f64).powf(-0.5),
        [] => 1.0,
    })
}

/// Multiplies trainable parameters by `keep` and adds noise of size `scale`.
pub(crate) fn random<N: Module>(module: N, keep: f64, scale: impl Fn(&[usize]) -> f64) -> N {
    let shapes: BTreeMap<String, Vec<usize>> = named_params(&module.clone().train())
        .into_iter()
        .filter(|param| param.trainable)
        .map(|param| (param.path, param.shape))
        .collect();
    let mut rng = generator(9, 0);
    map_params(module, |param| {
        let shape = shapes.get(&param.path)?;
        let value = param.value();
        let noise: Tensor<4> = randn_with(&mut rng, [1, 1, 1, value.dims()[0]], &value.device());
        let noise: Tensor<1> = noise.reshape(value.dims()).mul_scalar(scale(shape));
        // The gains of normalization layers stay near 1.
        let keep = if param.path.ends_with("gamma") { 1.0 } else { keep };
        Some(value.mul_scalar(keep) + noise)
    })
}

/// The Euclidean norm.
pub(crate) fn norm<const D: usize>(x: Tensor<D>) -> f32 {
    x.square().sum().sqrt().into_scalar()
}
