//! Reading of image files, and conversions between images and tensors.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use burn::tensor::{Device, Tensor};
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageEncoder, ImageFormat, Rgb, RgbImage, Rgba, RgbaImage, imageops};
use soda_models::image::{
    grid, read_mask, read_rgb, read_rgb_and_alpha, resize_center_crop, to_images, to_tensor,
};
use soda_models::{ImageError, ModelError};

/// An image in which every pixel has another colour.
fn gradient(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, (x + y) as u8]))
}

/// Writes an image to a PNG file and reads the file.
fn through_file(name: &str, image: impl Into<DynamicImage>) -> RgbImage {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    image.into().save_with_format(&path, ImageFormat::Png).unwrap();
    read_rgb(&path).unwrap()
}

#[test]
fn every_colour_type_becomes_rgb() {
    let rgb = gradient(5, 4);
    assert_eq!(through_file("rgb.png", rgb.clone()), rgb);
    // The content decides about the format, not the name.
    assert_eq!(through_file("wrong.jpg", rgb.clone()), rgb);
    let grey = DynamicImage::from(rgb.clone()).into_luma8();
    let expected = DynamicImage::from(grey.clone()).into_rgb8();
    assert_eq!(through_file("grey.png", grey), expected);
    let deep = DynamicImage::from(rgb.clone()).into_rgb16();
    assert_eq!(through_file("deep.png", deep.clone()), rgb);
    let deep_grey = DynamicImage::from(deep.clone()).into_luma16();
    assert_eq!(through_file("deep-grey.png", deep_grey), expected);
    let deep_alpha = DynamicImage::from(deep).into_rgba16();
    assert_eq!(through_file("deep-alpha.png", deep_alpha), rgb);
}

#[test]
fn transparent_pixels_are_blended_with_white() {
    let mut image = RgbaImage::from_pixel(3, 1, Rgba([10, 20, 30, 255]));
    image.put_pixel(1, 0, Rgba([10, 20, 30, 0]));
    image.put_pixel(2, 0, Rgba([0, 100, 255, 51]));
    let expected = RgbImage::from_raw(3, 1, vec![10, 20, 30, 255, 255, 255, 204, 224, 255]);
    assert_eq!(through_file("alpha.png", image), expected.unwrap());
}

#[test]
fn masks_are_brightness_and_alpha_is_returned_apart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mask.png");
    let pixels = [[255, 255, 255, 255], [255, 255, 255, 51], [0, 0, 0, 255], [80, 80, 80, 255]];
    let image = RgbaImage::from_raw(4, 1, pixels.concat()).unwrap();
    image.save(&path).unwrap();
    assert_eq!(read_mask(&path).unwrap().into_raw(), [255, 51, 0, 80]);
    let (rgb, alpha) = read_rgb_and_alpha(&path).unwrap();
    assert_eq!(rgb, read_rgb(&path).unwrap());
    assert_eq!(alpha.unwrap().into_raw(), [255, 51, 255, 255]);
    DynamicImage::from(image).into_rgb16().save(&path).unwrap();
    assert_eq!(read_mask(&path).unwrap().into_raw(), [255, 255, 0, 80]);
    assert_eq!(read_rgb_and_alpha(&path).unwrap().1, None);
}

