//! Pictures that the page sends into a data folder.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Answer, Desk};
use image::{ImageFormat, Rgb, RgbImage};
use serde_json::{Value, json};

fn encoded(format: ImageFormat) -> Vec<u8> {
    let picture = RgbImage::from_fn(40, 30, |x, y| Rgb([x as u8, y as u8, 7]));
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG of one chunk that claims this size.
fn claiming(width: u32, height: u32) -> Vec<u8> {
    let mut bytes = encoded(ImageFormat::Png);
    bytes[16..20].copy_from_slice(&width.to_be_bytes());
    bytes[20..24].copy_from_slice(&height.to_be_bytes());
    let crc = crc(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// The check sum of a chunk of PNG.
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    };
    !bytes.iter().fold(!0, step)
}

fn folder(desk: &Desk) -> String {
    desk.get("/api/data").json()[0]["id"].as_str().unwrap().to_owned()
}

fn send(desk: &Desk, bytes: &[u8]) -> Answer {
    let line = format!("POST /api/data/{}/pictures", folder(desk));
    desk.write(&line, &json!({ "picture": STANDARD.encode(bytes) }))
}

fn names(desk: &Desk) -> Vec<String> {
    let entries = std::fs::read_dir(desk.path("mug")).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn pictures_are_stored_under_names_of_their_content() {
    let desk = Desk::new();
    let (png, jpeg) = (encoded(ImageFormat::Png), encoded(ImageFormat::Jpeg));
    for (bytes, end) in [(&png, ".png"), (&jpeg, ".jpg")] {
        let answer = send(&desk, bytes).json();
        let name = answer["name"].as_str().unwrap();
        assert!(answer["is_new"] == true && name.ends_with(end) && name.len() == 20, "{answer}");
        assert_eq!(&std::fs::read(desk.path("mug").join(name)).unwrap(), bytes);
        assert_eq!(send(&desk, bytes).json()["is_new"], false);
    }
    assert_eq!(names(&desk).len(), 4);
    // They are pictures of the folder, whose captions are still empty.
    let listing = desk.get(&format!("/api/data/{}", folder(&desk))).json();
    let captions: Vec<&Value> =
        listing["pictures"].as_array().unwrap().iter().map(|one| &one["caption"]).collect();
    assert_eq!(captions.iter().filter(|caption| **caption == "").count(), 2, "{listing}");
}

#[test]
fn what_is_no_whole_png_or_jpeg_is_refused_and_leaves_nothing() {
    let desk = Desk::new();
    let png = encoded(ImageFormat::Png);
    let jpeg = encoded(ImageFormat::Jpeg);
    for (bytes, sentence) in [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(), "only PNG and JPEG"),
        (b"<!doctype html><script>alert(1)</script>".to_vec(), "only PNG and JPEG"),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00;".to_vec(), "only PNG and JPEG"),
        (Vec::new(), "only PNG and JPEG"),
        (png[..png.len() / 2].to_vec(), "damaged"),
        (jpeg[..jpeg.len() - 9].to_vec(), "damaged"),
        (claiming(8000, 8000), "8000 x 8000 pixels"),
        (claiming(4000, 4000), "damaged"),
        (vec![0; (24 << 20) + 1], "at most 24 MiB"),
    ] {
        let answer = send(&desk, &bytes);
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(answer.status == 422 && error.contains(sentence), "{sentence}: {error}");
        assert!(!error.contains("/"), "a path: {error}");
    }
    assert_eq!(names(&desk), ["00.png", "00.txt"]);
}

#[test]
fn an_upload_is_bounded_and_needs_what_every_write_needs() {
    let desk = Desk::new();
    let folder = folder(&desk);
    let line = format!("POST /api/data/{folder}/pictures");
    let head = format!(
        "{line} HTTP/1.1\r\nHost: {}\r\nCookie: {}\r\nContent-Type: application/json\r\n\
         X-Soda-Ui: 1\r\nContent-Length: {}\r\n\r\n",
        desk.host(),
        desk.cookie(),
        33 << 20
    );
    assert_eq!(desk.send(head.as_bytes()).status, 413);
    // The larger bound is for pictures only.
    let large = json!({ "picture": "A".repeat(1 << 20) });
    assert_eq!(desk.write("POST /api/settings", &large).status, 413);
    assert_eq!(desk.write(&line, &large).status, 422);
    for (body, status) in [
        (json!({ "picture": "not base64!" }), 422),
        (json!({ "picture": "", "name": "../x.png" }), 400),
        (json!({}), 400),
    ] {
        assert_eq!(desk.write(&line, &body).status, status, "{body}");
    }
    let other = json!({ "picture": STANDARD.encode(encoded(ImageFormat::Png)) });
    assert_eq!(desk.write("POST /api/data/..%2fmug/pictures", &other).status, 404);
    let (host, cookie) = (desk.host(), desk.cookie());
    let json_type = ("Content-Type", "application/json");
    for (fields, status) in [
        (vec![json_type, ("X-Soda-Ui", "1")], 401),
        (vec![json_type, ("Cookie", &cookie)], 403),
        (vec![("Content-Type", "image/png"), ("X-Soda-Ui", "1"), ("Cookie", &cookie)], 415),
    ] {
        let fields: Vec<_> = std::iter::once(("Host", &*host)).chain(fields).collect();
        assert_eq!(desk.request(&line, &fields, &other.to_string()).status, status, "{fields:?}");
    }
    assert_eq!(names(&desk), ["00.png", "00.txt"]);
}
