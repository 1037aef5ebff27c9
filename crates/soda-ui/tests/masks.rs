//! Masks of the pictures of a data folder.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Answer, Desk};
use image::{DynamicImage, GrayImage, ImageFormat, Luma, Rgba, RgbaImage};
use serde_json::{Value, json};

/// The address of the folder and the ids of its pictures.
fn listed(desk: &Desk) -> (String, Vec<String>, Value) {
    let data = desk.get("/api/data").json()[0]["id"].as_str().unwrap().to_owned();
    let listing = desk.get(&format!("/api/data/{data}")).json();
    let pictures = listing["pictures"].as_array().unwrap();
    let ids = pictures.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect();
    (format!("/api/data/{data}"), ids, listing)
}

fn decoded(answer: &Answer) -> GrayImage {
    assert_eq!(answer.status, 200, "{}", answer.head);
    image::load_from_memory_with_format(&answer.body, ImageFormat::Png).unwrap().into_luma8()
}

fn png(mask: impl Into<DynamicImage>) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    mask.into().write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// White at the left of `edge` and black at its right.
fn half(width: u32, height: u32, edge: u32) -> GrayImage {
    GrayImage::from_fn(width, height, |x, _| Luma([if x < edge { 255 } else { 0 }]))
}

fn put(desk: &Desk, picture: usize, bytes: &[u8]) -> Answer {
    let (address, ids, _) = listed(desk);
    let line = format!("PUT {address}/masks/{}", ids[picture]);
    desk.write(&line, &json!({ "mask": STANDARD.encode(bytes) }))
}

#[test]
fn a_mask_is_found_as_by_the_trainer_and_shown_reduced() {
    let desk = Desk::new();
    let mask = GrayImage::from_fn(640, 480, |x, _| Luma([if x < 320 { 0 } else { 255 }]));
    let picture = image::RgbImage::new(640, 480);
    for name in ["01.png", "02.png"] {
        picture.save(desk.path("mug").join(name)).unwrap();
    }
    mask.save(desk.path("mug/00-masklabel.png")).unwrap();
    std::fs::create_dir(desk.path("mug/masks")).unwrap();
    mask.save(desk.path("mug/masks/01.png")).unwrap();
    let data = desk.get("/api/data").json()[0]["id"].as_str().unwrap().to_owned();
    let listing = desk.get(&format!("/api/data/{data}")).json();
    let pictures = listing["pictures"].as_array().unwrap();
    let with: Vec<_> = pictures.iter().map(|one| one["has_mask"].as_bool().unwrap()).collect();
    assert_eq!(with, [true, true, false], "{listing}");
    assert_eq!((listing["count"].as_u64(), listing["masked"].as_u64()), (Some(3), Some(2)));
    let get = |place: usize| {
        let id = pictures[place]["id"].as_str().unwrap();
        desk.get(&format!("/api/data/{data}/masks/{id}"))
    };
    let answer = get(1);
    assert!(answer.head.contains("image/png"), "{}", answer.head);
    let shown = decoded(&answer);
    assert_eq!(shown.dimensions(), (320, 240));
    assert_eq!((shown.get_pixel(2, 9)[0], shown.get_pixel(318, 9)[0]), (0, 255));
    assert_eq!((get(0).status, get(2).status), (200, 404));
    assert_eq!(desk.get(&format!("/api/data/{data}/masks/..%2fmasks%2f01")).status, 404);
}

#[test]
#[cfg(unix)]
fn a_mask_that_is_a_link_out_of_the_folder_is_not_shown() {
    let desk = Desk::new();
    let outside = tempfile::tempdir().unwrap();
    GrayImage::new(32, 24).save(outside.path().join("x.png")).unwrap();
    let link = desk.path("mug/00.mask.png");
    std::os::unix::fs::symlink(outside.path().join("x.png"), link).unwrap();
    let data = desk.get("/api/data").json()[0]["id"].as_str().unwrap().to_owned();
    let listing = desk.get(&format!("/api/data/{data}")).json();
    let id = listing["pictures"][0]["id"].as_str().unwrap();
    assert_eq!(desk.get(&format!("/api/data/{data}/masks/{id}")).status, 404);
}

