//! SODA in a subspace from the command line: calibrated, killed and resumed, cached, exported as a LoRA.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{exported, soda, toybox};
use safetensors::SafeTensors;
use soda_pipeline::AdapterFile;

/// A run that shares its numbers between the layers, of the UNet and of a text encoder.
fn arguments(name: &str) -> Vec<String> {
    let settings = [
        "method=soda-subspace",
        "method.rotation.side=both",
        "method.rotation.numbers=400",
        "method.spectrum.rank=3",
        "method.spectrum.select=gradient",
        "method.calibration.draws=5",
        "samples.steps=1",
        "checkpoints.every=1",
        r"text_encoder.targets=['layers\.1\..*q_proj\.weight$']",
    ];
    let mut args =
        ["train", "--steps", "6", "--batch-size", "2", "--sample", "a mug", "--name", name]
            .map(str::to_owned)
            .to_vec();
    for (option, folder) in [("--base", "base"), ("--data", "subjects/castle_mug")] {
        args.extend([option.to_owned(), toybox(folder).to_str().unwrap().to_owned()]);
    }
    args.extend(["--target".to_owned(), r"mid_block.*to_[qk]\.weight$".to_owned()]);
    args.extend(settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting.to_owned()]));
    args
}

fn succeed(folder: &Path, args: &[&str]) -> String {
    let output = soda(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn borrowed(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

fn adapter(folder: &Path, name: &str) -> AdapterFile {
    AdapterFile::read(&folder.join("runs").join(name).join("adapter.safetensors")).unwrap()
}

/// The calibration of a resumed run is measured again or read from a cache, to the bit in both cases.
#[test]
fn a_calibrated_run_is_the_same_when_killed_resumed_or_cached() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeed(folder, &borrowed(&arguments("straight")));

    let checkpoints = folder.join("runs/killed/checkpoints");
    let mut child = Command::new(common::program())
        .current_dir(folder)
        .args(arguments("killed"))
        .spawn()
        .unwrap();
    while !checkpoints.is_dir() && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    if !folder.join("runs/killed/report.html").exists() {
        succeed(folder, &["train", "--resume", "runs/killed"]);
    }
    let cached = |name: &str, more: &[&str]| {
        let args = arguments(name);
        let mut args = borrowed(&args);
        args.extend(["--cache", "cache"].iter().chain(more));
        succeed(folder, &args);
        let files = std::fs::read_dir(folder.join("cache")).unwrap().flatten();
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.ends_with(".calibration")).count()
    };
    assert_eq!(cached("first", &[]), 1);
    assert_eq!(cached("second", &["--set", "optimizer.rotation_lr=0.005"]), 1, "another rate");
    let straight = adapter(folder, "straight");
    for name in ["killed", "first"] {
        assert!(adapter(folder, name).tensors().eq(straight.tensors()), "{name}");
    }
    assert_eq!(cached("other", &["--seed", "5"]), 2, "other samples");
}

/// `‖a - b‖ / ‖b - base‖` over the f32 weights of the UNets.
fn error(a: &[f32], b: &[f32], base: &[f32]) -> f64 {
    let distance = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
    };
    distance(a, b) / distance(b, base)
}

/// The values of an f32 UNet, in the order of its keys.
fn unet(folder: &Path) -> Vec<f32> {
    let bytes = std::fs::read(folder.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort_unstable();
    let tensor = |name: &str| -> Vec<f32> {
        let view = file.tensor(name).unwrap();
        assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
        view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    names.into_iter().flat_map(tensor).collect()
}

/// An export has the change of the adapter up to the rounding of f32, which is 1e-6 of a change of 1e-2.
#[test]
fn an_export_of_a_subspace_is_exact() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    succeed(folder, &borrowed(&arguments("run")));
    let base = toybox("base").to_str().unwrap().to_owned();
    let f32_base = folder.join("base");
    succeed(folder, &["convert", "--base", &base, "--dtype", "f32", "--out", "base"]);
    let base = f32_base.to_str().unwrap();
    let adapter = "runs/run/adapter.safetensors";
    let merge = |adapter: &str, out: &str| {
        succeed(folder, &["merge", "--base", base, "--adapter", adapter, "--out", out]);
        unet(&folder.join(out))
    };
    let (plain, merged) = (unet(&f32_base), merge(adapter, "merged"));
    for format in ["kohya", "diffusers", "peft"] {
        let back = format!("{format}.back.safetensors");
        let export = ["export", "--base", base, "--adapter", adapter, "--format", format];
        let out = &exported(format, format);
        let said = succeed(folder, &[&export[..], &["--dtype", "f32", "--out", out]].concat());
        let printed = said.split("relative error ").nth(1).unwrap().split(' ').next().unwrap();
        assert!(printed.parse::<f64>().unwrap() < 4e-6, "{said}");
        succeed(folder, &["import", out, "--base", base, "--out", &back]);
        let error = error(&merge(&back, &format!("{format}.merged")), &merged, &plain);
        assert!(error < 1e-5, "{format}: {error:.1e}");
    }
}

/// The bases of the subspaces of an adapter, by name: orthonormal columns `[n, r]`.
fn directions(folder: &Path, name: &str) -> Vec<(String, Vec<f32>, [usize; 2])> {
    let file = adapter(folder, name);
    let found = file.tensors().filter(|(name, _)| name.ends_with(".basis"));
    let found = found.map(|(name, data)| {
        let shape = data.shape();
        (name, data.iter::<f32>().collect(), [shape[0], shape[1]])
    });
    found.collect()
}

/// A frozen network in half precision has the gradients of that precision, and nearly the directions of f32:
/// `‖Q₁ᵀ Q₂‖² / r` is the mean square of the cosines between two subspaces.
#[test]
fn a_network_in_half_precision_is_calibrated() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (subspace, target) in [
        ("gradient", r"mid_block.*(to_[qk]|conv1)\.weight$"),
        ("activations", r"mid_block.*to_[qk]\.weight$"),
    ] {
        let run = |precision: &str| {
            let name = format!("{subspace}-{precision}");
            let subspace = format!("method.rotation.subspace={subspace}");
            let precision = format!("precision={precision}");
            let (base, data) = (toybox("base"), toybox("subjects/castle_mug"));
            let (base, data) = (base.to_str().unwrap(), data.to_str().unwrap());
            let mut args = vec!["train", "--base", base, "--data", data, "--name", &name];
            args.extend(["--steps", "1", "--sample", "a mug", "--target", target]);
            for setting in ["method=soda-subspace", &subspace, "method.rotation.rank=2"] {
                args.extend(["--set", setting]);
            }
            args.extend(["--set", &precision, "--set", "samples.steps=1"]);
            succeed(folder, &args);
            directions(folder, &name)
        };
        let exact = run("f32");
        assert!(exact.len() > 3, "{} directions", exact.len());
        for precision in ["bf16", "f16"] {
            let half = run(precision);
            assert_eq!(half.len(), exact.len());
            for ((name, a, [n, r]), (_, b, _)) in exact.iter().zip(&half) {
                let column = |q: &[f32], i| (0..*n).map(|row| q[row * r + i]).collect::<Vec<_>>();
                let mut cosines = 0.0;
                for i in 0..*r {
                    for j in 0..*r {
                        let pairs = column(a, i).into_iter().zip(column(b, j));
                        let dot: f32 = pairs.map(|(x, y)| x * y).sum();
                        cosines += dot * dot / *r as f32;
                    }
                }
                // Independent subspaces of this size have 0.02.
                assert!(cosines > 0.5, "{subspace}, {precision}, {name}: {cosines}");
            }
        }
    }
}
