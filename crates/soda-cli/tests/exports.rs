//! Exported files as other tools take them: names, metadata, precision and generation parameters.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;
#[path = "../../soda-models/tests/common/mod.rs"]
mod models;
#[path = "common/run.rs"]
mod run;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use common::{exported, soda, toybox};
use models::{Fixture, write_pipeline};
use run::run;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest as _, Sha256};

fn fixture(family: &str) -> Vec<u8> {
    let fixtures = soda_testing::workspace_path("crates/soda-cli/tests/fixtures/lora");
    std::fs::read(fixtures.join(family).join("kohya.safetensors")).unwrap()
}

/// A folder with `a.st`, an adapter of kohya's format imported for the base `base`.
struct Desk {
    folder: tempfile::TempDir,
    base: String,
}

impl Desk {
    fn new(family: &str) -> Self {
        Self::with_file(family, &fixture(family))
    }

    fn with_file(family: &str, file: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = if family == "sdxl" {
            let base = folder.path().join("base");
            std::fs::create_dir(&base).unwrap();
            write_pipeline(&Fixture::read("pipeline-sdxl"), &base);
            base
        } else {
            toybox("base")
        };
        let desk = Self { base: base.to_str().unwrap().to_owned(), folder };
        std::fs::write(desk.path("theirs.st"), file).unwrap();
        run(desk.root(), &["import", "theirs.st", "--base", &desk.base, "--out", "a.st"]);
        desk
    }

    fn root(&self) -> &Path {
        self.folder.path()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    fn arguments<'a>(&'a self, format: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let adapter = ["export", "--base", &self.base, "--adapter", "a.st", "--format", format];
        [&adapter[..], more].concat()
    }

    /// Exports the adapter and returns the file with what was printed.
    fn export(&self, format: &str, more: &[&str]) -> (Exported, String) {
        let _ = std::fs::remove_file(self.path("out.safetensors"));
        let arguments = self.arguments(format, &[&["--out", "out.safetensors"], more].concat());
        let printed = run(self.root(), &arguments);
        (Exported(std::fs::read(self.path("out.safetensors")).unwrap()), printed)
    }

