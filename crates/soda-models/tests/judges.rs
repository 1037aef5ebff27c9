//! Tokenizer, judges and resampling against transformers and Pillow.
//!
//! The fixture is written by `docs/parity/judges.py`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor, TensorData};
use image::RgbImage;
use safetensors::{Dtype, SafeTensors};
use soda_models::clip::{self, ClipTextConfig};
use soda_models::image::{Filter, read_rgb, resize};
use soda_models::metrics::{Judges, ReferenceFeatures};
use soda_models::tokenizer::Tokenizer;
use soda_models::{config, weights};

/// Two f32 implementations sum in different orders, and each of a dozen layers rounds by about 1e-7 of its
/// largest value. A wrong epsilon, activation function or pooling position gives at least 1e-3.
const TOLERANCE: f32 = 2e-5;

/// A cosine averages the errors of its features and is at most 1.
const SCORE_TOLERANCE: f32 = 1e-5;

fn toybox() -> PathBuf {
    soda_testing::workspace_path("examples/toybox")
}

/// A reference file in memory.
struct Fixture(Vec<u8>);

impl Fixture {
    fn read(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap())
    }

    fn judges() -> Self {
        Self::read(&soda_testing::workspace_path(
            "crates/soda-models/tests/fixtures/judges.safetensors",
        ))
    }

    /// The shape and the bytes of a tensor.
    fn raw(&self, name: &str, dtype: Dtype) -> (Vec<usize>, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), dtype, "{name}");
        (view.shape().to_vec(), view.data().to_vec())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let (_, bytes) = self.raw(name, Dtype::F32);
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn ints(&self, name: &str) -> Vec<u32> {
        let (_, bytes) = self.raw(name, Dtype::I32);
        bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    fn image(&self, name: &str) -> RgbImage {
        let (shape, bytes) = self.raw(name, Dtype::U8);
        RgbImage::from_raw(shape[1] as u32, shape[0] as u32, bytes).unwrap()
    }

    fn strings(&self, name: &str) -> Vec<String> {
        let (_, metadata) = SafeTensors::read_metadata(&self.0).unwrap();
        serde_json::from_str(&metadata.metadata().as_ref().unwrap()[name]).unwrap()
    }
}

/// Asserts that `max |ours - theirs| <= tolerance * max |theirs|`. Fails on NaN.
#[track_caller]
fn check(what: &str, ours: &[f32], theirs: &[f32], tolerance: f32) {
    soda_testing::assert_close(what, ours, theirs, tolerance.into());
}

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn judges() -> Judges {
    Judges::load(&toybox().join("eval"), &Device::default()).unwrap()
}

fn castle_mug(folder: &str, count: usize) -> Vec<RgbImage> {
    let dir = toybox().join("subjects/castle_mug").join(folder);
    (0..count).map(|i| read_rgb(&dir.join(format!("{i:02}.png"))).unwrap()).collect()
}

fn check_ids(tokenizer: &Tokenizer) {
    let fixture = Fixture::judges();
    let (ids, truncated) = (fixture.ints("ids"), fixture.ints("truncated"));
    let strings = fixture.strings("strings");
    assert_eq!(ids.len(), strings.len() * 77);
    for (i, string) in strings.iter().enumerate() {
        let ours = tokenizer.encode(string);
        assert_eq!(ours.ids, ids[i * 77..(i + 1) * 77], "{string:?}");
        assert_eq!(ours.truncated, truncated[i] == 1, "{string:?}");
    }
}

#[test]
fn token_ids_match_transformers() {
    check_ids(&Tokenizer::from_dir(&toybox().join("base/tokenizer")).unwrap());
    check_ids(&Tokenizer::from_dir(&toybox().join("eval/clip")).unwrap());
}

#[test]
fn token_ids_match_from_vocabulary_and_merges() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"];
    for name in files {
        std::fs::copy(toybox().join("base/tokenizer").join(name), dir.path().join(name)).unwrap();
    }
    // transformers takes this from tokenizer.json: the start token is matched in any case.
    let start = r#"{"bos_token": {"content": "<|startoftext|>", "normalized": true}}"#;
    std::fs::write(dir.path().join("special_tokens_map.json"), start).unwrap();
    check_ids(&Tokenizer::from_dir(dir.path()).unwrap());
}

#[test]
fn single_tokens_are_words_of_the_vocabulary() {
    let tokenizer = Tokenizer::from_dir(&toybox().join("base/tokenizer")).unwrap();
    for word in ["sks", "zwx", "mug", "SKS"] {
        assert!(tokenizer.single_token(word).is_some(), "{word}");
    }
    for word in ["", "two words", "sksy", "\u{1f600}", "<|endoftext|>"] {
        assert_eq!(tokenizer.single_token(word), None, "{word}");
    }
}

