//! Arbitrary bytes for every loader: the result is a value or an error, never a panic.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;

use burn::tensor::{Device, FloatDType};
use proptest::prelude::*;
use soda_models::clip::ClipTextConfig;
use soda_models::config;
use soda_models::scheduler::SchedulerConfig;
use soda_models::tokenizer::Tokenizer;
use soda_models::unet::UnetConfig;
use soda_models::vae::VaeConfig;
use soda_models::weights::Checkpoint;

const UNET: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/toybox/base/unet/config.json");

/// A small safetensors file with two tensors, to be damaged.
fn small() -> Vec<u8> {
    let data: Vec<u8> = (0..24).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let view = |shape: Vec<usize>, bytes| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, bytes).unwrap()
    };
    let tensors = [("a.weight", view(vec![4, 4], &data[..64])), ("b", view(vec![8], &data[64..]))];
    safetensors::serialize(tensors, None).unwrap()
}

#[derive(Clone, Debug)]
enum Damage {
    Set(usize, u8),
    Cut(usize),
    Insert(usize, Vec<u8>),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let at = 0usize..400;
    let one = prop_oneof![
        4 => (at.clone(), any::<u8>()).prop_map(|(at, byte)| Damage::Set(at, byte)),
        1 => at.clone().prop_map(Damage::Cut),
        1 => (at, prop::collection::vec(any::<u8>(), 1..20)).prop_map(|(at, b)| Damage::Insert(at, b)),
    ];
    prop::collection::vec(one, 0..6)
}

fn damaged(mut bytes: Vec<u8>, damage: &[Damage]) -> Vec<u8> {
    for damage in damage {
        let place = |at: usize| at % (bytes.len() + 1);
        match damage {
            Damage::Set(at, byte) => {
                let at = place(*at);
                if let Some(old) = bytes.get_mut(at) {
                    *old = *byte;
                }
            }
            Damage::Cut(at) => {
                let at = place(*at);
                bytes.truncate(at);
            }
            Damage::Insert(at, more) => {
                let at = place(*at);
                bytes.splice(at..at, more.iter().copied());
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// No bytes in a weight file, a config or a tokenizer make a loader panic.
    #[test]
    fn no_bytes_make_a_loader_panic(damage in damage(), noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        fs::write(&path, damaged(small(), &damage)).unwrap();
        if let Ok(file) = Checkpoint::open(&path) {
            // The tensors belong to no network, so that keys or shapes are refused.
            let clip = ClipTextConfig {
                vocab_size: 4, hidden_size: 4, intermediate_size: 4, num_hidden_layers: 1,
                num_attention_heads: 1, max_position_embeddings: 4, ..Default::default()
            };
            prop_assert!(file.load_into(clip.init(&Device::default()), FloatDType::F32).is_err());
        }
        fs::write(&path, &noise).unwrap();
        prop_assert!(Checkpoint::open(&path).is_err());

        let unet = fs::read(UNET).unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, damaged(unet, &damage)).unwrap();
        let _: Result<UnetConfig, _> = config::read(&path);
        let _: Result<VaeConfig, _> = config::read(&path);
        let _: Result<SchedulerConfig, _> = config::read(&path);
        fs::write(dir.path().join("vocab.json"), &noise).unwrap();
        fs::write(dir.path().join("merges.txt"), &noise).unwrap();
        prop_assert!(Tokenizer::from_dir(dir.path()).is_err());
    }
}
