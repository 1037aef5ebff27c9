//! The main commands, and the message of every user mistake.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};

use common::{program, soda, toybox};

/// Asserts that a command fails with exit code `code` and a message that contains `needle`, and writes
/// nothing.
#[track_caller]
fn refused(args: &[&str], code: i32, needle: &str) {
    let folder = tempfile::tempdir().unwrap();
    let output = soda(folder.path(), args);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert!(message.contains(needle), "`{needle}` is not in: {message}");
    assert!(!message.contains("panicked"), "{message}");
    if code == 1 {
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something was written");
}

/// A copy of the bundled model with one file changed.
fn damaged_base(file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target = to.join(path.file_name().unwrap());
            if path.is_dir() {
                copy(&path, &target)
            } else {
                std::fs::copy(&path, target).unwrap();
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    copy(&toybox("base"), folder.path());
    let path = folder.path().join(file);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, change(bytes)).unwrap();
    folder
}

#[test]
fn train_generate_merge_inspect() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = soda(folder.path(), args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let (base, data, judges) = (toybox("base"), toybox("subjects/castle_mug"), toybox("eval"));
    let (base, data, judges) =
        (base.to_str().unwrap(), data.to_str().unwrap(), judges.to_str().unwrap());

    let config = folder.path().join("short.toml");
    let short = format!(
        "base = {base:?}\ndata = {data:?}\njudges = {judges:?}\nsteps = 2\nbatch_size = 2\n[samples]\nsteps = 2\n"
    );
    std::fs::write(&config, short).unwrap();
    let said = run(&[
        "train",
        "--config",
        "short.toml",
        "--name",
        "mug",
        "--sample",
        "a photo of a sks mug",
    ]);
    assert!(
        said.contains("CLIP-T") && said.contains("10580 trained parameters on 56 layers"),
        "{said}"
    );
    for file in [
        "adapter.safetensors",
        "config.toml",
        "samples.png",
        "loss.csv",
        "loss.svg",
        "report.html",
        "scores.json",
    ] {
        assert!(folder.path().join("runs/mug").join(file).is_file(), "{file} is missing");
    }
    // The report contains its figures and images and links to nothing.
    let report = std::fs::read_to_string(folder.path().join("runs/mug/report.html")).unwrap();
    assert!(report.contains("<svg") && report.contains("src=\"data:image/png;base64,"));
    assert!(
        !report.contains("src=\"http") && !report.contains("href="),
        "the report needs a network"
    );
    // The name is taken, so that a second run is refused.
    let again = soda(folder.path(), &["train", "--config", "short.toml", "--name", "mug"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("already holds a run"));

    let adapter = "runs/mug/adapter.safetensors";
    let said = run(&["inspect", adapter]);
    assert!(
        said.contains("sks mug") && said.contains("to_q.weight.soda.rotation.factors.0"),
        "{said}"
    );
    let said = run(&["inspect", base]);
    assert!(said.contains("UNet2DConditionModel"), "{said}");

    run(&[
        "generate",
        "--base",
        base,
        "--adapter",
        adapter,
        "--prompt",
        "a sks mug",
        "--steps",
        "2",
        "--out",
        "a",
    ]);
    run(&["merge", "--base", base, "--adapter", adapter, "--out", "merged"]);
    run(&["generate", "--base", "merged", "--prompt", "a sks mug", "--steps", "2", "--out", "b"]);
    let pixels = |name: &str| {
        let file = folder.path().join(name).join("seed0-00.png");
        soda_models::image::read_rgb(&file).unwrap()
    };
    assert_eq!(pixels("a"), pixels("b"), "merged and attached adapters give different images");
    run(&["generate", "--base", base, "--prompt", "a sks mug", "--steps", "2", "--out", "c"]);
    run(&[
        "generate",
        "--base",
        base,
        "--adapter",
        adapter,
        "--strength",
        "0",
        "--prompt",
        "a sks mug",
        "--steps",
        "2",
        "--out",
        "d",
    ]);
    assert_eq!(pixels("c"), pixels("d"), "strength 0 is not the base");
    let again = soda(folder.path(), &["generate", "--base", base, "--prompt", "a", "--out", "a"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists"));
}

#[test]
fn a_missing_model_is_named() {
    let data = toybox("subjects/castle_mug");
    let data = data.to_str().unwrap();
    refused(&["train", "--base", "/no/such/model", "--data", data], 1, "/no/such/model");
    refused(&["generate", "--base", "/no/such/model", "--prompt", "a"], 1, "/no/such/model");
    refused(&["inspect", "/no/such/file"], 1, "/no/such/file");
}

#[test]
fn invalid_options_are_usage_errors() {
    refused(&["train"], 2, "--config");
    refused(&["train", "--resume", "a", "--steps", "3"], 2, "--steps");
    refused(&["paint"], 2, "paint");
    let generate = ["generate", "--base", "x", "--prompt", "a", "--device"];
    refused(&[&generate[..], &["gpu"]].concat(), 2, "cuda:N");
    refused(&["generate", "--base", "x", "--prompt", "a", "--strength", "0.5"], 2, "--adapter");
    refused(&["generate", "--base", "x", "--prompt", "a", "--steps", "0"], 2, "--steps");
}

/// `--timings` stands before or after the subcommand, and prints a table of stages on standard error.
#[test]
fn timings_are_a_table_of_stages() {
    let folder = tempfile::tempdir().unwrap();
    let base = toybox("base");
    let generate = ["generate", "--base", base.to_str().unwrap(), "--prompt", "a", "--steps", "2"];
    let table = |before: &[&str], after: &[&str]| {
        let output = soda(folder.path(), &[before, &generate[..], after].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(table(&[], &[]), "");
    for table in
        [table(&["--timings"], &["--seed", "1"]), table(&[], &["--seed", "2", "--timings"])]
    {
        let stages: Vec<&str> =
            table.lines().map(|line| line.trim_start().split("  ").next().unwrap()).collect();
        for stage in
            ["load base", "text_encoder", "unet", "vae", "encode prompts", "denoise", "decode"]
        {
            assert!(stages.contains(&stage), "{stage} is not in:\n{table}");
        }
        assert_eq!(stages[0], "stage");
        let total = table.lines().last().unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(total[0], "total");
        let seconds = |line: &str| line.split_whitespace().rev().nth(1).unwrap().parse::<f64>();
        let sum: f64 = table
            .lines()
            .skip(1)
            .filter(|line| !line.starts_with([' ', 't']))
            .map(|line| seconds(line).unwrap())
            .sum();
        assert!(sum <= total[1].parse::<f64>().unwrap(), "{table}");
    }
}

#[test]
fn a_closed_standard_output_is_no_panic() {
    let inspect = |stdout: Stdio| {
        let mut command = Command::new(program());
        command.arg("inspect").arg(toybox("base")).stdout(stdout).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let mut child = inspect(Stdio::piped());
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty());

    let Ok(full) = std::fs::File::options().write(true).open("/dev/full") else { return };
    let output = inspect(full.into()).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("standard output"), "{said}");
}

#[test]
fn damaged_weights_are_named() {
    let data = toybox("subjects/castle_mug");
    let unet = "unet/diffusion_pytorch_model.safetensors";
    let base = damaged_base(unet, |mut bytes| {
        bytes.truncate(bytes.len() / 2);
        bytes
    });
    let args = ["train", "--base", base.path().to_str().unwrap(), "--data", data.to_str().unwrap()];
    refused(&args, 1, unet);
    // The last two bytes are the last half-precision number: NaN.
    let base = damaged_base(unet, |mut bytes| {
        let end = bytes.len();
        bytes[end - 2..].copy_from_slice(&[0x00, 0x7e]);
        bytes
    });
    let args = ["train", "--base", base.path().to_str().unwrap(), "--data", data.to_str().unwrap()];
    refused(&args, 1, "NaN");
}

#[test]
fn bad_data_is_named() {
    let base = toybox("base");
    let base = base.to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    refused(&["train", "--base", base, "--data", data], 1, "holds no picture");
    std::fs::write(folder.path().join("broken.png"), "this is no picture").unwrap();
    refused(&["train", "--base", base, "--data", data], 1, "has no caption");
    refused(&["train", "--base", base, "--data", data, "--prompt", "a sks mug"], 1, "broken.png");
    refused(&["train", "--base", base, "--data", "/no/such/folder"], 1, "/no/such/folder");
}

#[test]
fn bad_settings_are_named() {
    let (base, data) = (toybox("base"), toybox("subjects/castle_mug"));
    let paths = ["train", "--base", base.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let with = |more: &[&'static str]| [&paths[..], more].concat();
    refused(&with(&["--target", "to_nowhere"]), 1, "`to_nowhere` matches no weight");
    refused(&with(&["--target", "("]), 2, "`(` is not a regular expression");
    refused(&with(&["--set", "targets=[]"]), 2, "no target pattern");
    refused(&with(&["--factors", "0"]), 2, "at least one factor");
    for (method, key, needle) in [
        ("lora", "rank", "the rank is at least 1"),
        ("loha", "rank", "the rank is at least 1"),
        ("lokr", "factor", "the factor is at least 1"),
        ("oft", "block_size", "at least 2"),
        ("boft", "block_size", "at least 2"),
        ("soda-subspace", "rotation.rank", "rank"),
    ] {
        let setting: &str = format!("method.{key}=0").leak();
        refused(&with(&["--method", method, "--set", setting]), 2, needle);
    }
    refused(&with(&["--batch-size", "0"]), 2, "batch_size");
    refused(&with(&["--rotation-lr", "NaN"]), 2, "rotation-lr");
    refused(&with(&["--no-rotation", "--no-spectrum"]), 2, "--no-spectrum");
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("c.toml");
    std::fs::write(&config, "base = 'a'\ndata = 'b'\nsteps = 1\nbatch_size = 1\nstepz = 2\n")
        .unwrap();
    let output = soda(folder.path(), &["train", "--config", config.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("did you mean `steps`"));
    refused(&with(&["--set", "optimizer.rotation_rl=1"]), 2, "did you mean `rotation_lr`");
    refused(&with(&["--set", "objective.timesteps=[0, 5000]"]), 1, "objective.timesteps");
    refused(&with(&["--preset", "toybx"]), 2, "did you mean `toybox`");
    refused(&["train", "--resume", "/no/such/run"], 1, "/no/such/run holds no run");
}

#[test]
fn a_huge_prompt_is_cut_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let prompt = "mug ".repeat(2_500);
    let base = toybox("base");
    let args = ["generate", "--base", base.to_str().unwrap(), "--prompt", &prompt, "--steps", "1"];
    let output = soda(folder.path(), &args);
    assert!(output.status.success());
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("too long") && message.len() < 500, "{message}");
}

#[test]
fn an_adapter_for_another_base_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (base, data) = (toybox("base"), toybox("subjects/castle_mug"));
    let base = base.to_str().unwrap();
    let train = soda(
        folder.path(),
        &[
            "train",
            "--base",
            base,
            "--data",
            data.to_str().unwrap(),
            "--name",
            "one",
            "--steps",
            "1",
            "--batch-size",
            "1",
            "--sample",
            "a mug",
            "--target",
            r"mid_block.*to_q\.weight$",
        ],
    );
    assert!(train.status.success(), "{}", String::from_utf8_lossy(&train.stderr));
    let adapter = folder.path().join("runs/one/adapter.safetensors");
    let adapter = adapter.to_str().unwrap();
    // A base with the same shapes, in which the last bit of every weight differs.
    let other = damaged_base("unet/diffusion_pytorch_model.safetensors", |mut bytes| {
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
        bytes[header..].iter_mut().step_by(2).for_each(|low| *low ^= 1);
        bytes
    });
    let other = other.path().to_str().unwrap().to_owned();
    refused(
        &["merge", "--base", &other, "--adapter", adapter, "--out", "m"],
        1,
        "was trained on base",
    );
    refused(
        &["merge", "--base", base, "--adapter", &format!("{base}/model_index.json"), "--out", "m"],
        1,
        "safetensors",
    );
}

/// A file with some settings lies over the preset that is named, and options lie over both.
#[test]
fn a_file_of_some_settings_lies_over_a_preset() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("some.toml");
    std::fs::write(&file, "steps = 7\nmethod = \"lora\"\n[samples]\nsteps = 3\n").unwrap();
    let shown = |args: &[&str]| {
        let output = soda(folder.path(), &[&["config", "show"], args].concat());
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        (output.status.code(), text, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let common = ["--config", "some.toml", "--base", "b", "--data", "d", "--set", "method.rank=5"];
    let (code, text, error) = shown(&[&common[..], &["--preset", "sdxl", "--seed", "9"]].concat());
    assert_eq!(code, Some(0), "{error}");
    let config: toml::Table = text.parse().unwrap();
    let number = |config: &toml::Table, key: &str| config[key].as_integer();
    assert_eq!(number(&config, "steps"), Some(7));
    assert_eq!(number(&config, "seed"), Some(9));
    assert_eq!(config["samples"]["steps"].as_integer(), Some(3));
    assert_eq!(config["method"]["rank"].as_integer(), Some(5));
    let (_, preset, _) = shown(&["--preset", "sdxl", "--base", "b", "--data", "d"]);
    let preset: toml::Table = preset.parse().unwrap();
    assert_eq!(config["precision"], preset["precision"]);

    let (code, _, error) = shown(&common);
    assert_eq!(code, Some(2), "{error}");
    assert!(error.contains("batch_size") && error.contains("--preset"), "{error}");
    std::fs::write(&file, "steps = 7\n[samples]\nstepz = 3\n").unwrap();
    let (code, _, error) = shown(&[&common[..6], &["--preset", "sdxl"]].concat());
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("some.toml: ") && error.contains("line 3"), "{error}");
}
