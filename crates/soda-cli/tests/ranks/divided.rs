//! What the ranks divide: samples, scores and validation losses.

use std::path::Path;
use std::time::{Duration, Instant};

use super::common::toybox;
use super::world::{World, leftovers};
use super::{adapter, train};

/// Settings of samples before, during and after two steps, with scores and validation losses. `ranks` fixes
/// what a step learns and how the prompts are divided, whatever the number of processes.
fn sampled(name: &str, settings: &[&str]) -> Vec<String> {
    let judges = format!("judges={}", toybox("eval").display());
    let always = [
        &*judges,
        "samples.prompts=['a mug', 'a red mug', 'a mug on a table', 'a cup', 'a mug in a garden']",
        "samples.unrelated=['a house', 'a tree', 'a dog']",
        "samples.steps=2",
        "samples.every=1",
        "validation.every=1",
        "validation.held_out=0.4",
    ];
    train(name, 1, 2, &[&always[..], settings].concat())
}

/// The file `file` of a run.
fn read(folder: &Path, name: &str, file: &str) -> Vec<u8> {
    std::fs::read(folder.join("runs").join(name).join(file)).unwrap()
}

/// Pictures, scores and validation losses are the same files. The adapter does not move, since sums of
/// gradients of other numbers of processes differ by rounding.
#[test]
fn the_samples_of_two_and_three_processes_are_those_of_one_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let still = ["ranks=6", "optimizer.rotation_lr=0", "optimizer.spectrum_lr=0"];
    for (name, world) in [("one", 1), ("two", 2), ("three", 3)] {
        World::start(folder.path(), world, &sampled(name, &still)).finish();
    }
    let files = [
        "before.png",
        "samples/00000001.png",
        "after.png",
        "unrelated.png",
        "scores.json",
        "samples/00000001.json",
        "adapter.safetensors",
    ];
    for name in ["two", "three"] {
        for file in files {
            // The header of an adapter has the seconds of its training.
            let same = match file {
                "adapter.safetensors" => {
                    adapter(folder.path(), name) == adapter(folder.path(), "one")
                }
                _ => read(folder.path(), name, file) == read(folder.path(), "one", file),
            };
            assert!(same, "{name}: {file}");
        }
    }
    let losses = ["one", "two", "three"].map(|name| {
        let report = String::from_utf8(read(folder.path(), name, "events.jsonl")).unwrap();
        let lines = report.lines().filter(|line| line.contains("\"event\":\"validation\""));
        let value = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["values"].to_string()
        };
        lines.map(value).collect::<Vec<_>>()
    });
    assert_eq!(losses[0].len(), 3, "{losses:?}");
    assert!(losses.iter().all(|of| *of == losses[0]), "{losses:?}");
}

/// Two processes, and one that stands for two ranks, have the same sums and so the same pictures of a trained
/// adapter.
#[test]
fn a_trained_adapter_and_its_samples_are_the_same_in_one_process_and_in_two() {
    let folder = tempfile::tempdir().unwrap();
    // All ranks go back to the adapter of the same step.
    let chosen = [
        "ranks=2",
        "validation.load_best_model_at_end=true",
        "validation.metric_for_best_model=clip_t",
    ];
    for (name, world) in [("one", 1), ("two", 2)] {
        World::start(folder.path(), world, &sampled(name, &chosen)).finish();
    }
    assert_eq!(adapter(folder.path(), "two"), adapter(folder.path(), "one"));
    for file in ["samples/00000001.png", "after.png", "unrelated.png", "scores.json"] {
        let [one, two] = ["one", "two"].map(|name| read(folder.path(), name, file));
        assert!(one == two, "{file}");
    }
    let [before, after] = ["before.png", "after.png"].map(|file| read(folder.path(), "one", file));
    assert!(before != after, "nothing was learnt");
}

