//! Half precision of SDXL's autoencoder, whose activations exceed 65504, the largest f16.
//!
//! If the config says `force_upcast`, the autoencoder stays in f32 while the rest of the model is f16.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use burn::tensor::{DType, Device, FloatDType, Tensor};
use common::{Fixture, value, write_pipeline};
use safetensors::{SafeTensors, tensor::TensorView};
use soda_models::pipeline::{GenerateConfig, LoadOptions, Pipeline};
use soda_models::{ImageError, ModelError};

/// Multiplies weights of a file by `factor`, so that the activations exceed f16 although the weights do not.
fn enlarge(path: &Path, keys: &[&str], factor: f32) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let scaled = |key: &str, view: &TensorView<'_>| -> Vec<u8> {
        let factor = if keys.contains(&key) { factor } else { 1.0 };
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        values.flat_map(|x| (factor * x).to_le_bytes()).collect()
    };
    let tensors: Vec<_> = file
        .tensors()
        .into_iter()
        .map(|(key, view)| (scaled(&key, &view), key, view.dtype(), view.shape().to_vec()))
        .collect();
    let views = tensors.iter().map(|(bytes, key, dtype, shape)| {
        (key, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

fn load(dir: &Path, dtype: FloatDType) -> Pipeline {
    let options = LoadOptions { dtype, ..LoadOptions::default() };
    Pipeline::load_with(dir, &options, &Device::default()).unwrap()
}

fn floats(x: Tensor<4>) -> Vec<f32> {
    x.into_data().iter::<f32>().collect()
}

#[test]
fn an_autoencoder_that_overflows_in_f16_stays_in_f32() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_pipeline(&Fixture::read("pipeline-sdxl"), dir);
    // Later norms divide by the scale again: in f32 nothing is wrong with these weights.
    let weights = dir.join("vae/diffusion_pytorch_model.safetensors");
    enlarge(&weights, &["post_quant_conv.weight", "decoder.conv_in.weight"], 1e3);
    let config = dir.join("vae/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut fields: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut upcast = |value: bool| {
        fields["force_upcast"] = value.into();
        std::fs::write(&config, fields.to_string()).unwrap();
    };
    let latents = || value::<4>("latents", [1, 4, 5, 7], &Device::default());

    // The control: without `force_upcast` this decoder overflows in f16.
    upcast(false);
    let lost = load(dir, FloatDType::F16);
    let decoded = floats(lost.vae.decode(latents().cast(FloatDType::F16)));
    assert!(decoded.iter().any(|x| !x.is_finite()));
    let request =
        GenerateConfig { prompts: vec!["a mug".to_owned()], steps: 2, ..Default::default() };
    let error = lost.generate(&request, &mut |_, _| {}).unwrap_err();
    assert!(
        matches!(error, ModelError::Image(ImageError::NonFinite { what: "pixels", index: 0 })),
        "{error}"
    );

    upcast(true);
    let (half, whole) = (load(dir, FloatDType::F16), load(dir, FloatDType::F32));
    assert_eq!(half.denoiser.dtype(), DType::F16);
    assert_eq!(half.vae.decoder.conv_in.weight.val().dtype(), DType::F32);
    let images = floats(half.decode(latents()));
    assert!(images.iter().all(|x| x.is_finite()));
    assert_eq!(images, floats(whole.decode(latents())));
    let drawn = half.generate(&request, &mut |_, _| {}).unwrap();
    assert!(drawn[0].iter().any(|byte| *byte != drawn[0].as_raw()[0]));

    // bf16 has the range of f32 and needs no exception.
    if !Device::default().supports_dtype(DType::BF16) {
        return;
    }
    let brain = load(dir, FloatDType::BF16);
    assert_eq!(brain.vae.decoder.conv_in.weight.val().dtype(), DType::BF16);
    assert!(floats(brain.decode(latents())).iter().all(|x| x.is_finite()));
}
