//! Damaged caches give a folder or an error. `CONTRIBUTING.md` says how to run the long form.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use soda_hub::Hub;
use soda_testing::fuzz;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache without digests, as other tools leave it: damaged refs, indices and headers of weights.
#[test]
fn a_damaged_cache_is_refused_or_used() {
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("models--a--b");
    let snapshot = repository.join("snapshots").join(COMMIT);
    let write = |name: &str, bytes: &[u8]| {
        let path = snapshot.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    let header = br#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let weights = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 8]].concat();
    let index = br#"{"unet":["diffusers","A"]}"#;
    let files = [
        ("model_index.json", &index[..]),
        ("unet/config.json", b"{}"),
        ("unet/diffusion_pytorch_model.safetensors", &weights),
    ];
    files.iter().for_each(|(name, bytes)| write(name, bytes));
    std::fs::create_dir(repository.join("refs")).unwrap();
    let path = repository.join("refs/main");
    std::fs::write(&path, COMMIT).unwrap();
    let hub = Hub {
        endpoint: String::new(),
        token: None,
        cache_dir: dir.path().to_owned(),
        offline: true,
        silence: Duration::from_secs(1),
    };
    let get = || hub.snapshot_download("a/b", None, &mut |_, _, _| ());
    assert_eq!(get().unwrap(), snapshot);
    for (name, seed) in [files[0], files[2]] {
        fuzz(&format!("hub cache, {name}"), &[seed.to_vec()], 1000, |input| {
            write(name, input);
            let _ = get().map_err(|error| error.to_string());
        });
        write(name, seed);
    }
    fuzz("hub cache, ref", &[COMMIT.as_bytes().to_vec()], 1000, |input| {
        std::fs::write(&path, input).unwrap();
        if let Ok(folder) = get() {
            assert_eq!(folder.parent(), snapshot.parent());
        }
    });
}