#[test]
fn the_alpha_channel_is_shown_as_the_trainer_takes_it() {
    let desk = Desk::new();
    let cut = RgbaImage::from_fn(640, 320, |x, _| Rgba([9, 9, 9, if x < 320 { 0 } else { 255 }]));
    cut.save(desk.path("mug/01.png")).unwrap();
    let (address, ids, listing) = listed(&desk);
    assert_eq!(listing["mask_source"], "files");
    let get =
        |place: usize, query: &str| desk.get(&format!("{address}/masks/{}?{query}", ids[place]));
    let shown = decoded(&get(1, "source=alpha"));
    assert_eq!(shown.dimensions(), (320, 160));
    assert_eq!((shown.get_pixel(2, 9)[0], shown.get_pixel(318, 9)[0]), (0, 255));
    assert_eq!(decoded(&get(1, "source=alpha&size=large")).dimensions(), (640, 320));
    // A picture without an alpha channel counts everywhere.
    assert!(decoded(&get(0, "source=alpha")).pixels().all(|pixel| pixel[0] == 255));
    assert_eq!((get(1, "").status, get(1, "source=files").status), (404, 404));
    let config = std::fs::read_to_string(desk.path("runs/a/config.toml")).unwrap();
    std::fs::write(desk.path("runs/a/config.toml"), config + "\n[masks]\nsource = 'alpha'")
        .unwrap();
    assert_eq!(listed(&desk).2["mask_source"], "alpha");
}

#[test]
fn a_painted_mask_is_the_file_that_a_training_reads() {
    let desk = Desk::new();
    image::RgbImage::new(2560, 1280).save(desk.path("mug/01.png")).unwrap();
    std::fs::create_dir(desk.path("mug/masks")).unwrap();
    image::RgbImage::new(40, 30).save(desk.path("mug/02.png")).unwrap();
    GrayImage::new(40, 30).save(desk.path("mug/masks/02.png")).unwrap();
    for (picture, mask, file, size) in [
        (0, half(32, 24, 8), "mug/00.mask.png", (32, 24)),
        // The page has a large picture reduced. Its mask is enlarged.
        (1, half(1280, 640, 320), "mug/01.mask.png", (2560, 1280)),
        // An earlier mask is replaced where it lies.
        (2, half(40, 30, 10), "mug/masks/02.png", (40, 30)),
    ] {
        assert_eq!(put(&desk, picture, &png(mask.clone())).status, 200, "{file}");
        let path = desk.path(file);
        assert_eq!(
            image::ImageReader::open(&path).unwrap().decode().unwrap().color(),
            image::ColorType::L8
        );
        let written = soda_models::image::read_mask(&path).unwrap();
        assert_eq!(written.dimensions(), size, "{file}");
        let (white, black) =
            (written.get_pixel(size.0 / 4 - 3, 5), written.get_pixel(size.0 / 4 + 3, 5));
        assert_eq!((white[0], black[0]), (255, 0), "{file}");
        let (address, ids, listing) = listed(&desk);
        assert_eq!(listing["pictures"][picture]["has_mask"], true);
        let shown = decoded(&desk.get(&format!("{address}/masks/{}?size=large", ids[picture])));
        assert_eq!(shown.dimensions(), mask.dimensions());
        assert_eq!(soda_train::mask_file(&desk.path(&format!("mug/0{picture}.png"))), Some(path));
    }
    // The bytes of a request are not stored, only what they show: of colors, the brightness.
    let colors = DynamicImage::from(half(32, 24, 8)).into_rgba8();
    assert_eq!(put(&desk, 0, &[png(colors), b"<script>".to_vec()].concat()).status, 200);
    let stored = std::fs::read(desk.path("mug/00.mask.png")).unwrap();
    assert!(!stored.windows(8).any(|part| part == b"<script>"));
    assert_eq!(
        soda_models::image::read_mask(&desk.path("mug/00.mask.png")).unwrap(),
        half(32, 24, 8)
    );
}