#[test]
fn tokenizer_errors_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let fails = |dir: &Path| Tokenizer::from_dir(dir).unwrap_err().to_string();
    let missing = fails(&dir.path().join("nowhere"));
    assert!(missing.contains("nowhere") && missing.contains("does not exist"), "{missing}");
    let empty = fails(dir.path());
    assert!(empty.contains("vocab.json"), "{empty}");
    std::fs::write(dir.path().join("tokenizer.json"), "{\"version\":").unwrap();
    let broken = fails(dir.path());
    assert!(broken.contains("tokenizer.json"), "{broken}");
}

#[test]
fn judges_that_do_not_fit_together_are_refused() {
    // The columns are: file, text, replacement, word of the message.
    let cases = [
        (
            "clip/preprocessor_config.json",
            "\"shortest_edge\": 64",
            "\"shortest_edge\": 32",
            "crop_size",
        ),
        (
            "clip/preprocessor_config.json",
            "\"do_center_crop\": true",
            "\"do_center_crop\": false",
            "do_center_crop",
        ),
        ("dino/preprocessor_config.json", "\"width\": 64", "\"width\": 96", "96x64"),
        ("dino/preprocessor_config.json", "\"resample\": 2", "\"resample\": 0", "resample"),
        (
            "dino/preprocessor_config.json",
            "\"do_resize\": true",
            "\"do_resize\": false",
            "do_resize",
        ),
        ("clip/config.json", "\"vocab_size\": 787", "\"vocab_size\": 700", "700"),
        ("clip/config.json", "\"quick_gelu\"", "\"relu\"", "relu"),
        ("clip/config.json", "\"num_channels\"", "\"num_chanels\"", "num_chanels"),
        (
            "dino/config.json",
            "\"num_attention_heads\": 5",
            "\"num_attention_heads\": 7",
            "num_attention_heads",
        ),
        ("dino/config.json", "\"qkv_bias\": true", "\"qkv_bias\": false", "query.bias"),
        (
            "clip/tokenizer_config.json",
            "\"model_max_length\": 77",
            "\"model_max_length\": 78",
            "78",
        ),
    ];
    for (file, right, wrong, named) in cases {
        let dir = tempfile::tempdir().unwrap();
        for part in ["clip", "dino"] {
            std::fs::create_dir(dir.path().join(part)).unwrap();
            for entry in std::fs::read_dir(toybox().join("eval").join(part)).unwrap() {
                let from = entry.unwrap().path();
                std::fs::copy(&from, dir.path().join(part).join(from.file_name().unwrap()))
                    .unwrap();
            }
        }
        let text = std::fs::read_to_string(dir.path().join(file)).unwrap();
        assert!(text.contains(right), "{file} does not say {right}");
        std::fs::write(dir.path().join(file), text.replace(right, wrong)).unwrap();
        let message = Judges::load(dir.path(), &Device::default()).unwrap_err().to_string();
        assert!(
            message.contains(named) && message.contains(dir.path().to_str().unwrap()),
            "{message}"
        );
    }
}

#[test]
fn text_encoder_matches_transformers() {
    let device = Device::default();
    let dir = toybox().join("base/text_encoder");
    let config: ClipTextConfig = config::read(&dir.join("config.json")).unwrap();
    let file = dir.join("model.safetensors");
    let encoder =
        weights::load_renamed(config.init(&device), &file, clip::TEXT_KEY_RENAMES).unwrap();

    let reference = Fixture::read(&toybox().join("reference/reference.safetensors"));
    let (shape, bytes) = reference.raw("input_ids", Dtype::I64);
    let ids: Vec<i64> =
        bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, shape), &device);
    let hidden = values(encoder.forward(ids));
    check("text_hidden", &hidden, &reference.floats("text_hidden"), TOLERANCE);
}

#[test]
fn the_end_token_is_found_by_both_rules() {
    let device = Device::default();
    // The last id is the end token, which is also the padding.
    let ids = Tensor::<2, Int>::from_ints([[8, 1, 9, 9, 9], [8, 1, 2, 3, 9]], &device);
    let config = |eos| ClipTextConfig {
        vocab_size: 10,
        hidden_size: 8,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        eos_token_id: eos,
        ..ClipTextConfig::default()
    };
    let old = config(2).init(&device);
    let mut new = old.clone();
    new.text_model.eos_token = 9;
    let hidden = old.forward(ids.clone());
    let expected =
        Tensor::cat(vec![hidden.clone().slice([0..1, 2..3]), hidden.slice([1..2, 4..5])], 0);
    let expected = values(expected);
    assert_eq!(values(old.text_model.pooled(ids.clone())), expected);
    assert_eq!(values(new.text_model.pooled(ids)), expected);
}

