//! Adapter files: writing and reading keeps everything, and a damaged file is an error that names the damage.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../../soda-adapters/tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;

use burn::tensor::TensorData;
use common::{Net, Networks, disturb, plan, recipe, targets};
use serde_json::json;
use soda_adapters::{AdapterState, METHOD_PRESETS, Method as _, MethodConfig};
use soda_models::pipeline::PromptEncoding;
use soda_pipeline::{AdapterFile, Component, FormatError, Header, PipelineError};

fn header() -> Header {
    let prompt_encoding = PromptEncoding {
        text_encoder_out_layers: Some(vec![10, 20, 30]),
        max_sequence_length: Some(77),
    };
    Header {
        prompt_encoding,
        base: "net".to_owned(),
        trigger: vec!["sks mug".to_owned()],
        training: json!({ "steps": 3 }),
        schedule: json!({ "prediction_type": "v_prediction" }),
    }
}

fn trained(method: &MethodConfig, net: &Net) -> AdapterState {
    let adapted = disturb(method, plan(method, net).attach(net.clone()));
    AdapterState::capture(recipe(method, net), &adapted)
}

#[test]
fn a_file_has_everything_of_every_method() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let net = Net::new();
    for (name, method) in METHOD_PRESETS {
        let state = trained(&method(), &net);
        let mut written = AdapterFile::new(header()).with_adapter(Component::Unet, state.clone());
        let vectors = TensorData::from([[1f32, 2.0, 3.0]]);
        written.embeddings.insert("<mug>".to_owned(), [(Component::TextEncoder, vectors)].into());
        written.write(&path).unwrap();

        let read: AdapterFile = AdapterFile::read(&path).unwrap();
        assert_eq!(read.header, header(), "{name}");
        assert_eq!(read.embeddings, written.embeddings, "{name}");
        assert_eq!(read.path.as_deref(), Some(path.as_path()));
        let found = &read.adapters[&Component::Unet];
        assert_eq!((&found.recipe, &found.tensors), (&state.recipe, &state.tensors), "{name}");
        let plan = read.plan(&Networks { unet: net.clone() }).unwrap();
        let paths = ["unet.conv.weight", "unet.to_k.weight", "unet.to_q.weight"];
        // A mask by the timestep has no convolutions.
        let paths = &paths[usize::from(method().depends_on_timestep())..];
        assert_eq!(plan.paths().collect::<Vec<_>>(), paths, "{name}");
        assert!(read.summary().ends_with("the word <mug> (1 vector)"), "{}", read.summary());
    }
}

#[test]
fn a_network_that_the_base_lacks_is_named() {
    let net = Net::new();
    let state = trained(&MethodConfig::default(), &net);
    let file = AdapterFile::new(header()).with_adapter(Component::TextEncoder2, state);
    let error = file.plan(&Networks { unet: net }).unwrap_err().to_string();
    assert!(error.contains("for a second text encoder too"), "{error}");
}

#[test]
fn a_damaged_file_is_an_error_that_names_the_damage() {
    let net = Net::new();
    let method = MethodConfig::default();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let adapted = method.plan(&targets(), &net).unwrap().attach(net.clone());
    let state = AdapterState::capture(recipe(&method, &net), &adapted);
    let file = AdapterFile::new(header()).with_adapter(Component::Unet, state);
    file.write(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let read = || <AdapterFile>::read(&path);
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let factors = metadata.metadata().as_ref().unwrap()["factors"].clone();
    let factors: BTreeMap<usize, Vec<usize>> = serde_json::from_str(&factors).unwrap();
    assert!(factors.iter().all(|(width, sizes)| sizes.iter().product::<usize>() == *width));
    assert!(factors.contains_key(&12), "{factors:?}");
    for length in [0, 7, 8, 100, bytes.len() - 1] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(
            matches!(read(), Err(PipelineError::Format(FormatError::Malformed { .. }))),
            "{length}"
        );
    }
    let replace = |from: &str, to: &str| {
        let mut changed = bytes.clone();
        let at = changed.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        changed[at..at + from.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, changed).unwrap();
        read()
    };
    let format_error = |from: &str, to: &str| match replace(from, to).unwrap_err() {
        PipelineError::Format(error) => error,
        error => panic!("{error}"),
    };
    assert!(matches!(
        format_error("\"version\":\"3\"", "\"version\":\"9\""),
        FormatError::Version { .. }
    ));
    assert!(matches!(
        format_error("soda-adapter", "dora-adapter"),
        FormatError::NotAnAdapter { .. }
    ));
    let signs = format_error("of U positive", "of V positive");
    assert!(matches!(signs, FormatError::SignRule { .. }) && signs.to_string().contains("of V"));
    let other = format_error(r#"\"name\":\"soda\""#, r#"\"name\":\"sods\""#).to_string();
    assert!(other.contains("sods") && other.contains("lora"), "{other}");
    let stray = replace(r#""unet.conv.weight"#, r#""yeti.conv.weight"#);
    let stray = stray.unwrap_err().to_string();
    assert!(
        stray.contains("adapter.safetensors") && stray.contains("yeti.conv.weight."),
        "{stray}"
    );
    let missing = <AdapterFile>::read(&folder.path().join("none")).unwrap_err().to_string();
    assert!(missing.contains("cannot read adapter file"), "{missing}");
    let nowhere = folder.path().join("no/such/folder/a.safetensors");
    assert!(matches!(
        file.write(&nowhere),
        Err(PipelineError::Format(FormatError::Io { action: "write", .. }))
    ));
}
