//! Masks of the pictures of a data folder.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::io::Cursor;

use common::Desk;
use image::{GrayImage, ImageFormat, Luma};

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
    let get = |place: usize| {
        let id = pictures[place]["id"].as_str().unwrap();
        desk.get(&format!("/api/data/{data}/masks/{id}"))
    };
    let answer = get(1);
    assert!(answer.head.contains("image/png"), "{}", answer.head);
    let reader = image::ImageReader::with_format(Cursor::new(answer.body), ImageFormat::Png);
    let shown = reader.decode().unwrap().into_luma8();
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
