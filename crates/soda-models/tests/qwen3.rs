//! Qwen3 and its tokenizer against transformers and diffusers, and what their readers refuse.
//!
//! `qwen3.safetensors` and `qwen-tokens.json` are written by `docs/parity/qwen.py`. The other values are the
//! reference of `examples/toyflux`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Bool, Device, FloatDType, Int, Tensor, TensorData};
use common::{Fixture, check, check_tensor, write_weights};
use serde_json::{Value, json};
use soda_models::qwen3::{self, HiddenStates, Qwen3Config, Qwen3TextModel};
use soda_models::tokenizer::{QwenTokenizer, Thinking};
use soda_models::{ModelError, config};

/// Two f32 implementations of 27 layers sum in different orders. A wrong epsilon, a wrong order of the heads
/// or a mask that is off by one gives at least 1e-3.
const TOLERANCE: f32 = 2e-5;

/// Keys and shapes of a checkpoint.
type Keys = BTreeMap<String, Vec<usize>>;

fn toyflux(path: &str) -> PathBuf {
    soda_testing::workspace_path("examples/toyflux").join(path)
}

fn tokenizer() -> QwenTokenizer {
    QwenTokenizer::from_dir(&toyflux("base/tokenizer")).unwrap()
}

fn reference() -> Fixture {
    Fixture::open(&toyflux("reference/reference.safetensors"))
}

fn prompts() -> Vec<String> {
    let text = fs::read_to_string(toyflux("reference/reference.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    serde_json::from_value(json["prompts"].clone()).unwrap()
}

fn load(dir: &Path, states: &[i64]) -> Result<Qwen3TextModel, ModelError> {
    let config: Qwen3Config = config::read(&dir.join("config.json"))?;
    let states = config.hidden_states(states)?;
    qwen3::load(dir, &config, &states, FloatDType::F32, None, &Device::default())
}

fn message<T>(result: Result<T, ModelError>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn prompts_give_the_ids_and_masks_of_the_pipeline() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.max_length(), 64);
    let length = QwenTokenizer::PIPELINE_LENGTH;
    let batch = tokenizer.encode_batch(&prompts(), Thinking::Disabled, length, &Device::default());
    assert_eq!(batch.ids.dims(), [6, 64]);
    let ids: Vec<i64> = batch.ids.into_data().iter::<i64>().collect();
    assert_eq!(ids, reference().ints("input_ids"));
    let mask: Vec<i64> = batch.mask.int().into_data().iter::<i64>().collect();
    assert_eq!(mask, reference().ints("attention_mask"));
}

#[test]
fn hard_strings_have_transformers_ids() {
    let table: Vec<(String, bool, Vec<u32>, bool)> = serde_json::from_str(
        &fs::read_to_string(soda_testing::workspace_path(
            "crates/soda-models/tests/fixtures/qwen-tokens.json",
        ))
        .unwrap(),
    )
    .unwrap();
    assert!(table.len() >= 250);
    let tokenizer = tokenizer();
    for (text, thinking, ids, truncated) in table {
        let thinking = if thinking { Thinking::Enabled } else { Thinking::Disabled };
        let ours = tokenizer.encode(&text, thinking, 64);
        assert_eq!(ours.ids, ids, "{text:?}");
        assert_eq!(ours.truncated, truncated, "{text:?}");
    }
    assert!(tokenizer.single_token("sks").is_some());
    assert_eq!(tokenizer.single_token("castle"), None);
}

#[test]
fn prompts_give_the_embeds_of_the_pipeline() {
    let (device, reference) = (Device::default(), reference());
    let encoder = load(&toyflux("base/text_encoder"), HiddenStates::FLUX2_KLEIN).unwrap();
    assert_eq!(encoder.model.layers.len(), 27);
    assert!(encoder.model.norm.is_none());
    for (name, prompts) in
        [("prompt_embeds", prompts()), ("negative_prompt_embeds", vec![String::new()])]
    {
        let batch = tokenizer().encode_batch(&prompts, Thinking::Disabled, 512, &device);
        let embeds = encoder.forward(batch.ids, batch.mask);
        check_tensor(name, embeds, &reference, TOLERANCE);
    }
}

/// The inputs of the tiny model: ids and mask, `[3, 12]`.
fn inputs(fixture: &Fixture) -> (Tensor<2, Int>, Tensor<2, Bool>) {
    let device = Device::default();
    let ints = |name| TensorData::new(fixture.ints(name), [3, 12]);
    let mask = Tensor::<2, Int>::from_data(ints("mask"), &device);
    (Tensor::from_data(ints("ids"), &device), mask.equal_elem(1))
}

#[test]
fn every_hidden_state_matches_transformers() {
    let fixture = Fixture::read("qwen3");
    let dir = tempfile::tempdir().unwrap();
    fixture.write_model(dir.path());
    for (states, expected) in [
        (vec![0, 1, 2, 3, 4], vec![0, 1, 2, 3, 4]),
        (vec![-2], vec![3]),
        (vec![3, 1, 3], vec![3, 1, 3]),
        (vec![-1, -5], vec![4, 0]),
        (vec![0], vec![0]),
    ] {
        let encoder = load(dir.path(), &states).unwrap();
        assert_eq!(encoder.model.layers.len(), *expected.iter().max().unwrap());
        let (ids, mask) = inputs(&fixture);
        let ours = encoder.forward(ids, mask);
        assert_eq!(ours.dims(), [3, 12, 24 * states.len()]);
        for (place, state) in expected.into_iter().enumerate() {
            let ours = ours.clone().narrow(2, 24 * place, 24);
            check_tensor(&format!("state.{state}"), ours, &fixture, TOLERANCE);
        }
    }
}

/// A prompt's states depend neither on the length of the padding nor on what it consists of.
#[test]
fn padding_is_not_seen() {
    let fixture = Fixture::read("qwen3");
    let dir = tempfile::tempdir().unwrap();
    fixture.write_model(dir.path());
    let encoder = load(dir.path(), &[4]).unwrap();
    let (ids, mask) = inputs(&fixture);
    let all = encoder.forward(ids.clone(), mask.clone());
    // The second prompt has 7 tokens.
    let row = |x: &Tensor<3>, from: usize| {
        let x = x.clone().narrow(0, from, 1).narrow(1, 0, 7);
        x.into_data().iter::<f32>().collect::<Vec<_>>()
    };
    let alone = encoder
        .forward(ids.clone().narrow(0, 1, 1).narrow(1, 0, 7), mask.narrow(0, 1, 1).narrow(1, 0, 7));
    check("without padding", &row(&all, 1), &row(&alone, 0), TOLERANCE);
}

/// A file in two parts, with the head, and with the shorter keys of a `Qwen3Model`.
#[test]
fn checkpoints_of_every_layout_are_read() {
    let fixture = Fixture::read("qwen3");
    let (ids, mask) = inputs(&fixture);
    let expect = |dir: &Path| {
        let encoder = load(dir, &[2]).unwrap();
        check_tensor("state.2", encoder.forward(ids.clone(), mask.clone()), &fixture, TOLERANCE);
    };
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), fixture.metadata("config")).unwrap();
    let keys = fixture.keys();
    assert!(keys.contains_key("lm_head.weight"));
    let parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut map = BTreeMap::new();
    for (number, part) in parts.into_iter().enumerate() {
        let of_part = keys.clone().into_iter().enumerate().filter(|(i, _)| i % 2 == number);
        let of_part: BTreeMap<_, _> = of_part.map(|(_, entry)| entry).collect();
        map.extend(of_part.keys().map(|key| (key.clone(), part)));
        write_weights(&dir.path().join(part), &of_part);
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    expect(dir.path());

    // The same weights under the keys of a `Qwen3Model`.
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = fixture.write_model(dir.path());
    let bytes = fs::read(&file).unwrap();
    let whole = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let short = whole.tensors().into_iter().filter(|(key, _)| !key.starts_with("lm_head"));
    let short = short.map(|(key, view)| (key.replacen("model.", "", 1), view));
    safetensors::serialize_to_file(short, None, &file).unwrap();
    expect(dir.path());
}