/// A rank that is killed while samples are divided ends the other with its name. The run goes on to the bits
/// of the undisturbed one.
#[test]
fn a_rank_that_is_killed_while_samples_are_divided_is_named() {
    let folder = tempfile::tempdir().unwrap();
    World::start(folder.path(), 2, &sampled("whole", &[])).finish();
    for victim in [1, 0] {
        let name = format!("k{victim}");
        // Samples that take far longer than the step before them.
        let world = World::start(folder.path(), 2, &sampled(&name, &["samples.steps=60"]));
        let run = folder.path().join("runs").join(&name);
        world.wait_for(&run.join("before.png"));
        let log = run.join("events.jsonl");
        let started = Instant::now();
        while !std::fs::read_to_string(&log).unwrap_or_default().contains("\"name\":\"sampling\"") {
            assert!(started.elapsed() < Duration::from_secs(60), "no samples are begun");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(world.signal(victim, "KILL"), "the run was over");
        let killed = Instant::now();
        let ends = world.ends();
        assert!(killed.elapsed() < Duration::from_secs(60), "{:?}: {ends:?}", killed.elapsed());
        assert!(!run.join("samples/00000001.png").is_file(), "the samples were there: {ends:?}");
        let other = &ends[1 - victim];
        let gone = format!("rank {victim} on ");
        assert!(other.contains(&gone) && other.contains("has gone"), "{ends:?}");
        if victim == 1 {
            assert!(
                other.contains("--resume") && other.contains("goes on after step 1"),
                "{ends:?}"
            );
            let resume = ["train", "--resume", "runs/k1"].map(str::to_owned);
            World::start(folder.path(), 2, &resume).finish();
            assert!(run.join("samples/00000001.png").is_file(), "the samples were left out");
            assert_eq!(adapter(folder.path(), &name), adapter(folder.path(), "whole"));
            assert!(leftovers(&run).is_empty(), "{:?}", leftovers(&run));
        }
    }
}

/// The caches of encodings have the same files, which rank 0 alone writes, and the adapters the same bits.
#[test]
fn encodings_are_those_of_one_process_and_rank_0_alone_stores_them() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        "ranks=2",
        "augment.flip=true",
        "augment.tag_orders=2",
        "validation.every=2",
        "validation.held_out=0.4",
    ];
    let files = |cache: &str| {
        let mut all = Vec::new();
        for entry in std::fs::read_dir(folder.path().join(cache)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.ends_with(".latents") || name.ends_with(".text") {
                all.push((name, std::fs::read(&path).unwrap()));
            }
        }
        all.sort();
        all
    };
    let args = |name: &str, cache: &str| {
        [train(name, 1, 2, &settings), vec![format!("--cache={cache}")]].concat()
    };
    World::start(folder.path(), 1, &args("one", "one")).finish();
    // The cache of rank 1 is another folder.
    World::start_each(folder.path(), &[args("two", "two"), args("two", "other")]).finish();
    World::start(folder.path(), 3, &args("three", "three")).finish();
    let expected = files("one");
    assert!(expected.len() > 8, "{}", expected.len());
    for cache in ["two", "three"] {
        assert!(files(cache) == expected, "{cache}: other files");
    }
    let other = folder.path().join("other");
    assert!(!other.exists() || files("other").is_empty(), "rank 1 has written");
    assert_eq!(adapter(folder.path(), "two"), adapter(folder.path(), "one"));

    // A full cache is read, and a damaged entry is made again.
    let (name, _) = expected.iter().find(|(name, _)| name.ends_with(".latents")).unwrap();
    std::fs::write(folder.path().join("two").join(name), "damaged").unwrap();
    World::start(folder.path(), 2, &args("again", "two")).finish();
    assert!(files("two") == expected, "other files after damage");
    assert_eq!(adapter(folder.path(), "again"), adapter(folder.path(), "one"));
}

/// Class pictures are drawn by all ranks, eight at a time, and written by rank 0.
#[test]
fn class_pictures_are_those_of_one_process_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ["ranks=2", "prior.prompt=a mug", "prior.count=18"];
    for (name, world) in [("one", 1), ("two", 2)] {
        World::start(folder.path(), world, &train(name, 1, 2, &settings)).finish();
    }
    for index in 0..18 {
        let file = format!("class/{index:04}.png");
        assert!(
            read(folder.path(), "one", &file) == read(folder.path(), "two", &file),
            "picture {index} differs"
        );
    }
    assert_eq!(adapter(folder.path(), "two"), adapter(folder.path(), "one"));
}

/// A method that is calibrated on data and decomposes weights has the same directions and the same adapter.
/// The cache of rank 0 says whether the ranks measure, whatever those of the others hold.
#[test]
fn calibrations_and_decompositions_are_those_of_one_process_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ["ranks=2", "method=soda-subspace"];
    let args = |name: &str, cache: &str| {
        [train(name, 1, 2, &settings), vec![format!("--cache={cache}")]].concat()
    };
    let calibration = |cache: &str| {
        let entries = std::fs::read_dir(folder.path().join(cache)).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let found: Vec<_> =
            paths.filter(|path| path.extension().is_some_and(|e| e == "calibration")).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        std::fs::read(&found[0]).unwrap()
    };
    World::start(folder.path(), 1, &args("one", "one")).finish();
    World::start(folder.path(), 3, &args("three", "three")).finish();
    // Rank 1 alone has the calibration, then rank 0 alone.
    World::start_each(folder.path(), &[args("two", "two"), args("two", "one")]).finish();
    World::start_each(folder.path(), &[args("again", "two"), args("again", "empty")]).finish();
    for cache in ["three", "two"] {
        assert!(calibration(cache) == calibration("one"), "{cache}: another calibration");
    }
    for name in ["two", "again"] {
        assert_eq!(adapter(folder.path(), name), adapter(folder.path(), "one"), "{name}");
    }
}
