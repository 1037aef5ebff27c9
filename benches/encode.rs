//! The encoding of two images of 512 pixels and two captions, computed and read from the cache.
//!
//! The autoencoder and the text encoder have the sizes of Stable Diffusion 1.5 and random weights. Both
//! variants read the image files; the cached one also hashes all weights of the encoders.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use divan::Bencher;
use soda_models::clip::ClipTextConfig;
use soda_models::image::{Crop, read_rgb, resize_crop};
use soda_models::pipeline::{DenoiserConfig, Pipeline};
use soda_models::vae::VaeConfig;
use soda_train::{EncodeCache, EncodeConfig, EncodeOptions, EncodedDataset, Example, write_png};

fn main() {
    divan::main();
}

/// The bundled model with encoders of Stable Diffusion 1.5's sizes.
fn pipeline() -> Pipeline {
    let toybox = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/toybox/base");
    let mut pipeline = Pipeline::load(&toybox, &Device::default()).expect("the bundled model");
    let vae = VaeConfig {
        block_out_channels: vec![128, 256, 512, 512],
        layers_per_block: 2,
        ..VaeConfig::default()
    };
    let text = ClipTextConfig {
        hidden_size: 768,
        intermediate_size: 3072,
        num_attention_heads: 12,
        ..ClipTextConfig::default()
    };
    if let DenoiserConfig::Unet(config) = &mut pipeline.denoiser_config {
        config.sample_size = 64;
    }
    pipeline.vae = vae.init(&pipeline.device);
    pipeline.vae_config = vae;
    let clip = pipeline.text.clip_mut().expect("the bundled model has CLIP");
    clip.text_encoder = text.init(&pipeline.device);
    pipeline
}

fn examples(folder: &Path) -> Vec<Example> {
    let toybox =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/toybox/subjects/castle_mug");
    let example = |name: &str| {
        let small = read_rgb(&toybox.join(name)).expect("a bundled image");
        let whole = Crop::largest(small.dimensions(), 512, 512, [0.5; 2]);
        let image: PathBuf = folder.join(name);
        write_png(&image, &resize_crop(&small, whole, 512, 512)).expect("space on disk");
        Example { image, caption: format!("a photo of mug {name}"), repeats: 1 }
    };
    vec![example("00.png"), example("01.png")]
}

#[divan::bench(sample_count = 3, args = [false, true])]
fn encode_dataset(bencher: Bencher, cached: bool) {
    let folder = tempfile::tempdir().expect("space on disk");
    let (pipeline, examples) = (pipeline(), examples(folder.path()));
    let encode = |cache: Option<&EncodeCache>| {
        let options = EncodeOptions { cache, ..EncodeOptions::default() };
        EncodedDataset::new(&pipeline, &examples, &EncodeConfig::default(), options)
            .expect("valid images")
    };
    let cache = || EncodeCache::new(folder.path().join("cache"), &pipeline);
    if cached {
        encode(Some(&cache()));
        bencher.bench_local(|| encode(Some(&cache())));
    } else {
        bencher.bench_local(|| encode(None));
    }
}
