//! Downloading by name, from a small server on this machine.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod server;

use std::collections::BTreeMap;
use std::path::Path;

use server::{TOKEN, nobody, serve, toybox};
use soda_hub::{Hub, HubError, is_name};

fn quiet(hub: &Hub, name: &str) -> Result<std::path::PathBuf, HubError> {
    hub.fetch(name, None, &mut |_, _, _| {})
}

fn hub(endpoint: &str, cache: &Path) -> Hub {
    Hub { endpoint: endpoint.to_owned(), token: None, cache: cache.join("hub"), offline: false }
}

#[test]
fn a_name_is_downloaded_once() {
    let server = serve(toybox());
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub { token: Some("secret".to_owned()), ..hub(&server.endpoint, dir.path()) };
    let mut told = BTreeMap::new();
    let model = hub
        .fetch("toys/base", None, &mut |file, done, total| {
            told.insert(file.to_owned(), (done, total));
        })
        .unwrap();
    // Bit for bit, what the server has: and the one variant of the autoencoder that there is.
    for file in told.keys() {
        assert!(std::fs::read(model.join(file)).unwrap() == toybox()[file], "{file}");
    }
    for file in ["model_index.json", "unet/diffusion_pytorch_model.safetensors"] {
        assert!(told.contains_key(file), "{file}");
    }
    assert!(told.contains_key("vae/diffusion_pytorch_model.fp16.safetensors"));
    assert!(told.values().all(|(done, total)| done == total));

    let asked = server.log.lock().unwrap().clone();
    assert!(asked.iter().all(|(_, token)| token.as_deref() == Some(TOKEN)));
    for never in ["ckpt", ".bin", "evil"] {
        assert!(!asked.iter().any(|(path, _)| path.contains(never)), "{never}");
    }
    // Again: the list, and nothing of it. Offline, or where nobody answers: from the cache.
    assert_eq!(quiet(&hub, "toys/base").unwrap(), model);
    assert_eq!(server.log.lock().unwrap().len(), asked.len() + 1);
    let offline = Hub { offline: true, ..hub.clone() };
    assert_eq!(quiet(&offline, "toys/base").unwrap(), model);
    let alone = Hub { endpoint: nobody(), ..hub };
    assert_eq!(quiet(&alone, "toys/base").unwrap(), model);
    assert_eq!(server.log.lock().unwrap().len(), asked.len() + 1);
}

#[test]
fn a_transfer_that_broke_off_goes_on() {
    let server = serve(toybox());
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(&server.endpoint, dir.path());
    let model = quiet(&hub, "toys/base").unwrap();
    // As if the process had died between two files: a file less, and no mark of the branch.
    let file = model.join("unet/diffusion_pytorch_model.safetensors");
    std::fs::remove_file(&file).unwrap();
    std::fs::remove_file(dir.path().join("hub/models--toys--base/refs/main")).unwrap();
    assert!(matches!(
        quiet(&Hub { endpoint: nobody(), ..hub.clone() }, "toys/base"),
        Err(HubError::Unreachable { .. })
    ));
    let before = server.log.lock().unwrap().len();
    assert_eq!(quiet(&hub, "toys/base").unwrap(), model);
    assert!(std::fs::read(&file).unwrap() == toybox()["unet/diffusion_pytorch_model.safetensors"]);
    let asked = server.log.lock().unwrap()[before..].to_vec();
    let others = |path: &str| !path.contains("unet/diffusion") && !path.starts_with("/api/");
    assert!(!asked.iter().any(|(path, _)| others(path)), "{asked:?}");
}

#[test]
fn failures_are_sentences_with_a_remedy() {
    let mut files = toybox();
    let server = serve(files.clone());
    let dir = tempfile::tempdir().unwrap();
    let open = hub(&server.endpoint, dir.path());
    let check = |hub: &Hub, name: &str, named: &[&str]| {
        let error = quiet(hub, name).unwrap_err().to_string();
        assert!(error.contains(name) && !error.contains('\n'), "{error}");
        assert!(named.iter().all(|named| error.contains(named)), "{error}");
    };
    check(&open, "toys/other", &["404", &server.endpoint]);
    check(&open, "toys/closed", &["HF_TOKEN", "/toys/closed"]);
    check(&open, "../etc", &["owner/name"]);
    check(&Hub { offline: true, ..open.clone() }, "toys/base", &["HF_HUB_OFFLINE"]);
    let nobody = nobody();
    check(&hub(&nobody, dir.path()), "toys/base", &[&nobody, "HF_ENDPOINT"]);
    let variant = open.fetch("toys/base", Some("fp8"), &mut |_, _, _| {}).unwrap_err();
    assert!(variant.to_string().contains("fp8"), "{variant}");

    files.remove("model_index.json");
    let other = serve(files);
    check(&hub(&other.endpoint, dir.path()), "toys/base", &["model_index.json"]);
}

#[test]
fn names_are_told_from_paths() {
    for name in ["stabilityai/stable-diffusion-xl-base-1.0", "a/b@v1.2", "x_y/z"] {
        assert!(is_name(name), "{name}");
    }
    for path in ["model", "a/b/c", "/a", "a/", "../b", "a/..", "a/b@", "a b/c", "a\\b/c"] {
        assert!(!is_name(path), "{path}");
    }
}
