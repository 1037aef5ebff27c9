//! `soda generate` and `soda convert`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::LazyLock;

mod common;

use common::{soda, toybox};

static BASE: LazyLock<String> = LazyLock::new(|| toybox("base").to_str().unwrap().to_owned());

#[track_caller]
fn run(folder: &Path, args: &[&str]) {
    let output = soda(folder, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The message of a command that fails.
#[track_caller]
fn fail(folder: &Path, args: &[&str]) -> String {
    let output = soda(folder, args);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn a_model_is_the_same_after_both_conversions() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    run(folder, &["convert", "--base", &BASE, "--out", "one.safetensors", "--dtype", "f16"]);
    let back = ["convert", "--base", "one.safetensors", "--config", &BASE, "--out", "again"];
    run(folder, &[&back[..], &["--dtype", "f16"]].concat());
    // The bundled weights are f16, so that no bit is lost.
    for part in ["unet", "vae"] {
        let file = format!("{part}/diffusion_pytorch_model.safetensors");
        let (ours, theirs) = (folder.join("again").join(&file), Path::new(&*BASE).join(&file));
        assert!(read(&ours) == read(&theirs), "{part}");
    }

    assert!(fail(folder, &["convert", "--base", &BASE, "--out", "again"]).contains("exists"));
    let lacks = fail(folder, &["convert", "--base", "one.safetensors", "--out", "third"]);
    assert!(lacks.contains("--config"), "{lacks}");
}

#[test]
fn an_image_has_its_generation_settings() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let draw = ["generate", "--base", &BASE, "--steps", "2", "--prompt", "a r\u{f6}d mug"];
    let more = ["--scheduler", "dpm++", "--karras", "--width", "96", "--negative", "blue"];
    run(folder, &[&draw[..], &more].concat());
    let file = std::fs::File::open(folder.join("seed0-00.png")).unwrap();
    let reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
    let info = reader.info();
    assert_eq!((info.width, info.height), (96, 64));
    let text = info.utf8_text[0].get_text().unwrap();
    for part in [
        "a r\u{f6}d mug\nNegative prompt: blue\nSteps: 2, Sampler: DPM++ 2M, Schedule type: Karras, \
         CFG scale: 5, Seed: 0",
        "Size: 96x64, Model: base",
    ] {
        assert!(text.contains(part), "{text}");
    }

    // Image-to-image: the distance from the initial image grows with the strength.
    let start = folder.join("seed0-00.png");
    let mut distances = Vec::new();
    for (seed, strength) in [("1", "0.1"), ("2", "1.0")] {
        let init = ["--init", start.to_str().unwrap(), "--strength-of-init", strength];
        let rest = ["--width", "96", "--seed", seed, "--steps", "10"];
        let draw = ["generate", "--base", &BASE, "--prompt", "a blue ball"];
        run(folder, &[&draw[..], &init, &rest].concat());
        let read = |path: &Path| soda_models::image::read_rgb(path).unwrap();
        let (a, b) = (read(&start), read(&folder.join(format!("seed{seed}-00.png"))));
        distances.push(a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b) as u64).sum::<u64>());
    }
    assert!(2 * distances[0] < distances[1], "{distances:?}");
}

#[test]
fn invalid_generation_settings_are_reported_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let draw = ["generate", "--base", &BASE, "--prompt", "a mug", "--steps", "2"];
    for (more, named) in [
        (&["--width", "70"][..], "multiples of 4"),
        (&["--karras"], "--karras"),
        (&["--clip-skip", "99"], "clip_skip"),
        (&["--init", "nowhere.png"], "nowhere.png"),
        (&["--variant", "fp8"], "fp8"),
    ] {
        let error = fail(dir.path(), &[&draw[..], more].concat());
        assert!(error.contains(named) && error.trim_end().lines().count() == 1, "{error}");
    }
}
