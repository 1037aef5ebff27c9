//! New tokens against diffusers' Textual Inversion, and through a saved directory.
//!
//! The fixture is written by `docs/parity/words.py`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};

use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};
use safetensors::SafeTensors;
use soda_models::pipeline::{ClipEncoders, Pipeline, TokenEmbedding};

/// The tolerance of the text encoder without new tokens (`judges.rs`).
const TOLERANCE: f64 = 2e-5;

fn base() -> PathBuf {
    soda_testing::workspace_path("examples/toybox/base")
}

fn read(path: &Path) -> (Vec<u8>, Vec<String>) {
    let bytes = std::fs::read(path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let prompts = &metadata.metadata().clone().unwrap()["prompts"];
    let prompts = serde_json::from_str(prompts).unwrap();
    (bytes, prompts)
}

struct Fixture {
    bytes: Vec<u8>,
    prompts: Vec<String>,
}

impl Fixture {
    fn read() -> Self {
        let path =
            soda_testing::workspace_path("crates/soda-models/tests/fixtures/words.safetensors");
        let (bytes, prompts) = read(&path);
        Self { bytes, prompts }
    }

    fn words(&self, name: &str) -> (Vec<usize>, Vec<[u8; 4]>) {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).unwrap();
        let (words, _) = view.data().as_chunks();
        (view.shape().to_vec(), words.to_vec())
    }

    fn ids(&self) -> Vec<u32> {
        self.words("ids").1.into_iter().map(u32::from_le_bytes).collect()
    }

    fn floats(&self, name: &str) -> TensorData {
        let (shape, words) = self.words(name);
        TensorData::new(words.into_iter().map(f32::from_le_bytes).collect::<Vec<_>>(), shape)
    }

    /// Loads the base model and adds the fixture's tokens.
    fn pipeline(&self, device: &Device) -> Pipeline {
        let mut pipeline = Pipeline::load(&base(), device).unwrap();
        for text in ["<mug>", "zorb"] {
            let first = Tensor::from_data(self.floats(&format!("vectors.{text}")), device);
            pipeline
                .add_token_embedding(&TokenEmbedding {
                    token: text.to_owned(),
                    first,
                    second: None,
                })
                .unwrap();
        }
        pipeline
    }

    /// Compares token ids and hidden states of the prompts with diffusers'.
    #[track_caller]
    fn check(&self, pipeline: &Pipeline) {
        let ids = pipeline.tokenize(&self.prompts).first;
        let found: Vec<u32> = ids.clone().into_data().iter::<u32>().collect();
        assert_eq!(found, self.ids());
        let expected = self.floats("states");
        let kept = expected.shape()[1];
        let expected = Tensor::<3>::from_data(expected, &pipeline.device);
        let states = clip(pipeline).text_encoder.forward(ids).narrow(1, 0, kept);
        let error = soda_testing::max_abs((states - expected).into_data().iter::<f32>());
        assert!(error < TOLERANCE, "{error:e}");
    }
}

fn clip(pipeline: &Pipeline) -> &ClipEncoders {
    pipeline.text.clip().unwrap()
}

#[test]
fn prompts_with_new_tokens_match_diffusers() {
    let fixture = Fixture::read();
    fixture.check(&fixture.pipeline(&Device::default()));
}

/// A saved directory has the new tokens in its vocabulary, and loading it needs no special care.
#[test]
fn a_saved_directory_has_the_new_tokens() {
    let fixture = Fixture::read();
    let device = Device::default();
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("model");
    fixture.pipeline(&device).save(&saved).unwrap();
    let again = Pipeline::load(&saved, &device).unwrap();
    assert!(clip(&again).text_encoder.text_model.embeddings.new_tokens.is_none());
    fixture.check(&again);
    // A further token is added to the reloaded model and saved.
    let mut third = again;
    let word = third.init_token_embedding("<cup>", "a <mug>", 4, (0, 0)).unwrap();
    third.add_token_embedding(&word).unwrap();
    let saved = folder.path().join("again");
    third.save(&saved).unwrap();
    let third = Pipeline::load(&saved, &device).unwrap();
    fixture.check(&third);
    // In a prompt the new token equals its initializer.
    let ids = |text: &str| -> Tensor<2, Int> { third.tokenize(&[text]).first };
    let states =
        [ids("two <cup>"), ids("two a <mug>")].map(|ids| clip(&third).text_encoder.forward(ids));
    let [one, other] = states.map(|states| states.into_data());
    one.assert_approx_eq::<f32>(&other, burn::tensor::Tolerance::absolute(1e-6));
}