    #[track_caller]
    fn refused(&self, format: &str, more: &[&str]) -> String {
        let before = self.names();
        let out = exported("refused", format);
        let output =
            soda(self.root(), &self.arguments(format, &[&["--out", &*out], more].concat()));
        assert_eq!(output.status.code(), Some(1), "{more:?}");
        assert_eq!(self.names(), before, "nothing is left behind");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn names(&self) -> Vec<std::ffi::OsString> {
        let entries = std::fs::read_dir(self.root()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }
}

/// The bytes of an exported file.
struct Exported(Vec<u8>);

impl Exported {
    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    fn metadata(&self) -> HashMap<String, String> {
        SafeTensors::read_metadata(&self.0).unwrap().1.metadata().clone().unwrap()
    }

    /// The types of the tensors whose names end so.
    fn dtypes(&self, suffix: &str) -> Vec<Dtype> {
        let tensors = self.tensors();
        let named = tensors.iter().filter(|(name, _)| name.ends_with(suffix));
        let mut dtypes: Vec<_> = named.map(|(_, tensor)| tensor.dtype()).collect();
        dtypes.dedup();
        dtypes
    }
}

#[test]
fn files_for_sdxl_have_the_names_and_metadata_that_other_tools_expect() {
    let desk = Desk::new("sdxl");
    for (format, module, args) in
        [("kohya", "networks.lora", "{}"), ("diff", "lycoris.kohya", r#"{"algo":"full"}"#)]
    {
        let (file, _) = desk.export(format, &[]);
        for name in file.tensors().names() {
            let original = ["input_blocks_", "middle_block_", "output_blocks_"]
                .iter()
                .any(|blocks| name.starts_with(&format!("lora_unet_{blocks}")));
            let encoder = name.starts_with("lora_te1_") || name.starts_with("lora_te2_");
            assert!(original || encoder, "{format}: {name}");
        }
        let metadata = file.metadata();
        for (key, value) in [
            ("ss_base_model_version", "sdxl_base_v1-0"),
            ("ss_v2", "False"),
            ("ss_network_module", module),
            ("ss_network_args", args),
            ("ss_output_name", "out"),
            ("ss_sd_model_name", "base"),
            ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora"),
            ("modelspec.implementation", "https://github.com/Stability-AI/generative-models"),
            ("modelspec.title", "out"),
            ("modelspec.prediction_type", "epsilon"),
        ] {
            assert_eq!(metadata[key], value, "{format}: {key}");
        }
        let header = usize::try_from(u64::from_le_bytes(*file.0.first_chunk().unwrap())).unwrap();
        let digest = Sha256::digest(&file.0[8 + header..]);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(metadata["sshs_model_hash"], digest, "{format}");
        assert_eq!(metadata["sshs_legacy_hash"].len(), 8, "{format}");
    }
    // diffusers' own format keeps diffusers' names.
    let (file, _) = desk.export("diffusers", &[]);
    assert!(file.tensors().names().iter().any(|name| name.starts_with("unet.down_blocks.")));
    assert_eq!(file.metadata()["modelspec.implementation"], "diffusers");
    assert_eq!(file.metadata()["ss_base_model_version"], "sdxl_base_v1-0");
}

#[test]
fn files_of_kohyas_names_for_sdxl_are_read_back() {
    let desk = Desk::new("sdxl");
    let unet = |adapter: &str, out: &str| -> Vec<f32> {
        run(desk.root(), &["merge", "--base", &desk.base, "--adapter", adapter, "--out", out]);
        let file = desk.path(out).join("unet/diffusion_pytorch_model.safetensors");
        let bytes = std::fs::read(file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Vec<_> = tensors.iter().collect();
        tensors.sort_by_key(|(name, _)| name.to_string());
        let floats = |data: &[u8]| -> Vec<f32> {
            data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        tensors.into_iter().flat_map(|(_, tensor)| floats(tensor.data())).collect()
    };
    let ours = unet("a.st", "first");
    for format in ["kohya", "diff"] {
        desk.export(format, &["--error", "0"]);
        let (adapter, merged) = (format!("{format}.st"), format!("{format}-merged"));
        let import = ["import", "out.safetensors", "--base", &desk.base, "--out", &adapter];
        let said = run(desk.root(), &import);
        assert!(said.contains(", 0 names left out"), "{said}");
        let error = soda_testing::relative_error(&unet(&adapter, &merged), &ours);
        assert!(error < 1e-7, "{format}: {error:e}");
    }
}

#[test]
fn errors_are_those_of_the_precision_that_is_written() {
    let desk = Desk::new("sd15");
    let error = |printed: &str| -> f64 {
        let text = printed.split("relative error ").nth(1).unwrap();
        text.split_whitespace().next().unwrap().parse().unwrap()
    };
    for (format, suffix, more, dtype, bounds) in [
        ("kohya", "lora_up.weight", &[][..], Dtype::F16, 1e-5..1e-3),
        ("kohya", "lora_up.weight", &["--dtype", "bf16"], Dtype::BF16, 5e-4..1e-2),
        ("kohya", "lora_up.weight", &["--error", "0"], Dtype::F32, 0.0..1e-6),
        ("kohya", "lora_up.weight", &["--dtype", "f32"], Dtype::F32, 0.0..1e-6),
        ("diffusers", "lora_A.weight", &[], Dtype::F16, 1e-5..1e-3),
        ("diff", ".diff", &["--dtype", "f16"], Dtype::F16, 1e-5..1e-3),
    ] {
        let (file, printed) = desk.export(format, more);
        assert_eq!(file.dtypes(suffix), [dtype], "{format} {more:?}");
        let found = error(&printed);
        assert!(bounds.contains(&found), "{format} {more:?}: {found:e}");
        assert_eq!(file.metadata()["ss_base_model_version"], "sd_v1");
        if format == "kohya" {
            assert_eq!(file.dtypes(".alpha"), [Dtype::F32]);
        }
    }
    let (file, printed) = desk.export("diff", &[]);
    assert_eq!(file.dtypes(".diff"), [Dtype::F32]);
    assert!(printed.contains(" deltas, exact"), "{printed}");
}

#[test]
fn a_value_that_the_precision_cannot_hold_is_refused_by_name() {
    let desk = Desk::new("sd15");
    let huge = ["--strength", "1e9"];
    let message = desk.refused("kohya", &huge);
    assert!(message.contains("lora_up.weight holds "), "{message}");
    assert!(message.contains("which f16 cannot hold; export it as bf16 or f32"), "{message}");
    desk.export("kohya", &[&huge[..], &["--dtype", "bf16"]].concat());
    let message = desk.refused("diff", &[&huge[..], &["--dtype", "f16"]].concat());
    assert!(message.contains(".diff holds "), "{message}");
}

#[test]
fn a_peft_directory_appears_whole_or_not_at_all() {
    // The text encoder's part cannot be written in f16. It comes after that of the UNet.
    let bytes = fixture("sd15");
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let huge = 1e9f32.to_le_bytes();
    let changed = file.iter().map(|(name, tensor)| {
        if name.contains("_te_") && name.ends_with(".alpha") {
            (name, TensorView::new(Dtype::F32, tensor.shape().to_vec(), &huge).unwrap())
        } else {
            (name, tensor)
        }
    });
    let desk = Desk::with_file("sd15", &safetensors::serialize(changed, None).unwrap());
    let message = desk.refused("peft", &["--dtype", "f16"]);
    assert!(message.contains("lora_B.weight holds "), "{message}");

    run(desk.root(), &desk.arguments("peft", &["--out", "out"]));
    for part in ["unet", "text_encoder"] {
        for name in ["adapter_model.safetensors", "adapter_config.json"] {
            assert!(desk.path("out").join(part).join(name).is_file(), "{part}/{name}");
        }
    }
    let entries = desk.names();
    assert!(!entries.iter().any(|name| name.to_string_lossy().starts_with('.')), "{entries:?}");
}

/// The text chunk `parameters` of a picture.
fn parameters(path: &Path) -> String {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let reader = png::Decoder::new(file).read_info().unwrap();
    let info = reader.info();
    let mut plain = info.uncompressed_latin1_text.iter();
    let plain = plain.find(|chunk| chunk.keyword == "parameters");
    plain.map(|chunk| chunk.text.clone()).unwrap()
}

#[test]
fn generation_parameters_are_those_of_a1111() {
    let desk = Desk::new("sd15");
    let adapter = "my, adapter: v1.safetensors";
    std::fs::rename(desk.path("a.st"), desk.path(adapter)).unwrap();
    let draw = |out: &str, more: &[&str]| {
        let fixed = ["generate", "--base", &desk.base, "--prompt", "a, b", "--out", out];
        run(desk.root(), &[&fixed[..], &["--steps", "2"], more].concat());
        parameters(&desk.path(out).join("seed0-00.png"))
    };
    let text = draw("adapted", &["--adapter", adapter, "--strength", "0.6"]);
    assert!(text.contains(r#", Adapter: "my, adapter: v1.safetensors 0.6", Version: "#), "{text}");
    assert!(text.starts_with("a, b\nSteps: 2, Sampler: "), "{text}");
    for (scheduler, expected) in [
        (&["ddim"][..], "DDIM, CFG"),
        (&["pndm"], "PLMS, CFG"),
        (&["euler"], "Euler, CFG"),
        (&["euler", "--karras"], "Euler, Schedule type: Karras, CFG"),
        (&["euler-a"], "Euler a, CFG"),
        (&["dpm++", "--karras"], "DPM++ 2M, Schedule type: Karras, CFG"),
        (&["dpm++-sde"], "DPM++ 2M SDE, Schedule type: Uniform, CFG"),
    ] {
        let text = draw(&scheduler.concat(), &[&["--scheduler"], scheduler].concat());
        let found = text.split("Sampler: ").nth(1).unwrap();
        assert!(found.starts_with(expected), "{scheduler:?}: {text}");
    }
}