/// The eight orientations of EXIF 2.32, 4.6.4 (A), as a viewer shows them.
#[test]
fn every_exif_orientation_is_applied() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("photo.jpg");
    // The image is smooth, and differs from its rotations and reflections.
    let stored = RgbImage::from_fn(32, 16, |x, y| Rgb([(7 * x) as u8, (14 * y) as u8, 60]));
    let expected = [
        stored.clone(),
        imageops::flip_horizontal(&stored),
        imageops::rotate180(&stored),
        imageops::flip_vertical(&stored),
        imageops::flip_horizontal(&imageops::rotate90(&stored)),
        imageops::rotate90(&stored),
        imageops::flip_horizontal(&imageops::rotate270(&stored)),
        imageops::rotate270(&stored),
    ];
    for (orientation, expected) in (1..).zip(expected) {
        // A TIFF header and one entry: tag 0x0112, orientation.
        let mut exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
        let mut encoder = JpegEncoder::new_with_quality(std::fs::File::create(&path).unwrap(), 100);
        encoder.set_exif_metadata(exif).unwrap();
        encoder.write_image(&stored, 32, 16, image::ExtendedColorType::Rgb8).unwrap();
        let found = read_rgb(&path).unwrap();
        assert_eq!(found.dimensions(), expected.dimensions());
        let pairs = found.as_raw().iter().zip(expected.as_raw());
        let worst = pairs.map(|(a, b)| a.abs_diff(*b)).max().unwrap();
        // The bound is for a lossy file; a wrong orientation differs by 200.
        assert!(worst < 16, "{orientation}: {worst}");
    }
}

/// A JPEG is refused wherever it is truncated, with and without an embedded preview. The decoder alone fills
/// with grey.
#[test]
fn a_truncated_jpeg_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("photo.jpg");
    let encode = |image: &RgbImage, exif: Option<&[u8]>| {
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
        exif.into_iter().for_each(|exif| encoder.set_exif_metadata(exif.to_vec()).unwrap());
        let (width, height) = image.dimensions();
        encoder.write_image(image, width, height, image::ExtendedColorType::Rgb8).unwrap();
        bytes
    };
    let preview = encode(&gradient(16, 16), None);
    for exif in [None, Some(preview.as_slice())] {
        let whole = encode(&gradient(120, 90), exif);
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(read_rgb(&path).unwrap().dimensions(), (120, 90));
        // Bytes after the end of the image are ignored.
        std::fs::write(&path, [&whole[..], &[0, 1, 2]].concat()).unwrap();
        read_rgb(&path).unwrap();
        let headers = whole.len() - whole.len() / 2;
        for end in (headers..whole.len() - 1).step_by(97).chain([whole.len() - 2]) {
            std::fs::write(&path, &whole[..end]).unwrap();
            let message = read_rgb(&path).unwrap_err().to_string();
            assert!(message.contains("photo.jpg"), "{message}");
        }
        let message = read_rgb(&path).unwrap_err().to_string();
        assert!(message.contains("ends in the middle of the image"), "{message}");
    }
}

/// The files of `docs/parity/pictures.py` against Pillow. Of an animation, the first frame is read.
///
/// JPEG decoders may round differently, each of three stages by one. Lossless formats may not.
#[test]
fn cmyk_and_animations_match_pillow() {
    let fixtures = soda_testing::workspace_path("crates/soda-models/tests/fixtures/pictures");
    for (name, tolerance) in [("cmyk.jpg", 3), ("animated.webp", 0), ("animated.png", 0)] {
        let found = read_rgb(&fixtures.join(name)).unwrap();
        let expected = std::fs::read(fixtures.join(format!("{name}.rgb"))).unwrap();
        assert_eq!(found.dimensions(), (32, 24), "{name}");
        let worst = found.as_raw().iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst.unwrap() <= tolerance, "{name}: {worst:?}");
    }
}

/// The header of a PNG file that claims 2^32 pixels is refused before memory is allocated.
#[test]
fn a_too_large_image_is_refused_by_its_header() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bomb.png");
    gradient(1, 1).save(&path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let crc = crc(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    std::fs::write(&path, bytes).unwrap();
    let message = read_rgb(&path).unwrap_err().to_string();
    assert!(message.contains("bomb.png has 65536 x 65536 pixels"), "{message}");
}

/// The CRC-32 of PNG chunks.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 }
        })
    })
}

