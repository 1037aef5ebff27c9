//! A noise schedule changed by the training is part of its adapter, for images and for merged directories.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;
#[path = "common/run.rs"]
mod run;

use common::{soda, toybox};
use run::run;
use serde_json::{Value, json};
use soda_pipeline::AdapterFile;

#[test]
fn v_prediction_and_zero_terminal_snr_are_part_of_the_adapter() {
    let desk = tempfile::tempdir().unwrap();
    let (folder, base, data) = (desk.path(), toybox("base"), toybox("subjects/castle_mug"));
    let (base, data) = (base.to_str().unwrap(), data.to_str().unwrap());
    let train = |name: &str, options: &[&str]| -> AdapterFile {
        let common = [
            &["train", "--base", base, "--data", data, "--name", name, "--steps", "2"][..],
            &["--method", "svdiff", "--batch-size", "2", "--sample", "a [trigger]"],
            &["--trigger", "sks mug", "--set", "samples.steps=2"],
        ];
        run(folder, &[&common.concat(), options].concat());
        AdapterFile::read(&folder.join(format!("runs/{name}/adapter.safetensors"))).unwrap()
    };
    let plain = train("plain", &[]);
    assert!(plain.header.schedule.is_null());
    assert_eq!(plain.header.trigger, ["sks mug"]);
    let v = ["--set", "objective.prediction=v", "--set", "objective.zero_terminal_snr=true"];
    let file = train("v", &v);
    let change = json!({ "prediction_type": "v_prediction", "rescale_betas_zero_snr": true });
    assert_eq!(file.header.schedule, change);

    let draw = |base: &str, adapter: Option<&str>, out: &str| -> Vec<u8> {
        let common =
            ["generate", "--base", base, "--prompt", "a mug", "--steps", "3", "--out", out];
        let adapter: Vec<&str> =
            adapter.iter().flat_map(|adapter| ["--adapter", *adapter]).collect();
        run(folder, &[&common[..], &adapter].concat());
        image::open(folder.join(out).join("seed0-00.png")).unwrap().into_rgb8().into_raw()
    };
    let mut told_nothing = file.clone();
    told_nothing.header.schedule = Value::Null;
    told_nothing.write(&folder.join("nothing.st")).unwrap();
    let drawn = draw(base, Some("runs/v/adapter.safetensors"), "drawn");
    // The adapter knows what `[trigger]` stands for.
    let called = |prompt: &str, out: &str| {
        let adapter = ["--adapter", "runs/v/adapter.safetensors", "--steps", "2", "--out", out];
        run(folder, &[&["generate", "--base", base, "--prompt", prompt], &adapter[..]].concat());
        image::open(folder.join(out).join("seed0-00.png")).unwrap().into_rgb8().into_raw()
    };
    assert_eq!(called("a [trigger]", "called"), called("a sks mug", "written"));
    let nobody = soda(folder, &["generate", "--base", base, "--prompt", "a [trigger]"]);
    assert_eq!(nobody.status.code(), Some(2), "{}", String::from_utf8_lossy(&nobody.stderr));
    assert_ne!(draw(base, Some("nothing.st"), "as-epsilon"), drawn);

    let merge = ["merge", "--base", base, "--adapter", "runs/v/adapter.safetensors"];
    run(folder, &[&merge[..], &["--out", "merged"]].concat());
    let path = folder.join("merged/scheduler/scheduler_config.json");
    let written: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for (field, value) in change.as_object().unwrap() {
        assert_eq!(&written[field], value);
    }
    assert_eq!(draw("merged", None, "of-merged"), drawn);

    // A file of kohya's names has both, and the trigger.
    let export = ["export", "--base", base, "--adapter", "runs/v/adapter.safetensors", "--format"];
    let output = soda(folder, &[&export[..], &["kohya", "--out", "kohya.safetensors"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("\"rescale_betas_zero_snr\":true"), "{said}");
    run(folder, &["import", "kohya.safetensors", "--base", base, "--out", "back.safetensors"]);
    let back: AdapterFile = AdapterFile::read(&folder.join("back.safetensors")).unwrap();
    assert_eq!(back.header.schedule, change);
    assert_eq!(back.header.trigger, ["sks mug"]);

    let two = ["merge", "--base", base, "--subject", "runs/v/adapter.safetensors", "--style"];
    let output =
        soda(folder, &[&two[..], &["runs/plain/adapter.safetensors", "--out", "two"]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("different noise schedules"), "{said}");
}
