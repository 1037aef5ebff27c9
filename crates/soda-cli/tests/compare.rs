//! `soda compare`: checks of a plan, and a comparison from plan to report.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::path::{Path, PathBuf};

use common::{soda, toybox};
use serde_json::Value;

fn examples() -> PathBuf {
    soda_testing::workspace_path("examples/compare")
}

/// Runs `soda compare PLAN --check` in `folder`. Returns whether it succeeds, and its output.
fn check(folder: &Path, plan: &Path) -> (bool, String) {
    let output = soda(folder, &["compare", plan.to_str().unwrap(), "--check"]);
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn every_example_plan_lists_its_runs_and_missing_files() {
    let root = examples().join("../..");
    for entry in std::fs::read_dir(examples()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let (usable, said) = check(&root, &path);
        assert!(said.contains("runs to be scored"), "{said}");
        let dreambooth = path.ends_with("dreambooth.toml");
        let external = dreambooth || path.ends_with("peft-image-gen.toml");
        assert_eq!(usable, !external, "{}: {said}", path.display());
        let missing = said.contains("missing: dreambooth/dataset/backpack_dog\n");
        assert_eq!(missing, dreambooth, "{said}");
    }
    // In another folder, the bundled data are missing too.
    let empty = tempfile::tempdir().unwrap();
    let (usable, said) = check(empty.path(), &examples().join("standing.toml"));
    assert!(!usable && said.contains("missing: examples/toybox/base\n"), "{said}");
    assert!(said.contains("6 of the 6 folders"), "{said}");
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0, "something was written");
}

/// A night of runs that all fail would be told in the morning.
#[test]
fn settings_that_no_run_can_have_are_refused_before_the_first_run() {
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("plan.toml");
    for (settings, named) in [
        ("method = { name = 'lora', rank = 0 }", "rank"),
        ("method = { name = 'soda', rotation = { structure = 'subspace', rank = 0 } }", "rank"),
        ("method = { name = 'soda', rotation = { structure = 'householder', rank = 3 } }", "even"),
        ("method = { name = 'soda', rotation = { factors = 1000000000 } }", "100 factors"),
        ("samples.steps = 1000000000", "`samples.steps`"),
    ] {
        let data = toybox("subjects/castle_mug");
        let text = format!(
            "[train]\nbase = {:?}\nsteps = 1\nbatch_size = 1\n[score]\ndata = [{data:?}]\nseeds = [0]\n\
             [[arm]]\nname = 'good'\n[[arm]]\nname = 'wrong'\ntrain.{settings}\n",
            toybox("base")
        );
        std::fs::write(&plan, text).unwrap();
        for more in [&["--check"][..], &["--out", "out"]] {
            let output = soda(folder.path(), &[&["compare", "plan.toml"], more].concat());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.contains("arm `wrong`") && said.contains(named), "{settings}: {said}");
            assert_eq!(said.trim_end().lines().count(), 1, "{said}");
            assert!(!folder.path().join("out").exists(), "{settings}: something was written");
        }
    }
}

#[test]
fn the_dreambooth_plan_needs_only_its_folders() {
    let folder = tempfile::tempdir().unwrap();
    let plan = examples().join("dreambooth.toml");
    let (_, said) = check(folder.path(), &plan);
    let missing: Vec<&str> =
        said.lines().filter_map(|line| line.strip_prefix("missing: ")).collect();
    assert_eq!(missing.len(), 30 + 2, "{said}");
    for missing in &missing {
        std::fs::create_dir_all(folder.path().join(missing)).unwrap();
    }
    let (usable, said) = check(folder.path(), &plan);
    assert!(!usable && said.contains("holds no picture"), "{said}");
    for missing in missing {
        for name in ["00.jpg", "01.jpg"] {
            std::fs::write(folder.path().join(missing).join(name), "").unwrap();
        }
    }
    let (usable, said) = check(folder.path(), &plan);
    assert!(usable, "{said}");
    // No image can be held out of a data set of one image.
    std::fs::remove_file(folder.path().join("dreambooth/dataset/vase/00.jpg")).unwrap();
    let (usable, said) = check(folder.path(), &plan);
    assert!(
        !usable && said.contains("dreambooth/dataset/vase cannot be used for training"),
        "{said}"
    );
}

