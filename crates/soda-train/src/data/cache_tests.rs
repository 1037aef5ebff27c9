//! Tests of the encoding cache with images and captions.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use soda_models::pipeline::Pipeline;

use crate::config::AugmentConfig;
use crate::data::cache::EncodeCache;
use crate::data::encode::{EncodeConfig, EncodeOptions};
use crate::data::encoded_dataset::EncodedDataset;
use crate::data::folder::Example;

fn toybox(name: &str) -> PathBuf {
    soda_testing::workspace_path("examples/toybox").join(name)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_full_cache_runs_no_encoder_and_changes_no_bit() {
    let (folder, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let image = |name: &str| data.path().join(name);
    for name in ["00.png", "01.png"] {
        std::fs::copy(toybox("subjects/castle_mug").join(name), image(name)).unwrap();
    }
    let example = |name, caption: &str| Example {
        image: image(name),
        caption: caption.to_owned(),
        repeats: 1,
    };
    let mut examples = vec![example("00.png", "a mug, red"), example("01.png", "a mug")];
    let pipeline = Pipeline::load(&toybox("base"), &Device::default()).unwrap();
    let augment = AugmentConfig { flip: true, tag_orders: 1, ..AugmentConfig::default() };
    let config = EncodeConfig { augment, ..EncodeConfig::default() };
    let encode = |examples: &[Example], cached: bool| {
        let cache = EncodeCache::new(folder.path().to_owned(), &pipeline);
        let options = EncodeOptions { cache: cached.then_some(&cache), ..EncodeOptions::default() };
        let data = EncodedDataset::new(&pipeline, examples, &config, options).unwrap();
        let rows = data.rows(0, &[0, 1], &mut soda_models::noise::generator(1, 1));
        let latents = data.latents(&rows, &mut soda_models::noise::generator(2, 1));
        let text = data.prompts(&rows).encoded().unwrap().text;
        ([latents.into_data()], text.into_data(), cache.counts())
    };
    let (latents, text, _) = encode(&examples, false);
    // Two images and their mirror images, two captions and the empty one.
    for counts in [(0, 7), (7, 0)] {
        assert_eq!(encode(&examples, true), (latents.clone(), text.clone(), counts));
    }
    assert_eq!(files(folder.path()).len(), 7);

    // Another caption, and another image under the same name.
    examples[1].caption = "a blue mug".to_owned();
    assert_eq!(encode(&examples, true).2, (6, 1));
    std::fs::copy(toybox("subjects/castle_mug/02.png"), image("00.png")).unwrap();
    let (other, _, counts) = encode(&examples, true);
    assert_eq!(counts, (5, 2));
    assert_eq!(other, encode(&examples, false).0);

    // Damage of any kind: a byte, the end, another entry's content.
    let all = files(folder.path());
    let before = encode(&examples, false);
    let swapped = std::fs::read(&all[0]).unwrap();
    for (number, path) in all.iter().enumerate() {
        let mut bytes = std::fs::read(path).unwrap();
        match number % 3 {
            0 => bytes.truncate(number * 100),
            1 => *bytes.last_mut().unwrap() ^= 1,
            _ => bytes.clone_from(&swapped),
        }
        std::fs::write(path, bytes).unwrap();
    }
    let (latents, text, counts) = encode(&examples, true);
    assert_eq!((&latents, &text, counts), (&before.0, &before.1, (0, 7)));
    assert_eq!(encode(&examples, true), (latents, text, (7, 0)));
}