#[test]
fn files_that_are_not_images_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let png = {
        let path = dir.path().join("whole.png");
        gradient(40, 40).save(&path).unwrap();
        std::fs::read(path).unwrap()
    };
    for (name, format) in [
        ("cut.bmp", ImageFormat::Bmp),
        ("cut.tif", ImageFormat::Tiff),
        ("cut.webp", ImageFormat::WebP),
    ] {
        let path = dir.path().join(name);
        gradient(40, 40).save_with_format(&path, format).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() * 2 / 3]).unwrap();
        let message = read_rgb(&path).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
    let cases = [
        (dir.path().join("nowhere.png"), "does not exist"),
        (write("empty.png", b""), "empty"),
        (write("text.png", b"I am a letter, not an image"), "image"),
        (write("cut.png", &png[..png.len() / 2]), "image"),
        (dir.path().to_path_buf(), ""),
    ];
    for (path, reason) in cases {
        let message = read_rgb(&path).unwrap_err().to_string();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(message.contains(name) && message.contains(reason), "{message}");
    }
}

#[test]
fn tensors_keep_every_byte() {
    let device = Device::default();
    let images = vec![gradient(7, 5), RgbImage::from_pixel(7, 5, Rgb([255, 0, 128]))];
    let pixels = to_tensor(&images, &device);
    assert_eq!(pixels.dims(), [2, 3, 5, 7]);
    assert_eq!(to_images(pixels.clone()).unwrap(), images);
    // Values outside of [0, 1] are clipped and do not wrap.
    let far = to_images(pixels * 100.0 - 50.0).unwrap();
    assert_eq!(far[1].get_pixel(0, 0).0[..2], [255, 0]);
}

/// As bytes, NaN would be black and infinity white.
#[test]
fn pixels_that_are_not_finite_are_an_error() {
    let pixels = to_tensor(&[gradient(7, 5), gradient(7, 5)], &Device::default());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let value = Tensor::<4>::full([1, 1, 1, 1], bad, &pixels.device());
        let damaged = pixels.clone().slice_assign([1..2, 2..3, 4..5, 6..7], value);
        let error = to_images(damaged).unwrap_err();
        assert!(
            matches!(error, ModelError::Image(ImageError::NonFinite { what: "pixels", index: 1 })),
            "{bad}: {error}"
        );
    }
}

#[test]
fn resize_center_crop_keeps_the_centre() {
    let wide = gradient(100, 40);
    let square = resize_center_crop(&wide, 40, 40);
    assert_eq!(square.get_pixel(0, 0), wide.get_pixel(30, 0));
    assert_eq!(square.get_pixel(39, 39), wide.get_pixel(69, 39));
    let tall = gradient(40, 100);
    assert_eq!(resize_center_crop(&tall, 40, 40).get_pixel(0, 0), tall.get_pixel(0, 30));
    assert_eq!(resize_center_crop(&gradient(64, 64), 64, 64), gradient(64, 64));
    // The result has the target's aspect ratio, however thin the image is.
    for (width, height, to) in [(100, 40, (20, 10)), (3, 200, (64, 64)), (1, 1, (9, 5))] {
        assert_eq!(resize_center_crop(&gradient(width, height), to.0, to.1).dimensions(), to);
    }
}

#[test]
fn a_grid_shows_every_image() {
    let rows = [vec![gradient(64, 64); 3], vec![RgbImage::from_pixel(64, 64, Rgb([1, 2, 3]))]];
    let sheet = grid(&rows);
    // The images are magnified twice, with margins of 4 pixels.
    assert_eq!(sheet.dimensions(), (3 * 132 + 4, 2 * 132 + 4));
    assert_eq!(sheet.get_pixel(0, 0), &Rgb([255; 3]));
    assert_eq!(sheet.get_pixel(4, 4 + 132), &Rgb([1, 2, 3]));
    assert_eq!(sheet.get_pixel(4 + 132, 4 + 132), &Rgb([255; 3]));
    assert_eq!(sheet.get_pixel(4 + 2 * 132 + 21, 4 + 31), &Rgb([10, 15, 25]));
    grid(&[]);
    grid(&[Vec::new()]);
}