/// Programs that read single files have a vocabulary of their own.
#[test]
fn a_single_file_cannot_hold_new_tokens() {
    let fixture = Fixture::read();
    let device = Device::default();
    let folder = tempfile::tempdir().unwrap();
    let (single, saved) = (folder.path().join("single.st"), folder.path().join("model"));
    let pipeline = fixture.pipeline(&device);
    pipeline.save(&saved).unwrap();
    for pipeline in [pipeline, Pipeline::load(&saved, &device).unwrap()] {
        let message = pipeline.save_single_file(&single, FloatDType::F32).unwrap_err().to_string();
        assert!(
            message.contains("`<mug>`") && message.contains("--format embeddings"),
            "{message}"
        );
    }
    assert!(!single.exists());
}

/// The pooled output is read at the end token, although new tokens have larger ids.
#[test]
fn the_pooled_output_is_read_at_the_end_token() {
    let fixture = Fixture::read();
    let mut pipeline = fixture.pipeline(&Device::default());
    let ids = pipeline.tokenize(&fixture.prompts).first;
    let known = clip(&pipeline).text_encoder.text_model.pooled(ids.clone());
    // The end token of configs from before transformers 4.31.
    pipeline.text.clip_mut().unwrap().text_encoder.text_model.eos_token = 2;
    let unreliable = clip(&pipeline).text_encoder.text_model.pooled(ids);
    assert_eq!(known.into_data(), unreliable.into_data());
}

#[test]
fn tokens_match_in_any_case_and_as_whole_words() {
    let fixture = Fixture::read();
    let pipeline = fixture.pipeline(&Device::default());
    let ids = |text: &str| clip(&pipeline).tokenizer.encode(text).ids;
    assert_eq!(ids("A <MUG> and a Zorb"), ids("a <mug> and a zorb"));
    let (words, parts) = (
        clip(&pipeline).tokenizer.encode_without_special_tokens("zorb"),
        clip(&pipeline).tokenizer.encode_without_special_tokens("zorbs"),
    );
    assert_eq!(words.len(), 1);
    assert!(!parts.contains(&words[0]));
}

#[test]
fn invalid_tokens_are_refused_by_name() {
    let fixture = Fixture::read();
    let device = Device::default();
    let mut pipeline = fixture.pipeline(&device);
    let mut check = |text: &str, shape: [usize; 2], second: bool, needle: &str| {
        let vectors = Tensor::<2>::zeros(shape, &device);
        let second = second.then(|| vectors.clone());
        let word = TokenEmbedding { token: text.to_owned(), first: vectors, second };
        let before = clip(&pipeline).tokenizer.vocab_size();
        let message = pipeline.add_token_embedding(&word).unwrap_err().to_string();
        assert!(message.contains(needle), "{message}");
        assert_eq!(clip(&pipeline).tokenizer.vocab_size(), before);
    };
    check("", [1, 160], false, "one word");
    check("a mug", [1, 160], false, "one word");
    check("<mug>", [1, 160], false, "has <mug> as a token");
    check("mug</w>", [1, 160], false, "as a token");
    check("<cup>", [1, 159], false, "159 numbers where the text encoder's have 160");
    check("<cup>", [0, 160], false, "no vectors");
    check("<cup>", [1, 160], true, "two text encoders");
}

/// Without an initializer the embedding is noise of the table's root mean square, and the seed decides it.
#[test]
fn without_an_initializer_the_embedding_is_noise() {
    let pipeline = Pipeline::load(&base(), &Device::default()).unwrap();
    let of = |seed| pipeline.init_token_embedding("<x>", "", 8, (seed, 1)).unwrap().first;
    let size = |x: Tensor<2>| x.square().mean().sqrt().into_scalar::<f32>();
    let table = clip(&pipeline).text_encoder.text_model.embeddings.token_embedding.weight.val();
    assert_eq!(of(1).into_data(), of(1).into_data());
    assert_ne!(of(1).into_data(), of(2).into_data());
    assert!((size(of(1)) / size(table) - 1.0).abs() < 0.1);
}
