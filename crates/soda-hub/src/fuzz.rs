//! Mutated answers of a hub: whatever it sends is a value or an error, and no path leaves the cache.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Component, Path};

use ureq::http::{HeaderMap, HeaderName, HeaderValue};

use crate::http::{Hops, Url, range_of, target};
use crate::listing::Listing;
use crate::names::{etag_name, is_commit};
use crate::pipeline_files::required_files;

/// How often each answer is mutated.
const ROUNDS: usize = 5000;

/// SplitMix64, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Texts that are dangerous somewhere.
const PIECES: &[&str] = &[
    "..",
    "/",
    "\\",
    "../../",
    "\0",
    "\n",
    "\"",
    "{",
    "[",
    "]",
    "}",
    ":",
    "%2e",
    "-1",
    "1e400",
    "null",
    "18446744073709551616",
    "file:///",
    "//",
    "@",
    "#",
    "?",
    "*",
    "W/",
    "-of-",
    ".safetensors",
    "é",
    "\u{202e}",
];

/// Returns `text` with some bytes changed, removed or repeated, and pieces put in.
fn mutated(text: &[u8], random: &mut Random) -> Vec<u8> {
    let mut text = text.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(text.len());
        match random.below(5) {
            0 if !text.is_empty() => text[at] = random.next() as u8,
            1 if !text.is_empty() => drop(text.remove(at)),
            2 => text.truncate(at),
            3 => {
                let end = at + random.below(text.len() - at);
                let part = text[at..end].to_vec();
                text.splice(at..at, part);
            }
            _ => {
                let piece = PIECES[random.below(PIECES.len())];
                text.splice(at..at, piece.bytes());
            }
        }
    }
    text
}

/// Whether a relative path stays in its folder on every system.
fn stays(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.contains(['\\', ':', '\0']) && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[test]
fn a_mutated_list_names_no_path_outside() {
    let list = br#"{"id":"a/b","sha":"0123456789abcdef0123456789abcdef01234567","siblings":[
        {"rfilename":"model_index.json"},{"rfilename":"unet/config.json"},
        {"rfilename":"unet/diffusion_pytorch_model.safetensors.index.json"},
        {"rfilename":"unet/diffusion_pytorch_model-00001-of-00002.safetensors"},
        {"rfilename":"unet/diffusion_pytorch_model-00002-of-00002.safetensors"},
        {"rfilename":"tokenizer/vocab.json"},{"rfilename":"tokenizer/merges.txt"}]}"#;
    let index = br#"{"unet":["diffusers","A"],"tokenizer":["transformers","B"]}"#;
    let (mut random, mut selected) = (Random(1), 0);
    for _ in 0..ROUNDS {
        let Ok(listing) = Listing::parse(&mutated(list, &mut random)) else { continue };
        assert!(is_commit(&listing.commit));
        let index = if random.below(4) == 0 { mutated(index, &mut random) } else { index.to_vec() };
        let variant = [None, Some("fp16")][random.below(2)];
        if let Ok(files) = required_files("a/b", &index, &listing.files, variant) {
            assert!(files.iter().all(|file| stays(file)), "{files:?}");
            selected += 1;
        }
    }
    assert!(selected > ROUNDS / 100, "{selected}");
}

#[test]
fn mutated_headers_give_plain_names() {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let fields = [
        ("ETag", "W/\"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03\""),
        ("X-Linked-Etag", "\"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03\""),
        ("X-Linked-Size", "14611712"),
        ("X-Repo-Commit", commit),
        ("Content-Range", "bytes 0-0/14611712"),
        ("Content-Length", "14611712"),
    ];
    let (mut random, mut accepted) = (Random(2), 0);
    for _ in 0..ROUNDS {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            let value = match random.below(4) {
                0 => mutated(value.as_bytes(), &mut random),
                1 => continue,
                _ => value.as_bytes().to_vec(),
            };
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(name.parse::<HeaderName>().unwrap(), value);
            }
        }
        let mut hops = Hops::new(commit);
        let status = [200, 206, 302, 416][random.below(4)];
        let added = hops.add(random.below(2) == 0, status, &headers);
        if let Ok(metadata) = added.and_then(|()| hops.finish()) {
            assert!(stays(&metadata.etag) && etag_name(&metadata.etag).is_some());
            accepted += 1;
        }
    }
    assert!(accepted > ROUNDS / 100, "{accepted}");
}

#[test]
fn mutated_redirects_stay_on_the_web() {
    let from = Url::parse("https://hub.co:8443/a/b?c=d").unwrap();
    let locations = ["https://cdn.co/x?y=z#f", "/x/../y", "../../z", "//cdn.co/x", "?q", "x y"];
    let (mut random, mut followed) = (Random(3), 0);
    for _ in 0..ROUNDS {
        let location = locations[random.below(locations.len())];
        let location = mutated(location.as_bytes(), &mut random);
        range_of(&String::from_utf8_lossy(&location));
        let Ok(value) = HeaderValue::from_bytes(&location) else { continue };
        let headers = HeaderMap::from_iter([(ureq::http::header::LOCATION, value)]);
        if let Ok(url) = target(&from, &headers) {
            assert_eq!(url.origin().scheme, "https");
            followed += 1;
        }
    }
    assert!(followed > ROUNDS / 100, "{followed}");
}