#[test]
fn keys_that_are_missing_or_unknown_are_named() {
    let fixture = Fixture::read("qwen3");
    let dir = tempfile::tempdir().unwrap();
    let (_, file) = fixture.write_model(dir.path());
    let with = |change: &dyn Fn(&mut Keys)| {
        let mut keys = fixture.keys();
        change(&mut keys);
        write_weights(&file, &keys);
        load(dir.path(), &[2])
    };
    // Layers that are not read may be missing, and so may the head.
    assert!(
        with(&|keys| keys.retain(|key, _| !key.contains("layers.3") && key != "lm_head.weight"))
            .is_ok()
    );
    for (key, named) in [
        ("model.layers.1.self_attn.q_norm.weight", "lacks 1"),
        ("model.embed_tokens.weight", "lacks 1"),
    ] {
        let error = message(with(&|keys| drop(keys.remove(key))));
        assert!(error.contains(named) && error.contains(key), "{error}");
    }
    for key in [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.3.self_attn.q_proj.bias",
        "model.layers.4.mlp.up_proj.weight",
        "model.rotary_emb.inv_freq",
    ] {
        let error = message(with(&|keys| drop(keys.insert(key.to_owned(), vec![4]))));
        assert!(error.contains("no place for") && error.contains(key), "{error}");
    }
}

