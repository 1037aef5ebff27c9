//! Adapters of several methods: trained, merged in pairs, exported and imported.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::path::Path;

use common::{exported, soda, toybox};
use safetensors::SafeTensors;
use serde_json::{Value, json};

struct Desk(tempfile::TempDir);

impl Desk {
    /// Trains two steps of each method on the first layers, in `runs/<method>-<seed>`.
    fn trained(runs: &[(&str, &str)]) -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        let config = format!(
            "base = {:?}\ndata = {:?}\nsteps = 2\nbatch_size = 1\n\
             targets = ['^down_blocks.0.*attn1.*to_[qk].weight$', '^down_blocks.0.resnets.0.conv1.weight$']\n\
             [optimizer]\nrotation_lr = 0.05\nspectrum_lr = 0.05\n[samples]\nsteps = 1\nprompts = ['a']\n",
            toybox("base"),
            toybox("subjects/castle_mug")
        );
        std::fs::write(desk.path("short.toml"), config).unwrap();
        for (method, seed) in runs {
            let name = format!("{method}-{seed}");
            desk.run(&[
                "train",
                "--config",
                "short.toml",
                "--method",
                method,
                "--seed",
                seed,
                "--name",
                &name,
            ]);
        }
        desk
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, args: &[&str]) -> String {
        let output = soda(self.0.path(), args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn refused(&self, args: &[&str]) -> String {
        let output = soda(self.0.path(), args);
        assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn unet(&self, folder: &str) -> Vec<f32> {
        floats(&self.path(folder).join("unet/diffusion_pytorch_model.safetensors"))
    }
}

fn base() -> String {
    toybox("base").to_str().unwrap().to_owned()
}

/// All values of a file, in the order of its keys.
fn floats(path: &Path) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort_unstable();
    let tensor = |name: &str| -> Vec<f32> {
        let view = file.tensor(name).unwrap();
        let data = view.data();
        match view.dtype() {
            safetensors::Dtype::F32 => {
                data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
            safetensors::Dtype::F16 => {
                let half = |b: &[u8; 2]| half::f16::from_le_bytes(*b).to_f32();
                data.as_chunks::<2>().0.iter().map(half).collect()
            }
            other => panic!("{other:?}"),
        }
    };
    names.into_iter().flat_map(tensor).collect()
}

/// `‖a - b‖ / ‖b - base‖`
fn error(a: &[f32], b: &[f32], base: &[f32]) -> f64 {
    let distance = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    };
    distance(a, b) / distance(b, base)
}

#[test]
fn an_export_imports_as_the_same_adapter() {
    let desk = Desk::trained(&[("soda-qr", "0"), ("dora", "0"), ("oft", "0")]);
    let base = base();
    let plain = floats(&toybox("base").join("unet/diffusion_pytorch_model.safetensors"));
    let formats: [(&str, &[&str]); 3] =
        [("soda-qr", &["kohya", "diffusers"]), ("dora", &["peft"]), ("oft", &["peft"])];
    for (method, formats) in formats {
        let adapter = format!("runs/{method}-0/adapter.safetensors");
        let merged = format!("{method}-merged");
        desk.run(&["merge", "--base", &base, "--adapter", &adapter, "--out", &merged]);
        for format in formats {
            let (out, back, again) = (
                exported(&format!("{method}-{format}"), format),
                format!("{method}-{format}-back.safetensors"),
                format!("{method}-{format}-again"),
            );
            let said = desk.run(&[
                "export",
                "--base",
                &base,
                "--adapter",
                &adapter,
                "--format",
                format,
                "--error",
                "0.01",
                "--out",
                &out,
            ]);
            assert!(said.contains("relative error"), "{said}");
            let said = desk.run(&["import", &out, "--base", &base, "--out", &back]);
            assert!(said.contains("3 weights matched, 0 names left out"), "{said}");
            desk.run(&["merge", "--base", &base, "--adapter", &back, "--out", &again]);
            // The budget, and the rounding of the model's dtype.
            let error = error(&desk.unet(&again), &desk.unet(&merged), &plain);
            assert!(error < 0.015, "{method} as {format}: {error:.1e}");
        }
    }
    let adapter = "runs/soda-qr-0/adapter.safetensors";
    desk.run(&[
        "export",
        "--base",
        &base,
        "--adapter",
        adapter,
        "--format",
        "diff",
        "--out",
        "d.safetensors",
    ]);
    let name = "lora_unet_down_blocks_0_resnets_0_conv1.diff";
    let bytes = std::fs::read(desk.path("d.safetensors")).unwrap();
    let shape = SafeTensors::deserialize(&bytes).unwrap().tensor(name).unwrap().shape().to_vec();
    assert_eq!(shape[2..], [3, 3]);
    // A1111 shows the number of training images and their size.
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = metadata.metadata().clone().unwrap();
    let table = |key: &str| -> Value { serde_json::from_str(&metadata[key]).unwrap() };
    assert_eq!(table("ss_dataset_dirs"), json!({ "d": { "n_repeats": 1, "img_count": 5 } }));
    let size = json!({ "resolution": [64, 64], "count": 5 });
    assert_eq!(table("ss_bucket_info"), json!({ "buckets": { "0": size } }));
    let said = desk.run(&["import", "d.safetensors", "--base", &base, "--out", "e"]);
    assert!(said.contains("3 weights matched, 0 names left out"), "{said}");
}

#[test]
fn a_subject_and_a_style_merge_into_one_model() {
    let desk = Desk::trained(&[("soda", "0"), ("soda", "1"), ("lora", "0")]);
    let base = base();
    let (subject, style) = ("runs/soda-0/adapter.safetensors", "runs/soda-1/adapter.safetensors");
    let merge = |style: &str, more: &[&str]| -> Vec<String> {
        let fixed = ["merge", "--base", &base, "--subject", subject, "--style", style];
        fixed.iter().chain(more).map(|word| (*word).to_owned()).collect()
    };
    let run = |args: Vec<String>| desk.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    desk.run(&["merge", "--base", &base, "--adapter", subject, "--out", "alone"]);
    for mode in ["residual", "geodesic", "compose"] {
        run(merge(style, &["--weights", "1,0", "--mode", mode, "--out", mode]));
        let plain = floats(&toybox("base").join("unet/diffusion_pytorch_model.safetensors"));
        let error = error(&desk.unet(mode), &desk.unet("alone"), &plain);
        // The rounding of the model's dtype.
        assert!(error < 0.01, "{mode}: {error:.1e}");
    }
    let both = ["--weights", "0.8,0.6", "--mode", "geodesic", "--restore", "1", "--out", "both"];
    run(merge(style, &both));
    assert_ne!(desk.unet("both"), desk.unet("alone"));
    let lora = "runs/lora-0/adapter.safetensors";
    run(merge(lora, &["--weights", "0.5,0.5", "--out", "mixed"]));
    let args = merge(lora, &["--mode", "geodesic", "--out", "no"]);
    let message = desk.refused(&args.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(message.contains("no common form"), "{message}");
    let message = desk.refused(&["train", "--config", "short.toml", "--method", "sodaa"]);
    assert!(message.contains("`sodaa`") && message.contains("svdiff"), "{message}");
}

#[test]
fn decompositions_are_cached_if_a_folder_is_given() {
    let desk = Desk::trained(&[("soda", "0")]);
    let base = base();
    let adapter = "runs/soda-0/adapter.safetensors";
    let merge = ["merge", "--base", &base, "--adapter", adapter];
    desk.run(&[&merge[..], &["--out", "plain"]].concat());
    desk.run(&[&merge[..], &["--cache", "svd", "--out", "first"]].concat());
    let kept = || {
        let files = std::fs::read_dir(desk.path("svd")).unwrap().map(|file| file.unwrap());
        let mut kept: Vec<_> = files
            .map(|file| (file.file_name(), file.metadata().unwrap().modified().unwrap()))
            .collect();
        kept.sort();
        kept
    };
    let first = kept();
    // There is one file per adapted weight. The second command reads and does not write them.
    assert_eq!(first.len(), 3);
    desk.run(&[&merge[..], &["--cache", "svd", "--out", "second"]].concat());
    assert_eq!(kept(), first);
    assert!(desk.unet("first") == desk.unet("plain") && desk.unet("second") == desk.unet("plain"));

    let said = desk.run(&["inspect", adapter]);
    assert!(said.contains("rotations of width 64: "), "{said}");
    let output = soda(desk.0.path(), &[&merge[..], &["--out", "third"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("soda on 3 weights"), "{said}");
}
