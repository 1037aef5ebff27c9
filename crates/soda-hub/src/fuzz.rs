//! Damaged answers of a hub: each gives a value or an error, and no path leaves the cache. `CONTRIBUTING.md`
//! says how to run the long form.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use soda_testing::{Mutator, fuzz};
use ureq::http::{HeaderMap, HeaderName, HeaderValue};

use crate::http::{Client, Hops, Url, file_metadata, range_of, target};
use crate::listing::Listing;
use crate::names::{etag_name, is_commit};
use crate::pipeline_files::required_files;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

const LIST: &str = r#"{"id":"a/b","sha":"0123456789abcdef0123456789abcdef01234567","siblings":[
    {"rfilename":"model_index.json"},{"rfilename":"unet/config.json"},
    {"rfilename":"unet/diffusion_pytorch_model.safetensors.index.json"},
    {"rfilename":"unet/diffusion_pytorch_model-00001-of-00002.safetensors"},
    {"rfilename":"unet/diffusion_pytorch_model-00002-of-00002.safetensors"},
    {"rfilename":"tokenizer/vocab.json"},{"rfilename":"tokenizer/merges.txt"}]}"#;

const INDEX: &str = r#"{"unet":["diffusers","A"],"tokenizer":["transformers","B"]}"#;

/// The heads of answers: metadata, a part of a file, a redirect to another host.
const HEADS: [&str; 2] = [
    "206\n\
     ETag: W/\"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03\"\n\
     X-Repo-Commit: 0123456789abcdef0123456789abcdef01234567\n\
     Content-Range: bytes 0-0/14611712\nContent-Length: 1",
    "302\n\
     X-Linked-Etag: \"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03\"\n\
     X-Linked-Size: 14611712\n\
     X-Repo-Commit: 0123456789abcdef0123456789abcdef01234567\n\
     Content-Length: 14611712",
];

/// More choices for an input, which it determines.
fn choices(input: &[u8]) -> Mutator {
    Mutator::new(input.iter().fold(7, |sum, byte| sum * 31 % 0xffff_fffb + u64::from(*byte)))
}

/// Whether a relative path stays in its folder on every system.
fn stays(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.contains(['\\', ':', '\0']) && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// Runs the harness. Some inputs must be accepted: it would find nothing in answers that are all refused.
fn fuzz_answers(name: &str, seeds: &[&str], mut accepts: impl FnMut(&[u8]) -> bool) {
    let seeds: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    let (mut inputs, mut accepted) = (0, 0);
    fuzz(name, &seeds, 5000, |input| {
        inputs += 1;
        accepted += usize::from(accepts(input));
    });
    assert!(inputs < 1000 || accepted > inputs / 100, "{accepted} of {inputs}");
}

#[test]
fn a_damaged_list_names_no_path_outside() {
    fuzz_answers("hub list", &[LIST], |input| {
        let Ok(listing) = Listing::parse(input) else { return false };
        assert!(is_commit(&listing.commit));
        let mut choices = choices(input);
        let index = match choices.below(4) {
            0 => choices.damage(INDEX.as_bytes()),
            _ => INDEX.as_bytes().to_vec(),
        };
        let variant = [None, Some("fp16")][choices.below(2)];
        let files = required_files("a/b", &index, &listing.files, variant);
        let files = files.map_err(|error| error.to_string());
        files.is_ok_and(|files| {
            assert!(files.iter().all(|file| stays(file)), "{files:?}");
            true
        })
    });
}

/// The status and the header fields of a text with a line for each.
fn head(input: &[u8]) -> (u16, HeaderMap) {
    let mut lines = input.split(|byte| *byte == b'\n');
    let status = lines.next().and_then(|line| std::str::from_utf8(line).ok()?.parse().ok());
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.insert(name, value);
        }
    }
    (status.unwrap_or(200), headers)
}

#[test]
fn damaged_headers_give_plain_names() {
    fuzz_answers("hub headers", &HEADS, |input| {
        let (status, headers) = head(input);
        let mut choices = choices(input);
        let mut hops = Hops::new(COMMIT);
        let mut added = hops.add(choices.below(4) > 0, status, &headers);
        // A second answer, of the host that has the file.
        if added.is_ok() && choices.below(2) == 0 {
            let (status, headers) = head(&choices.damage(HEADS[0].as_bytes()));
            added = hops.add(false, status, &headers);
        }
        added.and_then(|()| hops.finish()).is_ok_and(|metadata| {
            assert!(stays(&metadata.etag) && etag_name(&metadata.etag).is_some());
            true
        })
    });
}

#[test]
fn damaged_redirects_stay_on_the_web() {
    let from = Url::parse("https://hub.co:8443/a/b?c=d").unwrap();
    let locations = ["https://cdn.co/x?y=z#f", "/x/../y", "../../z", "//cdn.co/x", "?q", "x y"];
    fuzz_answers("hub redirect", &locations, |input| {
        range_of(&String::from_utf8_lossy(input));
        let Ok(value) = HeaderValue::from_bytes(input) else { return false };
        let headers = HeaderMap::from_iter([(ureq::http::header::LOCATION, value)]);
        target(&from, &headers).is_ok_and(|url| {
            assert_eq!(url.origin().scheme, "https");
            true
        })
    });
}

/// Whole answers as bytes on a connection, from a server that then closes it.
#[test]
fn a_damaged_answer_is_refused_or_read() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let answer = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&answer);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The request is read, or closing would discard the answer.
            let _ = stream.read(&mut [0; 4096]);
            let bytes = shared.lock().unwrap().clone();
            let _ = stream.write_all(&bytes);
        }
    });
    let client = Client::new(endpoint.clone(), None, Duration::from_secs(1));
    let url = endpoint.with_path("a/b/resolve/main/x").unwrap();
    let chunked = format!("{:x}\r\n{LIST}\r\n0\r\n\r\n", LIST.len());
    let lengths = ["Content-Length: 583", "ETag: \"ab\"\r\nContent-Range: bytes 0-0/7"];
    let mut seeds = lengths.map(|length| format!("HTTP/1.1 206 Part\r\n{length}\r\n\r\n{LIST}"));
    seeds[0] = seeds[0].replace("583", &LIST.len().to_string());
    let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunked}");
    let seeds = [&seeds[0], &seeds[1], &chunked].map(|seed| seed.as_bytes().to_vec());
    fuzz("hub answer", &seeds, 500, |input| {
        // Another host must not be asked, wherever the damage leads.
        if input.to_ascii_lowercase().windows(8).any(|part| part == b"location") {
            return;
        }
        *answer.lock().unwrap() = input.to_vec();
        let read = client.get(&url, &[], |_| false).and_then(|answer| answer.into_bytes("x", 999));
        if let Ok(bytes) = read {
            assert!(bytes.len() <= 999);
            let _ = Listing::parse(&bytes);
        }
        let _ = file_metadata(&client, &url, COMMIT).map(|metadata| assert!(stays(&metadata.etag)));
    });
}
