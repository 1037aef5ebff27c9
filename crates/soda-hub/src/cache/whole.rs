//! Whether a file in the cache is whole, as far as the file itself can tell.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use super::digest::Digest;
use crate::failure::Failure;

/// Files of at most this length are read and hashed whenever they are used. A longer file is hashed once,
/// when it is downloaded.
const MAX_HASHED: u64 = 16 << 20;

/// The longest header that the safetensors format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;

/// Returns the damage of a snapshot's file as the end of a sentence. `None` if none can be seen.
///
/// A small file is compared with the digest that its blob is named by. Another safetensors file must have the
/// length that its header gives.
///
/// # Errors
///
/// [`Failure::Io`] if the file is missing or cannot be read.
pub(crate) fn damage_of(path: &Path) -> Result<Option<String>, Failure> {
    // A pipe would be waited for when it is opened.
    let metadata = std::fs::metadata(path).map_err(Failure::io(path))?;
    if !metadata.is_file() {
        return Ok(Some("it is no file".to_owned()));
    }
    let size = metadata.len();
    let mut file = File::open(path).map_err(Failure::io(path))?;
    let blob = std::fs::read_link(path).ok();
    let name = blob.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let digest = name.map_or(Digest::Unknown, Digest::of_name);
    if digest.is_known() && size <= MAX_HASHED {
        return difference(&mut file, path, &digest, size);
    }
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        return safetensors_damage(&mut file, size).map_err(Failure::io(path));
    }
    Ok(None)
}

/// Whether the digest of the blob at `path` is the one that its name gives.
///
/// # Errors
///
/// [`Failure::Io`] if the blob cannot be read.
pub(crate) fn is_digest_of(path: &Path, digest: &Digest) -> Result<bool, Failure> {
    let mut file = File::open(path).map_err(Failure::io(path))?;
    let size = file.metadata().map_err(Failure::io(path))?.len();
    Ok(digest.is_known() && difference(&mut file, path, digest, size)?.is_none())
}

fn difference(
    file: &mut File,
    path: &Path,
    digest: &Digest,
    size: u64,
) -> Result<Option<String>, Failure> {
    let mut hasher = digest.hasher(Some(size));
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer).map_err(Failure::io(path))? {
            0 => return Ok(hasher.finish().err()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// An entry of a safetensors header. Metadata has no offsets.
#[derive(Deserialize)]
struct Entry {
    data_offsets: Option<[u64; 2]>,
}

/// Compares the length of a safetensors file with its header.
fn safetensors_damage(file: &mut File, size: u64) -> std::io::Result<Option<String>> {
    let short = |needed: u64| Ok(Some(format!("it has {size} bytes of at least {needed}")));
    if size < 8 {
        return short(8);
    }
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER {
        return Ok(Some(format!("its header has {length} bytes")));
    }
    if size < 8 + length {
        return short(8 + length);
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    let Ok(entries) = serde_json::from_slice::<BTreeMap<String, Entry>>(&header) else {
        return Ok(Some("its header is no JSON object of tensors".to_owned()));
    };
    let end = entries.values().filter_map(|entry| entry.data_offsets).map(|[_, end]| end).max();
    let whole = (8 + length).checked_add(end.unwrap_or(0));
    Ok((whole != Some(size)).then(|| match whole {
        Some(whole) => format!("it has {size} bytes instead of {whole}"),
        None => "its header has impossible offsets".to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::damage_of;

    fn safetensors(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn the_header_tells_the_length_of_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let check = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            damage_of(&path).unwrap()
        };
        let header = r#"{"__metadata__":{"format":"pt"},
            "a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
            "b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#;
        let whole = safetensors(header, 12);
        assert_eq!(check(&whole), None);
        assert_eq!(check(&safetensors("{}", 0)), None);
        for end in [0, 7, 8, 50, whole.len() - 1] {
            assert!(check(&whole[..end]).is_some(), "{end}");
        }
        assert!(check(&safetensors(header, 13)).unwrap().contains("instead of"));
        assert!(check(&safetensors("[1]", 0)).is_some());
        assert!(check(&[255; 100]).unwrap().contains("header"));
        let absurd = r#"{"a":{"data_offsets":[0,18446744073709551615]}}"#;
        assert!(check(&safetensors(absurd, 0)).unwrap().contains("offsets"));
    }

    #[test]
    fn a_missing_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(damage_of(&dir.path().join("none")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_small_file_is_compared_with_the_name_of_its_blob() {
        let dir = tempfile::tempdir().unwrap();
        let blob = dir.path().join("ce013625030ba8dba906f756967f9e9ca394464a");
        let path = dir.path().join("config.json");
        std::os::unix::fs::symlink(&blob, &path).unwrap();
        std::fs::write(&blob, "hello\n").unwrap();
        assert_eq!(damage_of(&path).unwrap(), None);
        std::fs::write(&blob, "hello").unwrap();
        assert!(damage_of(&path).unwrap().unwrap().contains("SHA-1"));
    }
}