#[test]
fn what_is_no_mask_of_its_picture_is_refused_and_leaves_nothing() {
    let desk = Desk::new();
    let good = png(half(32, 24, 8));
    let mut jpeg = Cursor::new(Vec::new());
    half(32, 24, 8).write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
    for (bytes, sentence) in [
        (Vec::new(), "a mask is a PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(), "a mask is a PNG"),
        (jpeg.into_inner(), "a mask is a PNG"),
        (good[..good.len() - 20].to_vec(), "damaged"),
        (good[..20].to_vec(), "damaged"),
        (png(half(24, 32, 8)), "24 x 32 pixels and the picture as shown 32 x 24"),
        (png(half(1281, 9, 8)), "at most 1280 pixels"),
        (png(GrayImage::new(32, 24)), "black everywhere"),
        (vec![0; (6 << 20) + 1], "at most 6 MiB"),
    ] {
        let answer = put(&desk, 0, &bytes);
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(answer.status == 422 && error.contains(sentence), "{sentence}: {error}");
        assert!(!error.contains("/"), "a path: {error}");
    }
    let names = std::fs::read_dir(desk.path("mug")).unwrap().count();
    assert_eq!(names, 2);
}

#[test]
fn a_mask_is_bounded_and_needs_what_every_write_needs() {
    let desk = Desk::new();
    let (address, ids, _) = listed(&desk);
    let line = format!("PUT {address}/masks/{}", ids[0]);
    let (host, cookie) = (desk.host(), desk.cookie());
    let head = format!(
        "{line} HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\nContent-Type: application/json\r\n\
         X-Soda-Ui: 1\r\nContent-Length: {}\r\n\r\n",
        9 << 20
    );
    assert_eq!(desk.send(head.as_bytes()).status, 413);
    let body = json!({ "mask": STANDARD.encode(png(half(32, 24, 8))) });
    for (body, status) in [
        (json!({ "mask": "not base64!" }), 422),
        (json!({ "mask": body["mask"], "name": "../x.png" }), 400),
        (json!({}), 400),
    ] {
        assert_eq!(desk.write(&line, &body).status, status, "{body}");
    }
    for other in ["00.png", "..%2f00", "0000000000000000", ""] {
        assert_eq!(
            desk.write(&format!("PUT {address}/masks/{other}"), &body).status,
            404,
            "{other}"
        );
    }
    assert_eq!(desk.write(&format!("PUT /api/data/..%2fmug/masks/{}", ids[0]), &body).status, 404);
    let json_type = ("Content-Type", "application/json");
    for (fields, status) in [
        (vec![json_type, ("X-Soda-Ui", "1")], 401),
        (vec![json_type, ("Cookie", &*cookie)], 403),
        (vec![("Content-Type", "image/png"), ("X-Soda-Ui", "1"), ("Cookie", &cookie)], 415),
        (vec![json_type, ("X-Soda-Ui", "1"), ("Cookie", &cookie), ("Origin", "null")], 403),
        (
            vec![
                json_type,
                ("X-Soda-Ui", "1"),
                ("Cookie", &cookie),
                ("Sec-Fetch-Site", "cross-site"),
            ],
            403,
        ),
    ] {
        let fields: Vec<_> = std::iter::once(("Host", &*host)).chain(fields).collect();
        assert_eq!(desk.request(&line, &fields, &body.to_string()).status, status, "{fields:?}");
    }
    assert_eq!(std::fs::read_dir(desk.path("mug")).unwrap().count(), 2);
    assert_eq!(desk.write(&line, &body).status, 200);
}

/// Masks are written in the folder only, whatever links are there.
#[test]
#[cfg(unix)]
fn a_painted_mask_never_leaves_the_folder() {
    use std::os::unix::fs::symlink;

    let desk = Desk::new();
    let outside = tempfile::tempdir().unwrap();
    let mask = png(half(32, 24, 8));
    image::RgbImage::new(32, 24).save(outside.path().join("x.png")).unwrap();
    let before = std::fs::read(outside.path().join("x.png")).unwrap();
    let untouched = || {
        assert_eq!(std::fs::read(outside.path().join("x.png")).unwrap(), before);
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    };
    // A mask that is a link out of the folder, and a folder of masks that is one.
    symlink(outside.path().join("x.png"), desk.path("mug/00.mask.png")).unwrap();
    assert_eq!(put(&desk, 0, &mask).status, 422);
    untouched();
    std::fs::remove_file(desk.path("mug/00.mask.png")).unwrap();
    symlink(outside.path(), desk.path("mug/masks")).unwrap();
    std::fs::rename(desk.path("mug/00.png"), desk.path("mug/x.png")).unwrap();
    assert_eq!(put(&desk, 0, &mask).status, 422);
    untouched();
    std::fs::remove_file(desk.path("mug/masks")).unwrap();
    // A link to nothing is replaced, and what it names is not made.
    symlink(outside.path().join("y.png"), desk.path("mug/x.mask.png")).unwrap();
    assert_eq!(put(&desk, 0, &mask).status, 200);
    assert!(desk.path("mug/x.mask.png").symlink_metadata().unwrap().is_file());
    untouched();
    // A picture that is a link out of the folder has no mask.
    symlink(outside.path().join("x.png"), desk.path("mug/z.png")).unwrap();
    assert_eq!(put(&desk, 1, &mask).status, 404);
    assert!(!desk.path("mug/z.mask.png").exists());
}
