//! `soda generate` and `soda convert`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

mod common;

use common::{soda, toybox};

static BASE: LazyLock<String> = LazyLock::new(|| toybox("base").to_str().unwrap().to_owned());

/// What a command prints.
#[track_caller]
fn run(folder: &Path, args: &[&str]) -> String {
    let output = soda(folder, args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
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
fn large_images_are_decoded_in_tiles() {
    let dir = tempfile::tempdir().unwrap();
    let size = ["--base", &BASE, "--width", "96", "--height", "64"];
    let drawn = |out: &str, more: &[&str]| draw(dir.path(), out, &[&size[..], more].concat()).0;
    let whole = drawn("whole", &[]);
    // The bundled model was trained on 64 pixels.
    let tiled = drawn("tiled", &["--tiling"]);
    assert_eq!(drawn("of_side", &["--tile-size", "64"]), tiled);
    assert_eq!(drawn("one_tile", &["--tile-size", "96"]), whole);
    let far = |a: &[u8]| a.iter().zip(&whole).map(|(a, b)| a.abs_diff(*b)).max();
    assert_eq!(tiled.len(), whole.len());
    assert!(tiled != whole && far(&tiled) < Some(64), "{:?}", far(&tiled));
}

#[test]
fn a_step_of_the_bundled_networks_is_timed() {
    let dir = tempfile::tempdir().unwrap();
    let bench = ["bench", "--device", "cpu", "--steps", "1", "--method", "lora", "--rank", "4"];
    for (arch, trained) in [("toybox", 50_176), ("toyflux", 93_696)] {
        for checkpointing in ["none", "block"] {
            let more = ["--arch", arch, "--checkpointing", checkpointing, "--json"];
            let line = run(dir.path(), &[&bench[..], &more].concat());
            let report: serde_json::Value = serde_json::from_str(line.trim()).unwrap();
            // The numbers of the same LoRA on diffusers' module (benches/gpu/diffusers_step.py).
            assert_eq!(report["trained"], trained, "{line}");
            assert!(report["step_ms"].as_f64().is_some_and(|time| time > 0.0), "{line}");
        }
    }
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

/// A copy of the bundled model, to be changed.
fn copied_base(folder: &Path) -> PathBuf {
    let copy = folder.join("model");
    for part in ["scheduler", "text_encoder", "tokenizer", "unet", "vae"] {
        std::fs::create_dir_all(copy.join(part)).unwrap();
        for entry in std::fs::read_dir(Path::new(&*BASE).join(part)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::write(copy.join(part).join(path.file_name().unwrap()), read(&path)).unwrap();
        }
    }
    std::fs::write(
        copy.join("model_index.json"),
        read(&Path::new(&*BASE).join("model_index.json")),
    )
    .unwrap();
    copy
}

/// The fields of a model's `scheduler_config.json`.
fn schedule(model: &Path) -> serde_json::Map<String, serde_json::Value> {
    let path = model.join("scheduler/scheduler_config.json");
    serde_json::from_slice(&read(&path)).unwrap()
}

/// Draws with `args`, and returns the pixels and what was said.
#[track_caller]
fn draw(folder: &Path, out: &str, args: &[&str]) -> (Vec<u8>, String) {
    let draw = ["generate", "--prompt", "a mug", "--steps", "2", "--out", out];
    let output = soda(folder, &[&draw[..], args].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {said}");
    let file = std::fs::File::open(folder.join(out).join("seed0-00.png")).unwrap();
    let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    (pixels, said)
}

/// The class of a sampler decides what draws by default, and nothing else of a model.
#[test]
fn a_model_with_another_sampler_is_used_and_converted() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let model = copied_base(folder);
    let (plain, _) = draw(folder, "plain", &["--base", &BASE, "--scheduler", "ddim"]);
    let fields = schedule(&model);
    for (class, settings) in [
        ("DEISMultistepScheduler", r#"{"solver_type": "logrho", "algorithm_type": "deis"}"#),
        ("HeunDiscreteScheduler", r#"{"use_karras_sigmas": true}"#),
        ("DPMSolverSinglestepScheduler", r#"{"predict_x0": true, "solver_order": 2}"#),
        ("TCDScheduler", r#"{"original_inference_steps": 50}"#),
        ("DDIMScheduler", r#"{"predict_epsilon": true, "a_later_argument": null}"#),
    ] {
        let mut fields = fields.clone();
        fields.insert("_class_name".to_owned(), class.into());
        let settings: serde_json::Map<_, _> = serde_json::from_str(settings).unwrap();
        fields.extend(settings);
        let text = serde_json::to_string(&fields).unwrap();
        std::fs::write(model.join("scheduler/scheduler_config.json"), text).unwrap();
        let (pixels, _) = draw(folder, class, &["--base", "model", "--scheduler", "ddim"]);
        assert!(pixels == plain, "{class} draws another picture with ddim");
        let copy = format!("{class}-copy");
        run(folder, &["convert", "--base", "model", "--out", &copy]);
        let kept = &schedule(&folder.join(copy))["_class_name"];
        assert_eq!(kept, class, "the copy has another sampler");
        if class == "TCDScheduler" {
            let (_, said) = draw(folder, "own", &["--base", "model"]);
            assert!(said.contains(class) && said.contains("--scheduler"), "{said}");
        }
    }
}

#[test]
fn a_variant_that_some_parts_have_is_read_with_plain_files_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let model = copied_base(folder);
    let unet = |name: &str| model.join("unet").join(name);
    let plain = unet("diffusion_pytorch_model.safetensors");
    std::fs::rename(plain, unet("diffusion_pytorch_model.fp16.safetensors")).unwrap();
    let (expected, _) = draw(folder, "plain", &["--base", &BASE]);
    let (pixels, said) = draw(folder, "mixed", &["--base", "model", "--variant", "fp16"]);
    assert!(pixels == expected);
    assert!(said.contains("plain files of text_encoder, vae"), "{said}");
    let (pixels, said) = draw(folder, "unsaid", &["--base", "model"]);
    assert!(pixels == expected && said.contains("fp16"), "{said}");
    let other = ["generate", "--base", "model", "--prompt", "a", "--variant", "bf16"];
    assert!(
        fail(folder, &other).contains("diffusion_pytorch_model.bf16.safetensors does not exist")
    );
}

/// NoobAI and others mark v-prediction and zero terminal SNR by empty tensors, as A1111 reads them.
#[test]
fn marks_of_prediction_in_a_single_file_are_followed() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    run(folder, &["convert", "--base", &BASE, "--out", "plain.safetensors"]);
    let bytes = read(&folder.join("plain.safetensors"));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let empty = || safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![0], &[]);
    let marks = ["v_pred", "ztsnr"].map(|name| (name.to_owned(), empty().unwrap()));
    let marked = safetensors::serialize(file.tensors().into_iter().chain(marks), None).unwrap();
    std::fs::write(folder.join("marked.safetensors"), marked).unwrap();
    let convert = ["convert", "--base", "marked.safetensors", "--config", &BASE, "--out", "model"];
    let output = soda(folder, &convert);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("v_pred"), "{said}");
    let fields = schedule(&folder.join("model"));
    assert_eq!(fields["prediction_type"], "v_prediction");
    assert_eq!(fields["rescale_betas_zero_snr"], true);
    assert_eq!(fields["timestep_spacing"], "trailing");
}

/// Pictures of a quantized base are near those in floats, and an adapter is merged before.
#[test]
fn a_quantized_base_draws_nearly_the_same_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let data = toybox("subjects/castle_mug");
    let train = ["train", "--base", &BASE, "--data", data.to_str().unwrap(), "--name", "run"];
    let short = ["--method", "lora", "--steps", "2", "--batch-size", "1", "--sample", "a sks mug"];
    run(folder, &[&train[..], &short, &["--set", "samples.steps=1"]].concat());
    let draw = |out: &str, options: &[&str]| {
        let request = ["generate", "--base", &BASE, "--prompt", "a sks mug", "--out", out];
        run(folder, &[&request[..], &["--steps", "4"], options].concat());
        image::open(folder.join(out).join("seed0-00.png")).unwrap().into_rgb8().into_raw()
    };
    let adapter = ["--adapter", "runs/run/adapter.safetensors"];
    for (name, more) in [("plain", &[][..]), ("adapted", &adapter)] {
        let floats = draw(name, more);
        let int8 = draw(&format!("{name}-int8"), &[more, &["--base-precision", "int8"]].concat());
        assert_ne!(int8, floats);
        let off = soda_testing::max_abs_diff(&int8, &floats);
        assert!(off <= 24.0, "{name}: {off} of 255");
        let fp8 = [more, &["--base-precision", "fp8"]].concat();
        let weights_only = draw(&format!("{name}-fp8"), &fp8);
        let both = [&fp8[..], &["--activation-precision", "fp8"]].concat();
        let both = draw(&format!("{name}-fp8-activations"), &both);
        assert_ne!(both, weights_only);
        let off: u64 = both.iter().zip(&floats).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        // On average three of 255.
        assert!(off <= 3 * floats.len() as u64, "{name}: {off}");
    }
    for (format, expected) in
        [(&[][..], "--base-precision"), (&["--base-precision", "int8"], "--base-precision fp8")]
    {
        let request =
            ["generate", "--base", &BASE, "--prompt", "a mug", "--activation-precision", "fp8"];
        let error = fail(folder, &[&request[..], format].concat());
        assert!(error.contains(expected), "{error}");
    }
    let error = fail(folder, &["generate", "--base", &BASE, "--base-precision", "int3"]);
    assert!(error.contains("int8, fp8, nf4"), "{error}");
}
