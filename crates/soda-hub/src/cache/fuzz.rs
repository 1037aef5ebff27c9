//! Damaged contents of the cache.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use sha2::{Digest as _, Sha256};
use soda_testing::fuzz;

use super::{Digest, Partial, RepoCache, damage_of};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The name of a blob with these bytes.
fn name_of(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A damaged content is found by its digest, and a part of one leads to no blob with another content.
#[test]
fn a_damaged_blob_is_no_content() {
    let dir = tempfile::tempdir().unwrap();
    let cache = RepoCache::new(dir.path(), "a/b");
    let whole = br#"{"a": [1, 2, 3], "b": "some settings of a network", "c": null}"#;
    let name = name_of(whole);
    let _lock = cache.lock(&name).unwrap();
    let blob = cache.blob(&name);
    std::fs::write(&blob, whole).unwrap();
    let path = cache.link(COMMIT, "unet/config.json", &name).unwrap();
    assert_eq!(damage_of(&path).unwrap(), None);
    fuzz("hub blob", &[whole.to_vec()], 1000, |input| {
        std::fs::write(&blob, input).unwrap();
        assert_eq!(damage_of(&path).unwrap().is_none(), input == whole);
        std::fs::remove_file(&blob).unwrap();
        let partial = cache.partial(&name);
        std::fs::write(&partial, input).unwrap();
        let size = Some(whole.len() as u64);
        let mut partial = Partial::open(partial, Digest::of_name(&name), size).unwrap();
        let rest = &whole[usize::try_from(partial.length()).unwrap()..];
        partial.write(rest).unwrap();
        let finished = partial.finish("x", &blob);
        assert_eq!(finished.is_ok(), std::fs::read(&blob).is_ok_and(|bytes| bytes == whole));
    });
}