#[test]
fn images_without_captions_are_trained_and_scored_by_the_plan() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // A folder of images without captions, such as DreamBooth's.
    let mug = folder.join("set/mug2");
    std::fs::create_dir_all(&mug).unwrap();
    for name in ["00.png", "01.png", "02.png"] {
        std::fs::copy(toybox("subjects/castle_mug").join(name), mug.join(name)).unwrap();
    }
    let plan = format!(
        r#"
[train]
base = {:?}
judges = {:?}
trigger = "sks {{class}}"
prompt = "a photo of a [trigger]"
steps = 2
batch_size = 2
validation.held_out = 0.3
optimizer = {{ rotation_lr = 0.1 }}
samples = {{ steps = 2, every = 1, unrelated = ["a blue boat"] }}

[kind.object]
samples.prompts = ["a [trigger] on a beach", "a red [trigger]"]

[score]
data = [{{ folder = "set/mug2", class = "mug", kind = "object" }}]
seeds = [3]

[[arm]]
name = "soda"

[[strength]]
arm = "soda"
at = [1.0]
unrelated = ["a blue boat"]
"#,
        toybox("base"),
        toybox("eval")
    );
    std::fs::write(folder.join("plan.toml"), plan).unwrap();
    let output = soda(folder, &["compare", "plan.toml", "--out", "out"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("DINO to subject"), "the data set has no true images: {said}");

    let line = |name: &str| -> Value {
        let text = std::fs::read_to_string(folder.join("out").join(name)).unwrap();
        serde_json::from_str(&text).unwrap()
    };
    let record = line("results.jsonl");
    assert_eq!(record["trace"].as_array().unwrap().len(), 1);
    assert_eq!(record["truth"], Value::Null);
    // The evaluation at strength 1 has the scores of the run: the same prompts, identifier and held-out
    // images.
    assert_eq!(line("probes.jsonl")["scores"], record["after"]);
    let last = &line("peft.jsonl")["train_info"]["metrics"][1];
    for (theirs, ours) in [("test dino_similarity", "dino"), ("drift", "drift_dino")] {
        let distance = last[theirs].as_f64().unwrap() - record["after"][ours].as_f64().unwrap();
        assert!(distance.abs() < 1e-6, "{last}");
    }

    let run = folder.join("out/runs").join(record["id"].as_str().unwrap());
    let config = std::fs::read_to_string(run.join("config.toml")).unwrap();
    assert!(config.contains("\"a sks mug on a beach\", \"a red sks mug\""), "{config}");
    let scores = std::fs::read_to_string(run.join("scores.json")).unwrap();
    let scores: Value = serde_json::from_str(&scores).unwrap();
    assert_eq!(scores["held_out"].as_array().unwrap().len(), 1);
    let report = std::fs::read_to_string(folder.join("out/report.html")).unwrap();
    assert!(report.contains("the held-out images"), "{report}");
    assert!(report.contains("Over the steps"), "{report}");
}

/// Two shards in one folder do the runs of the plan once, and the report joins them. So it does with the
/// results of two folders.
#[test]
fn shards_do_the_runs_of_a_plan_and_the_report_joins_them() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    let plan = format!(
        r#"
[train]
base = {:?}
judges = {:?}
steps = 1
batch_size = 1
targets = ['mid_block.*to_q\.weight$']
samples = {{ steps = 1, prompts = ["a mug"], unrelated = [] }}
validation.every = 0

[score]
data = [{:?}]
seeds = [1, 2]

[[arm]]
name = "lora"
train.method = "lora"

[[arm]]
name = "svdiff"
train.method = "svdiff"
"#,
        toybox("base"),
        toybox("eval"),
        toybox("subjects/castle_mug")
    );
    std::fs::write(folder.join("plan.toml"), plan).unwrap();
    let run = |args: &[&str]| {
        let output = soda(folder, &[&["compare"], args].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned() + &said
    };
    let ids = |path: &str| -> Vec<String> {
        let text = std::fs::read_to_string(folder.join(path)).unwrap();
        let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].to_string();
        text.lines().map(id).collect()
    };
    for shard in ["1/2", "2/2"] {
        let said = run(&["plan.toml", "--out", "out", "--shard", shard]);
        assert!(said.contains(&format!("shard {shard} is done")), "{said}");
    }
    let mut all = [ids("out/results-1-of-2.jsonl"), ids("out/results-2-of-2.jsonl")].concat();
    assert!(!folder.join("out/report.html").exists());
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 4, "{all:?}");
    assert!(run(&["report", "out"]).contains("4 of 4 runs are finished"));
    let report = std::fs::read_to_string(folder.join("out/report.html")).unwrap();
    assert!(report.contains("lora") && report.contains("svdiff"));
    // Nothing is left for a comparison without shards.
    run(&["plan.toml", "--out", "out"]);
    assert_eq!(ids("out/results.jsonl"), Vec::<String>::new());
    // The results of two machines that share no folder.
    std::fs::create_dir(folder.join("a")).unwrap();
    std::fs::create_dir(folder.join("b")).unwrap();
    for (to, name) in [("a", "results-1-of-2.jsonl"), ("b", "results-2-of-2.jsonl")] {
        std::fs::copy(folder.join("out").join(name), folder.join(to).join(name)).unwrap();
    }
    std::fs::copy(folder.join("plan.toml"), folder.join("a/plan.toml")).unwrap();
    std::fs::rename(folder.join("out/runs"), folder.join("b/runs")).unwrap();
    assert!(run(&["report", "a", "b"]).contains("4 of 4 runs are finished"));

    for (args, code, expected) in [
        (&["plan.toml", "--out", "out", "--shard", "3/2"][..], 2, "such as 1/4"),
        (&["plan.toml", "--out", "out", "--shard", "auto"], 2, "SLURM_ARRAY_TASK_ID"),
        (&["report", "b"], 1, "b holds no comparison"),
    ] {
        let output = soda(folder, &[&["compare"], args].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}