#[test]
fn features_match_transformers() {
    let (judges, fixture) = (judges(), Fixture::judges());
    let truth = castle_mug("truth", 10);
    let text = judges.clip_text_features(&fixture.strings("prompts")).concat();
    check("text_features", &text, &fixture.floats("text_features"), TOLERANCE);
    let image = judges.clip_image_features(&truth).concat();
    check("image_features", &image, &fixture.floats("image_features"), TOLERANCE);
    let dino = judges.dino_features(&truth).concat();
    check("dino_features", &dino, &fixture.floats("dino_features"), TOLERANCE);
    let pixels = judges.dino_processor.preprocess(&truth[..1], &judges.device);
    let hidden = values(judges.dino.forward(pixels));
    check("dino_hidden", &hidden, &fixture.floats("dino_hidden"), TOLERANCE);
}

#[test]
fn scores_match_transformers() {
    let (judges, fixture) = (judges(), Fixture::judges());
    let (truth, subject) = (castle_mug("truth", 10), castle_mug("", 5));
    let score = |name: &str, ours: Vec<f32>| {
        check(name, &ours, &fixture.floats(name), SCORE_TOLERANCE);
    };
    score("clip_t", judges.clip_t(&truth, &fixture.strings("prompts")).unwrap());
    let mut references = ReferenceFeatures::default();
    // In two parts, as those of a large data set.
    let (first, others) = subject.split_at(1);
    references.extend(&judges, first);
    references.extend(&judges, others);
    score("clip_i", judges.clip_i(&truth, &references).unwrap());
    score("clip_i_pairs", judges.clip_i_pairs(&truth[..5], &subject).unwrap());
    score("dino", judges.dino(&truth, &references).unwrap());
    score("dino_pairs", judges.dino_pairs(&truth[..5], &subject).unwrap());
    assert_eq!(
        judges.dino(&truth, &references).unwrap(),
        judges.dino(&truth, &references).unwrap()
    );
}

#[test]
fn scores_of_unequal_lists_are_refused() {
    let judges = judges();
    let truth = castle_mug("truth", 2);
    let (mut references, none) = (ReferenceFeatures::default(), ReferenceFeatures::default());
    references.extend(&judges, &truth);
    assert!(judges.clip_t(&truth, &["one"]).is_err());
    assert!(judges.clip_i_pairs(&truth, &truth[..1]).is_err());
    assert!(judges.dino_pairs(&truth, &[]).is_err());
    assert!(judges.dino(&truth, &none).is_err());
    assert!(judges.clip_i(&truth, &none).is_err());
    assert!(judges.dino(&[], &references).unwrap().is_empty());
}

#[test]
fn preprocessing_matches_transformers() {
    let (judges, fixture) = (judges(), Fixture::judges());
    let photo = fixture.image("photo");
    let photos = [photo.clone(), image::imageops::rotate270(&photo)];
    // The resized bytes are equal, so that only the normalisation rounds.
    let pixels = |name: &str, ours| check(name, &values(ours), &fixture.floats(name), 1e-6);
    pixels("photo.clip_pixels", judges.clip_processor.preprocess(&photos[..1], &judges.device));
    pixels("photo.dino_pixels", judges.dino_processor.preprocess(&photos[..1], &judges.device));
    let clip = judges.clip_image_features(&photos).concat();
    check("photo.clip", &clip, &fixture.floats("photo.clip"), TOLERANCE);
    let dino = judges.dino_features(&photos).concat();
    check("photo.dino", &dino, &fixture.floats("photo.dino"), TOLERANCE);
}

#[test]
fn resampling_matches_pillow() {
    let fixture = Fixture::judges();
    let photo = fixture.image("photo");
    let file = SafeTensors::deserialize(&fixture.0).unwrap();
    let mut compared = 0;
    for name in file.names().into_iter().filter(|name| name.starts_with("resize.")) {
        let filter = match name.split('.').nth(1).unwrap() {
            "lanczos" => Filter::Lanczos,
            "bilinear" => Filter::Bilinear,
            _ => Filter::Bicubic,
        };
        let theirs = fixture.image(name);
        let ours = resize(&photo, theirs.width(), theirs.height(), filter);
        // There is no tolerance, since the arithmetic is in fixed point.
        assert_eq!(ours.as_raw(), theirs.as_raw(), "{name}");
        compared += 1;
    }
    assert_eq!(compared, 14);
    let tall = resize(&image::imageops::rotate270(&photo), 64, 64, Filter::Bilinear);
    assert_eq!(tall, fixture.image("tall.bilinear.64x64"));
}
