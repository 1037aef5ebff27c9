//! Import and export of LoRA files with parts for the text encoders, against diffusers 0.42 and PEFT 0.21.
//!
//! `docs/parity/lora_files.py` writes the files and the expected outputs.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;
#[path = "../../soda-models/tests/common/mod.rs"]
mod models;
#[path = "common/run.rs"]
mod run;

use std::path::{Path, PathBuf};

use burn::module::Module as _;
use burn::tensor::{Device, Tensor};
use common::{exported, soda, toybox};
use models::{Fixture, check, write_pipeline};
use run::run;
use soda_adapters::attach_all;
use soda_models::pipeline::Pipeline;
use soda_pipeline::interop::{Imported, import};
use soda_pipeline::{AdapterFile, Component};

/// The tolerance of soda-models' `tests/parity.rs`: f32 sums in another order through some hundred layers.
/// The adapters change the outputs by at least 1e-2.
const TOLERANCE: f32 = 2e-5;
const PROMPT: &str = "a red mug on a beach";
const SIDE: usize = 64;
const TIME: f32 = 500.0;

fn fixture(family: &str, name: &str) -> PathBuf {
    soda_testing::workspace_path("crates/soda-cli/tests/fixtures/lora").join(family).join(name)
}

fn expected(family: &str) -> Fixture {
    Fixture::open(&fixture(family, "expected.safetensors"))
}

/// Writes a tiny SDXL into a folder.
fn tiny_sdxl() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_pipeline(&Fixture::read("pipeline-sdxl"), folder.path());
    folder
}

/// The outputs of the networks, by their names in the fixture.
fn outputs(pipeline: &Pipeline, expected: &Fixture) -> Vec<(&'static str, Vec<f32>)> {
    let condition = pipeline.condition(&[PROMPT.to_owned()], 0, [SIDE, SIDE]);
    let rows = expected.floats("base.text").0[1];
    let floats = |tensor: Tensor<3>| tensor.into_data().iter::<f32>().collect::<Vec<_>>();
    let mut outputs = vec![("text", floats(condition.text.clone().narrow(1, 0, rows)))];
    if let Some(added) = &condition.added {
        outputs.push(("pooled", floats(added.pooled.clone().unsqueeze())));
    }
    let device = &pipeline.device;
    let time = Tensor::<1>::from_floats([TIME], device);
    let noise = pipeline.denoiser.forward(expected.tensor("sample", device), time, condition);
    outputs.push(("noise", floats(noise.flatten(2, 3))));
    outputs
}

/// Asserts that the outputs are those of diffusers in this case, and differ from those of the base.
#[track_caller]
fn compare(pipeline: &Pipeline, expected: &Fixture, case: &str) {
    for (name, ours) in outputs(pipeline, expected) {
        let (_, base) = expected.floats(&format!("base.{name}"));
        let moved = ours.iter().zip(&base).any(|(ours, base)| (ours - base).abs() > 1e-2);
        assert_eq!(moved, case != "base", "{case}.{name}");
        let case = format!("{case}.{name}");
        check(&case, &ours, &expected.floats(&case).1, TOLERANCE);
    }
}

fn check_import(family: &str, base: &Path) {
    let mut pipeline = Pipeline::load(base, &Device::default()).unwrap();
    let (networks, expected) = (pipeline.networks(), expected(family));
    compare(&pipeline, &expected, "base");
    let read = |name: &str| {
        let imported = import(&fixture(family, name), &networks, "base").unwrap();
        let Imported { file, unmatched, absent, .. } = imported;
        assert!(unmatched.is_empty() && absent.is_empty(), "{name}: {unmatched:?}, {absent:?}");
        file.plan(&networks).unwrap()
    };
    for (name, case, strength) in [
        ("diffusers.safetensors", "diffusers.1", 1.0),
        ("diffusers.safetensors", "diffusers.0.5", 0.5),
        ("kohya.safetensors", "kohya.1", 1.0),
        ("kohya.safetensors", "kohya.0.5", 0.5),
        ("older.safetensors", "older.1", 1.0),
        ("older.safetensors", "older.0.5", 0.5),
        ("peft", "peft.1", 1.0),
    ] {
        let adapted = read(name).at_strength(strength).unwrap().attach(networks.clone());
        pipeline.set_networks(adapted.clone());
        compare(&pipeline, &expected, case);
        pipeline.set_networks(adapted.materialize());
        compare(&pipeline, &expected, case);
    }
    let both = [(read("diffusers.safetensors"), 0.7), (read("kohya.safetensors"), 0.4)];
    pipeline.set_networks(attach_all(both, networks.clone()));
    compare(&pipeline, &expected, "both");

    pipeline.set_networks(networks.clone());
    let before = outputs(&pipeline, &expected);
    let nothing = read("diffusers.safetensors").at_strength(0.0).unwrap();
    pipeline.set_networks(nothing.attach(networks.clone()));
    assert_eq!(outputs(&pipeline, &expected), before, "strength 0 is the base to the bit");
}

