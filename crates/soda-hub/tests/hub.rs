//! Downloads by repo id, from a server on this machine.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod server;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use server::{TOKEN, serve, toybox_repo, unreachable_endpoint};
use soda_hub::{Hub, HubError, is_repo_id};

fn download(hub: &Hub, repo_id: &str) -> Result<std::path::PathBuf, HubError> {
    hub.snapshot_download(repo_id, None, &mut |_, _, _| {})
}

fn hub(endpoint: &str, home: &Path) -> Hub {
    Hub {
        endpoint: endpoint.to_owned(),
        token: None,
        cache_dir: home.join("hub"),
        offline: false,
        silence: Duration::from_secs(10),
    }
}

#[test]
fn a_snapshot_is_downloaded_once() {
    let server = serve(toybox_repo());
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub { token: Some("secret".to_owned()), ..hub(&server.endpoint, dir.path()) };
    let mut reported = BTreeMap::new();
    let model = hub
        .snapshot_download("toys/base", None, &mut |file, done, total| {
            reported.insert(file.to_owned(), (done, total));
        })
        .unwrap();
    // The files equal the server's, and include the only variant of the autoencoder.
    for file in reported.keys() {
        assert!(std::fs::read(model.join(file)).unwrap() == toybox_repo()[file], "{file}");
    }
    for file in ["model_index.json", "unet/diffusion_pytorch_model.safetensors"] {
        assert!(reported.contains_key(file), "{file}");
    }
    assert!(reported.contains_key("vae/diffusion_pytorch_model.fp16.safetensors"));
    assert!(reported.values().all(|(done, total)| done == total));

    let requests = server.requests.lock().unwrap().clone();
    assert!(requests.iter().all(|(_, token)| token.as_deref() == Some(TOKEN)));
    for unwanted in ["ckpt", ".bin", "evil"] {
        assert!(!requests.iter().any(|(path, _)| path.contains(unwanted)), "{unwanted}");
    }
    // A second download requests the list of files alone; offline or without a server it requests nothing.
    assert_eq!(download(&hub, "toys/base").unwrap(), model);
    assert_eq!(server.requests.lock().unwrap().len(), requests.len() + 1);
    let offline = Hub { offline: true, ..hub.clone() };
    assert_eq!(download(&offline, "toys/base").unwrap(), model);
    let disconnected = Hub { endpoint: unreachable_endpoint(), ..hub };
    assert_eq!(download(&disconnected, "toys/base").unwrap(), model);
    assert_eq!(server.requests.lock().unwrap().len(), requests.len() + 1);
}

#[test]
fn an_interrupted_download_resumes() {
    let server = serve(toybox_repo());
    let dir = tempfile::tempdir().unwrap();
    let hub = hub(&server.endpoint, dir.path());
    let model = download(&hub, "toys/base").unwrap();
    // The state of the cache after a crash between two files: one file and the branch's ref are missing.
    let file = model.join("unet/diffusion_pytorch_model.safetensors");
    std::fs::remove_file(&file).unwrap();
    std::fs::remove_file(dir.path().join("hub/models--toys--base/refs/main")).unwrap();
    assert!(matches!(
        download(&Hub { endpoint: unreachable_endpoint(), ..hub.clone() }, "toys/base"),
        Err(HubError::Unreachable { .. })
    ));
    let before = server.requests.lock().unwrap().len();
    assert_eq!(download(&hub, "toys/base").unwrap(), model);
    assert!(
        std::fs::read(&file).unwrap() == toybox_repo()["unet/diffusion_pytorch_model.safetensors"]
    );
    let requests = server.requests.lock().unwrap()[before..].to_vec();
    let expected = |path: &str| path.contains("unet/diffusion") || path.starts_with("/api/");
    assert!(requests.iter().all(|(path, _)| expected(path)), "{requests:?}");
}

#[test]
fn errors_are_one_line_with_a_remedy() {
    let mut files = toybox_repo();
    let server = serve(files.clone());
    let dir = tempfile::tempdir().unwrap();
    let open = hub(&server.endpoint, dir.path());
    let check = |hub: &Hub, repo_id: &str, expected: &[&str]| {
        let error = download(hub, repo_id).unwrap_err().to_string();
        assert!(error.contains(repo_id) && !error.contains('\n'), "{error}");
        assert!(expected.iter().all(|text| error.contains(text)), "{error}");
    };
    check(&open, "toys/other", &["404", &server.endpoint]);
    check(&open, "toys/closed", &["HF_TOKEN", "/toys/closed"]);
    check(&open, "../etc", &["owner/name"]);
    check(&Hub { offline: true, ..open.clone() }, "toys/base", &["HF_HUB_OFFLINE"]);
    let unreachable = unreachable_endpoint();
    check(&hub(&unreachable, dir.path()), "toys/base", &[&unreachable, "HF_ENDPOINT"]);
    let variant = open.snapshot_download("toys/base", Some("fp8"), &mut |_, _, _| {}).unwrap_err();
    assert!(variant.to_string().contains("fp8"), "{variant}");

    files.remove("model_index.json");
    let other = serve(files);
    check(&hub(&other.endpoint, dir.path()), "toys/base", &["model_index.json"]);
}

#[test]
fn repo_ids_are_distinguished_from_paths() {
    for repo_id in ["stabilityai/stable-diffusion-xl-base-1.0", "a/b@v1.2", "x_y/z"] {
        assert!(is_repo_id(repo_id), "{repo_id}");
    }
    for path in ["model", "a/b/c", "/a", "a/", "../b", "a/..", "a/b@", "a b/c", "a\\b/c"] {
        assert!(!is_repo_id(path), "{path}");
    }
}
