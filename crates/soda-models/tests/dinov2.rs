//! DINOv2 as a judge: selected by its config, on images of the size that its image processor makes.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use burn::tensor::Device;
use common::Fixture;
use image::RgbImage;
use soda_models::metrics::Judges;

/// Writes the bundled CLIP and the tiny DINOv2 of a fixture, with images preprocessed to `size`.
fn write(dir: &Path, name: &str, size: u32) {
    let clip = soda_testing::workspace_path("examples/toybox/eval/clip");
    for (part, from) in [("clip", Some(clip)), ("dino", None)] {
        let to = dir.join(part);
        std::fs::create_dir_all(&to).unwrap();
        for entry in from.iter().flat_map(|from| std::fs::read_dir(from).unwrap()) {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    Fixture::read(name).write_model(&dir.join("dino"));
    // As in facebook/dinov2-base, except for the sizes.
    let pixels = serde_json::json!({
        "crop_size": {"height": size, "width": size},
        "do_center_crop": true,
        "do_convert_rgb": true,
        "do_normalize": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "BitImageProcessor",
        "image_std": [0.229, 0.224, 0.225],
        "resample": 3,
        "rescale_factor": 1.0 / 255.0,
        "size": {"shortest_edge": size + 8},
    });
    std::fs::write(dir.join("dino/preprocessor_config.json"), pixels.to_string()).unwrap();
}

#[test]
fn dinov2_scores_images_of_another_size_than_that_of_training() {
    for name in ["vit-dinov2", "vit-dinov2-registers"] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), name, 56);
        check_scores(dir.path());
    }
}

fn check_scores(dir: &Path) {
    let judges = Judges::load(dir, &Device::default()).unwrap();
    let image =
        |shade: u8| RgbImage::from_fn(90, 70, |x, y| image::Rgb([x as u8, shade, 3 * y as u8]));
    let images = [image(0), image(200)];
    let scores = judges.dino_pairs(&images, &images).unwrap();
    assert!(scores.iter().all(|score| (score - 1.0).abs() < 1e-6), "{scores:?}");
    let other = judges.dino_pairs(&images[..1], &images[1..]).unwrap();
    assert!(other[0] < 0.999, "{other:?}");
}

#[test]
fn unsupported_judges_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let error = || Judges::load(dir.path(), &Device::default()).unwrap_err().to_string();
    write(dir.path(), "vit-dinov2", 13);
    assert!(error().contains("at least 14x14"), "{}", error());
    let config = dir.path().join("dino/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    for (from, to, named) in [
        ("\"dinov2\"", "\"dinov3_vit\"", "model_type"),
        // The config promises registers, and the file has none.
        ("\"dinov2\"", "\"dinov2_with_registers\"", "register_tokens"),
        ("\"use_swiglu_ffn\": false", "\"use_swiglu_ffn\": true", "mlp.fc1"),
        ("\"hidden_act\": \"gelu\"", "\"hidden_act\": \"swi_glu\"", "hidden_act"),
        ("\"mlp_ratio\": 4", "\"mlp_ratio\": 0", "mlp_ratio"),
    ] {
        assert!(text.contains(from));
        std::fs::write(&config, text.replace(from, to)).unwrap();
        assert!(error().contains(named), "{}", error());
    }
}