#[test]
fn files_are_imported_as_by_diffusers_for_one_text_encoder() {
    check_import("sd15", &toybox("base"));
}

#[test]
fn files_are_imported_as_by_diffusers_for_two_text_encoders() {
    check_import("sdxl", tiny_sdxl().path());
}

/// Version 1 had the denoiser only. The last build that wrote version 1 imported this file from kohya's
/// format.
#[test]
fn files_of_version_1_are_read() {
    let pipeline = Pipeline::load(&toybox("base"), &Device::default()).unwrap();
    let networks = pipeline.networks();
    let file = import(&fixture("sd15", "kohya.safetensors"), &networks, "base").unwrap().file;
    let old: AdapterFile = AdapterFile::read(&fixture("", "version-1.safetensors")).unwrap();
    assert_eq!(old.header.trigger, ["sks mug"]);
    assert_eq!(old.adapters.keys().collect::<Vec<_>>(), [&Component::Unet]);
    let (old, new) = (&old.adapters[&Component::Unet], &file.adapters[&Component::Unet]);
    assert_eq!((&old.recipe.targets, &old.tensors), (&new.recipe.targets, &new.tensors));
    assert_eq!(old.recipe.method, new.recipe.method);
    // The hash of the base was that of all values. It is still checked.
    assert!(old.plan(&pipeline.denoiser).is_ok());
    let mut foreign = old.clone();
    foreign.recipe.base_hash = "0".repeat(64);
    assert!(foreign.plan(&pipeline.denoiser).is_err());
}