#[test]
fn settings_that_would_change_the_model_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let read = |text: &str, change: &[(&str, Value)]| {
        let mut config: Value = serde_json::from_str(text).unwrap();
        for (field, value) in change {
            config[*field] = value.clone();
        }
        fs::write(&path, config.to_string()).unwrap();
        config::read::<Qwen3Config>(&path)
    };
    let new = fs::read_to_string(toyflux("base/text_encoder/config.json")).unwrap();
    let old = Fixture::read("qwen3").metadata("config");
    assert_eq!(read(&new, &[]).unwrap().rope_parameters.rope_theta, 1e6);
    assert_eq!(read(&old, &[]).unwrap().rope_parameters.rope_theta, 5e3);
    let linear = json!({"rope_theta": 1e6, "rope_type": "linear", "factor": 2.0});
    for (field, value) in [
        ("attention_bias", json!(true)),
        ("head_dim", json!(15)),
        ("head_dim", json!(1_u64 << 40)),
        ("hidden_act", json!("gelu")),
        ("hidden_size", json!(0)),
        ("intermediate_size", json!(70_000)),
        ("layer_types", json!(["full_attention"])),
        ("layer_types", json!(vec!["sliding_attention"; 28])),
        ("max_position_embeddings", json!(0)),
        ("model_type", json!("qwen2")),
        ("num_attention_heads", json!(60_000)),
        ("num_experts", json!(8)),
        ("num_hidden_layers", json!(300)),
        ("num_key_value_heads", json!(3)),
        ("rms_norm_eps", json!(0.0)),
        ("rope_parameters", linear),
        ("rope_scaling", json!({"type": "yarn"})),
        ("use_sliding_window", json!(true)),
        ("vocab_size", json!(0)),
        ("vocab_size", json!(2_000_000)),
    ] {
        let error = message(read(&new, &[(field, value.clone())]));
        let named = if field == "num_attention_heads" { "head_dim" } else { field };
        assert!(error.contains(&format!("`{named}`")), "{field} {value}: {error}");
    }
    let error = message(read(&old, &[("rope_theta", json!(0.5))]));
    assert!(error.contains("rope_theta"), "{error}");

    let config = read(&new, &[]).unwrap();
    for states in [vec![29], vec![-30], vec![], vec![9, i64::MIN], vec![1; 300]] {
        let error = message(config.hidden_states(&states));
        assert!(error.contains("0 to 28"), "{error}");
    }
}

/// Copies the tokenizer of toyflux, changes a file of it and loads it.
fn changed(file: &str, change: &dyn Fn(&mut Value)) -> Result<QwenTokenizer, ModelError> {
    let dir = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(toyflux("base/tokenizer").join(name), dir.path().join(name)).unwrap();
    }
    let path = dir.path().join(file);
    let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(&path, json.to_string()).unwrap();
    QwenTokenizer::from_dir(dir.path())
}

#[test]
fn tokenizers_of_other_families_are_refused_by_name() {
    // The template is in the config too.
    assert!(changed("tokenizer.json", &|_| ()).is_ok());
    for (pointer, value, named) in [
        ("/normalizer", json!(null), "`normalizer`"),
        ("/normalizer", json!({"type": "Lowercase"}), "`normalizer`"),
        ("/pre_tokenizer", json!({"type": "Whitespace"}), "`pre_tokenizer`"),
        ("/pre_tokenizer/pretokenizers/0/pattern/Regex", json!(r"\p{L}+"), "`pre_tokenizer`"),
        ("/pre_tokenizer/pretokenizers/0/behavior", json!("Removed"), "`pre_tokenizer`"),
        ("/pre_tokenizer/pretokenizers/1/use_regex", json!(true), "`pre_tokenizer`"),
        ("/post_processor", json!({"type": "TemplateProcessing"}), "`post_processor`"),
        ("/model/end_of_word_suffix", json!("</w>"), "end_of_word_suffix"),
        ("/model/ignore_merges", json!(true), "ignore_merges"),
        ("/model/vocab", json!({"a": 0}), "model.vocab"),
        ("/added_tokens", json!([]), "added_tokens_decoder"),
    ] {
        let error = message(changed("tokenizer.json", &|json| {
            if pointer == "/model/vocab" {
                json["model"]["merges"] = json!([]);
            }
            *json.pointer_mut(pointer).unwrap() = value.clone();
        }));
        assert!(error.contains(named), "{pointer}: {error}");
    }
    for (field, value, named) in [
        ("padding_side", json!("left"), "`padding_side`"),
        ("split_special_tokens", json!(true), "`split_special_tokens`"),
        ("pad_token", json!("<pad>"), "<pad>"),
        ("model_max_length", json!(12), "model_max_length"),
        ("model_max_length", json!(-1), "model_max_length"),
        ("chat_template", json!(null), "chat_template"),
        ("chat_template", json!("{{ messages[0].content }}"), "not that of Qwen3"),
    ] {
        let error = message(changed("tokenizer_config.json", &|json| json[field] = value.clone()));
        assert!(error.contains(named), "{field}: {error}");
    }
    let long = changed("tokenizer_config.json", &|json| json["model_max_length"] = json!(1e30));
    assert_eq!(long.unwrap().max_length(), 65_536);

    let config: Qwen3Config = config::read(&toyflux("base/text_encoder/config.json")).unwrap();
    assert!(tokenizer().check_fits(Path::new("x"), &config).is_ok());
    let small = Qwen3Config { vocab_size: 575, ..config };
    let error = message(tokenizer().check_fits(Path::new("x"), &small));
    assert!(error.contains("575"), "{error}");
}