#[track_caller]
fn refused(folder: &Path, args: &[&str]) -> String {
    let output = soda(folder, args);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The files need no base to be told apart.
#[test]
fn inspect_tells_what_a_file_of_another_tool_is() {
    let desk = tempfile::tempdir().unwrap();
    let foreign = |name: &str| {
        soda_testing::workspace_path("crates/soda-pipeline/tests/fixtures/foreign").join(name)
    };
    for (path, expected) in [
        (
            fixture("sdxl", "kohya.safetensors"),
            &[
                "LoRA adapter in the names of kohya's sd-scripts, for Stable Diffusion XL",
                "of the second text encoder",
                "loaded by: kohya's sd-scripts, A1111, ComfyUI, diffusers, and by soda import",
            ][..],
        ),
        (fixture("sd15", "older.safetensors"), &["LoRA adapter in the names of diffusers"]),
        (
            fixture("sd15", "peft"),
            &["unet: PEFT directory, LORA", "target_modules: ", "rank: 2 to 3"],
        ),
        (foreign("dora_out.safetensors"), &["DoRA adapter", "1 layer of the UNet", "rank: 4"]),
        (foreign("lokr_full.safetensors"), &["LoKr adapter in the names of kohya's sd-scripts"]),
        (foreign("kohya_oft.safetensors"), &["OFT adapter in the names of kohya's sd-scripts"]),
        (foreign("mixed.safetensors"), &["LoKr, LoRA adapter"]),
        (foreign("diff160.safetensors"), &["delta adapter"]),
        (toybox("base/unet/diffusion_pytorch_model.safetensors"), &["one network: UNet"]),
        (fixture("sd15", "expected.safetensors"), &["safetensors file of an unknown kind"]),
    ] {
        let said = run(desk.path(), &["inspect", path.to_str().unwrap()]);
        for part in expected {
            assert!(said.contains(part), "{}: {said}", path.display());
        }
    }
    let folder = desk.path().join("broken");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("adapter_config.json"), "{").unwrap();
    let output = soda(desk.path(), &["inspect", "broken"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn an_imported_file_gives_the_images_of_the_merged_model() {
    let desk = tempfile::tempdir().unwrap();
    let folder = desk.path();
    let base = toybox("base").to_str().unwrap().to_owned();
    for (name, weights) in [("kohya", 8), ("diffusers", 8)] {
        let (file, out) = (fixture("sd15", &format!("{name}.safetensors")), format!("{name}.st"));
        let said = run(folder, &["import", file.to_str().unwrap(), "--base", &base, "--out", &out]);
        let count = format!("; {weights} weights matched, 0 names left out");
        assert!(said.contains(&count), "{said}");
    }

    let said = run(folder, &["inspect", "kohya.st"]);
    let parts = "lora on 4 weights of the UNet (3808 numbers), lora on 4 weights of the text encoder (4800 numbers)";
    assert!(said.contains(parts), "{said}");
    let tensor = "text_encoder.text_model.encoder.layers.1.mlp.fc1.weight.lora.a [160, 2]";
    assert!(said.contains(tensor), "{said}");

    let draw = |base: &str, out: &str, more: &[&str]| {
        let fixed = ["generate", "--base", base, "--prompt", PROMPT, "--steps", "2", "--out", out];
        run(folder, &[&fixed[..], more].concat());
        image::open(folder.join(out).join("seed0-00.png")).unwrap().to_rgb8().into_raw()
    };
    run(folder, &["merge", "--base", &base, "--adapter", "kohya.st", "--out", "merged"]);
    let (plain, merged) = (draw(&base, "plain", &[]), draw("merged", "of-merged", &[]));
    assert!(plain != merged);
    assert!(draw(&base, "adapted", &["--adapter", "kohya.st"]) == merged);
    assert!(draw(&base, "off", &["--adapter", "kohya.st", "--strength", "0"]) == plain);

    // The bundled weights are f16, which bf16 rounds. An adapter is made from the weights of the file.
    let dora = soda_testing::workspace_path(
        "crates/soda-pipeline/tests/fixtures/foreign/dora_out.safetensors",
    );
    run(folder, &["import", dora.to_str().unwrap(), "--base", &base, "--out", "dora.st"]);
    for adapter in ["kohya.st", "dora.st"] {
        let whole = draw(&base, &format!("f32-{adapter}"), &["--adapter", adapter]);
        for dtype in ["f16", "bf16"] {
            let out = format!("{dtype}-{adapter}");
            let fixed = ["generate", "--base", &base, "--prompt", PROMPT, "--adapter", adapter];
            let more = ["--steps", "2", "--dtype", dtype, "--out", &out];
            let said = run(folder, &[&fixed[..], &more].concat());
            assert!(!said.contains("warning"), "{said}");
            let drawn = image::open(folder.join(&out).join("seed0-00.png")).unwrap();
            let drawn = drawn.to_rgb8().into_raw();
            let far = drawn.iter().zip(&whole).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(drawn != plain && far < Some(48), "{out}: {far:?}");
        }
    }

    // Two files with weights, against diffusers.
    let two = ["--subject", "diffusers.st", "--style", "kohya.st", "--weights", "0.7,0.4"];
    run(folder, &[&["merge", "--base", &base, "--out", "both"][..], &two].concat());
    let both = Pipeline::load(&folder.join("both"), &Device::default()).unwrap();
    compare(&both, &expected("sd15"), "both");
}

#[test]
fn an_export_with_text_encoders_imports_as_the_same_adapter() {
    for (family, sdxl) in [("sd15", None), ("sdxl", Some(tiny_sdxl()))] {
        let desk = tempfile::tempdir().unwrap();
        let folder = desk.path();
        let base = sdxl.map_or_else(|| toybox("base"), tempfile::TempDir::keep);
        let base = base.to_str().unwrap();
        let file = fixture(family, "kohya.safetensors");
        run(folder, &["import", file.to_str().unwrap(), "--base", base, "--out", "a.st"]);
        for format in ["kohya", "diffusers", "peft", "diff"] {
            let (again, merged) = (format!("{format}.st"), format!("{format}-merged"));
            let export = ["export", "--base", base, "--adapter", "a.st", "--format", format];
            let out = &exported(format, format);
            run(folder, &[&export[..], &["--dtype", "f32", "--out", out]].concat());
            let said = run(folder, &["import", out, "--base", base, "--out", &again]);
            assert!(said.contains(", 0 names left out"), "{said}");
            run(folder, &["merge", "--base", base, "--adapter", &again, "--out", &merged]);
            let pipeline = Pipeline::load(&folder.join(merged), &Device::default()).unwrap();
            compare(&pipeline, &expected(family), "kohya.1");
        }
        let encoder = if family == "sdxl" { "te1" } else { "te" };
        let name = format!("lora_{encoder}_text_model_encoder_layers_1_mlp_fc2.diff");
        let bytes = std::fs::read(folder.join("diff.safetensors")).unwrap();
        assert!(safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor(&name).is_ok());
        if family == "sdxl" {
            std::fs::remove_dir_all(base).unwrap();
        }
    }
}

#[test]
fn parts_for_another_base_are_named() {
    let desk = tempfile::tempdir().unwrap();
    let folder = desk.path();
    let (base, sdxl) = (toybox("base"), tiny_sdxl());
    let base = base.to_str().unwrap();

    // A file with one more text encoder than the base.
    let second = fixture("sdxl", "kohya.safetensors");
    let (one, two) = (fixture("sd15", "kohya.safetensors"), std::fs::read(&second).unwrap());
    let mixed = mix(&std::fs::read(one).unwrap(), &two, "lora_te2_");
    std::fs::write(folder.join("mixed.safetensors"), mixed).unwrap();
    let said = run(folder, &["import", "mixed.safetensors", "--base", base, "--out", "mixed.st"]);
    let sentence = "warning: 15 tensors are for a second text encoder (such as lora_te2_";
    assert!(said.contains(sentence) && said.contains("8 weights matched, 15 names"), "{said}");

    // A file of which nothing fits.
    let only = mix(&[], &two, "lora_te2_");
    std::fs::write(folder.join("second.safetensors"), only).unwrap();
    let import = ["import", "second.safetensors", "--base", base, "--out", "no.st"];
    let message = refused(folder, &import);
    assert!(
        message.contains("nothing in second.safetensors belongs to a weight of this base"),
        "{message}"
    );
    assert!(message.contains("lora_te2_") && !folder.join("no.st").exists(), "{message}");

    // A SODA adapter for the larger base.
    let (file, of) = (second.to_str().unwrap(), sdxl.path().to_str().unwrap());
    run(folder, &["import", file, "--base", of, "--out", "sdxl.st"]);
    let mut adapter: AdapterFile = AdapterFile::read(&folder.join("sdxl.st")).unwrap();
    adapter.adapters.retain(|component, _| *component == Component::TextEncoder2);
    adapter.write(&folder.join("second.st")).unwrap();
    let message =
        refused(folder, &["merge", "--base", base, "--adapter", "second.st", "--out", "m"]);
    assert!(
        message.contains("for a second text encoder too, which this base does not have"),
        "{message}"
    );
}

/// A safetensors file with the tensors of `one`, and the tensors of `other` whose names begin with `prefix`.
fn mix(one: &[u8], other: &[u8], prefix: &str) -> Vec<u8> {
    let read = |bytes| safetensors::SafeTensors::deserialize(bytes).unwrap();
    let one = (!one.is_empty()).then(|| read(one));
    let other = read(other);
    let chosen = other.iter().filter(|(name, _)| name.starts_with(prefix));
    let all = one.iter().flat_map(|one| one.iter()).chain(chosen);
    safetensors::serialize(all, None).unwrap()
}

fn toyflux() -> String {
    let base = soda_testing::workspace_path("examples/toyflux/base");
    base.to_str().unwrap().to_owned()
}

/// A LoRA for toyflux in the names of ComfyUI and ai-toolkit.
fn flux_lora() -> Vec<u8> {
    let layers = [
        ("diffusion_model.double_blocks.0.img_attn.qkv", [576, 192]),
        ("diffusion_model.single_blocks.2.linear2", [192, 768]),
        ("diffusion_model.final_layer.adaLN_modulation.1", [384, 192]),
    ];
    let tensors = layers.into_iter().flat_map(|(layer, [outputs, inputs])| {
        [("A", [3, inputs]), ("B", [outputs, 3])].map(|(part, shape)| {
            let key = format!("{layer}.lora_{part}.weight");
            let values = models::uniform(&key, shape[0] * shape[1]).into_iter();
            (key, shape, values.flat_map(|value| (value * 0.1).to_le_bytes()).collect::<Vec<u8>>())
        })
    });
    let tensors: Vec<_> = tensors.collect();
    let views = tensors.iter().map(|(key, shape, bytes)| {
        let view =
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes);
        (key.as_str(), view.unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

#[test]
fn files_for_flux2_travel_in_and_out() {
    let desk = tempfile::tempdir().unwrap();
    let (folder, base) = (desk.path(), toyflux());
    std::fs::write(folder.join("theirs.safetensors"), flux_lora()).unwrap();
    let import = |file: &str, out: &str| {
        let said = run(folder, &["import", file, "--base", &base, "--out", out]);
        assert!(said.contains("; 5 weights matched, 0 names left out"), "{said}");
    };
    // The weights of the transformer after a merge.
    let merge = |adapter: &str| {
        let out = format!("{adapter}-merged");
        run(folder, &["merge", "--base", &base, "--adapter", adapter, "--out", &out]);
        std::fs::read(folder.join(out).join("transformer/diffusion_pytorch_model.safetensors"))
            .unwrap()
    };
    let floats = |file: &[u8]| -> Vec<f32> {
        let tensors = safetensors::SafeTensors::deserialize(file).unwrap();
        let mut tensors: Vec<_> = tensors.iter().collect();
        tensors.sort_by_key(|(name, _)| name.to_string());
        let chunks = tensors.iter().flat_map(|(_, view)| view.data().as_chunks::<4>().0);
        chunks.map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    import("theirs.safetensors", "a.st");
    let said = run(folder, &["inspect", "a.st"]);
    assert!(said.contains("lora on 5 weights of the transformer"), "{said}");
    let ours = merge("a.st");
    for format in ["kohya", "diffusers", "peft", "diff"] {
        let export = ["export", "--base", &base, "--adapter", "a.st", "--format", format];
        let out = &exported(format, format);
        run(folder, &[&export[..], &["--error", "0", "--out", out]].concat());
        let again = format!("{format}.st");
        import(out, &again);
        let error = soda_testing::relative_error(&floats(&merge(&again)), &floats(&ours));
        assert!(error < 1e-6, "{format}: {error:.1e}");
    }

    let single = ["convert", "--base", "a.st-merged", "--out", "single.safetensors"];
    run(folder, &single);
    let said = run(folder, &["inspect", "single.safetensors"]);
    assert!(said.contains("  double_blocks.0.img_attn.qkv.weight F32 [576,192]"), "{said}");
    let without = ["convert", "--base", "single.safetensors", "--out", "back"];
    assert!(refused(folder, &without).contains("--config"));
    run(folder, &[&without[..], &["--config", &base]].concat());
    let back = folder.join("back/transformer/diffusion_pytorch_model.safetensors");
    assert!(std::fs::read(back).unwrap() == ours, "a single file loses nothing");
}

#[test]
fn adapters_of_another_family_are_refused_in_one_sentence() {
    let desk = tempfile::tempdir().unwrap();
    let (folder, flux, toybox) = (desk.path(), toyflux(), toybox("base"));
    let toybox = toybox.to_str().unwrap();
    std::fs::write(folder.join("flux.safetensors"), flux_lora()).unwrap();
    let sdxl = fixture("sdxl", "kohya.safetensors");
    run(folder, &["import", "flux.safetensors", "--base", &flux, "--out", "flux.st"]);
    for (args, expected) in [
        (
            ["import", sdxl.to_str().unwrap(), "--base", &flux, "--out", "no"],
            "is for Stable Diffusion, and the base is FLUX.2; import it on a base of its own kind",
        ),
        (
            ["import", "flux.safetensors", "--base", toybox, "--out", "no"],
            "is for FLUX, and the base",
        ),
    ] {
        let output = soda(folder, &args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(expected), "{message}");
    }
    let merge = ["merge", "--base", toybox, "--adapter", "flux.st", "--out", "no"];
    let message = refused(folder, &merge);
    assert!(message.contains("for a transformer too, which this base does not have"), "{message}");
    assert!(!folder.join("no").exists());
}
