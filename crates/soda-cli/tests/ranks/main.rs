//! Trainings of several processes on the bundled model: the same result as one process, and no rank that is
//! lost goes unnoticed.
//!
//! `SODA_KILLS=50` kills so many ranks; by default a few show that the mechanism works.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../common/mod.rs"]
mod common;
mod divided;
mod world;

use std::path::Path;
use std::time::{Duration, Instant};

use common::toybox;
use soda_pipeline::AdapterFile;
use soda_testing::{max_abs_diff, relative_error};
use world::{World, losses, rank, text};

/// A short training. `settings` come after the usual ones.
fn train(name: &str, batch: usize, steps: usize, settings: &[&str]) -> Vec<String> {
    let (base, data) = (toybox("base"), toybox("subjects/castle_mug"));
    let mut args: Vec<String> =
        ["train", "--name", name, "--sample", "a mug"].map(str::to_owned).into();
    args.extend([
        "--batch-size".to_owned(),
        batch.to_string(),
        "--steps".to_owned(),
        steps.to_string(),
    ]);
    args.extend(["--base".to_owned(), base.display().to_string()]);
    args.extend(["--data".to_owned(), data.display().to_string()]);
    args.extend(["--target", r"mid_block.*to_q\.weight$"].map(str::to_owned));
    let always = ["samples.steps=1", "samples.unrelated=[]", "validation.every=0", "shards=1"];
    for setting in always.iter().chain(settings) {
        args.extend(["--set".to_owned(), (*setting).to_owned()]);
    }
    args
}

/// The trained parameters of a run, in order.
fn adapter(folder: &Path, name: &str) -> Vec<f32> {
    let path = folder.join("runs").join(name).join("adapter.safetensors");
    let file: AdapterFile = AdapterFile::read(&path).unwrap();
    let mut values = Vec::new();
    for state in file.adapters.values() {
        for data in state.tensors.values() {
            values.extend(data.iter::<f32>());
        }
    }
    assert!(!values.is_empty());
    values
}

/// Everything that draws random numbers: captions, crops, posteriors, timesteps, noise, class images.
const RANDOM: [&str; 9] = [
    "accumulation=2",
    "augment.flip=true",
    "augment.caption_dropout=0.2",
    "objective.noise_offset=0.05",
    "objective.min_snr_gamma=5",
    "validation.every=5",
    "validation.held_out=0.4",
    "optimizer.max_grad_norm=0.01",
    "checkpoints.every=4",
];

#[test]
fn two_processes_train_as_one_with_the_double_batch_and_always_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let prior = format!("prior.data={}", toybox("subjects/garden_house").display());
    let settings = [&RANDOM[..], &["prior.prompt=a photo of a mug", &prior]].concat();
    let soda = |args: &[String]| {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = common::soda(folder.path(), &args);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    soda(&train("one", 4, 20, &settings));
    for name in ["two", "again"] {
        let args = [train(name, 2, 20, &settings), vec!["--ranks=2".to_owned()]].concat();
        let said = soda(&args);
        assert!(
            said.contains("2 processes for 2 ranks: a step learns 8 images (2 x 2 x 2: ranks, batch_size, accumulation)"),
            "{said}"
        );
    }
    let all = ["one", "two", "again"]
        .map(|name| (adapter(folder.path(), name), losses(folder.path(), name)));
    let [one, two, again] = &all;
    assert_eq!(two.0, again.0, "two runs have other bits");
    assert_eq!(two.1, again.1, "two runs have other losses");
    assert!(max_abs_diff(&one.0, &vec![0.0; one.0.len()]) > 1e-3, "nothing was learnt");
    let errors = [relative_error(&two.0, &one.0), relative_error(&two.1, &one.1)];
    assert!(errors.iter().all(|error| *error <= 1e-5), "{errors:?}");
    // A process that stands for two ranks learns the same.
    soda(&train("logical", 2, 20, &[&settings[..], &["ranks=2"]].concat()));
    let error = relative_error(&adapter(folder.path(), "logical"), &one.0);
    assert!(error <= 1e-5, "{error}");
}

#[test]
fn three_processes_share_seven_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("seven");
    std::fs::create_dir(&data).unwrap();
    for (index, entry) in std::fs::read_dir(toybox("subjects/castle_mug")).unwrap().enumerate() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "png") {
            for copy in 0..7 {
                let to = data.join(format!("{copy}{index}.png"));
                if std::fs::read_dir(&data).unwrap().count() < 7 {
                    std::fs::copy(&path, to).unwrap();
                }
            }
        }
    }
    let settings = [format!("data='{}'", data.display()), "prompt=a mug".to_owned()];
    let settings = settings.each_ref().map(String::as_str);
    let with_data = |args: Vec<String>| {
        // The folder of the settings is the one above.
        let mut args = args;
        let at = args.iter().position(|arg| arg == "--data").unwrap();
        args.drain(at..at + 2);
        args
    };
    let world = World::start(folder.path(), 3, &with_data(train("three", 1, 10, &settings)));
    world.finish();
    let one = with_data(train("one", 3, 10, &settings));
    let args: Vec<&str> = one.iter().map(String::as_str).collect();
    let output = common::soda(folder.path(), &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let [three, one] = ["three", "one"].map(|name| adapter(folder.path(), name));
    assert!(relative_error(&three, &one) <= 1e-5, "{}", relative_error(&three, &one));
}

/// A run goes on with another number of processes, also where the batch does not divide.
#[test]
fn a_stopped_run_goes_on_with_another_number_of_processes() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ["checkpoints.every=1"];
    World::start(folder.path(), 2, &train("whole", 2, 12, &settings)).finish();
    let world = World::start(folder.path(), 2, &train("a", 2, 12, &settings));
    world.wait_for(&folder.path().join("runs/a/checkpoints/00000003.safetensors"));
    // A signal to one rank stops all at the same step.
    world.signal(1, "INT");
    let ends = world.ends();
    assert!(ends[0].contains("stopped after step"), "{ends:?}");
    assert!(ends[1].contains("rank 1 stopped after step"), "{ends:?}");
    let step = |text: &str| {
        let (_, rest) = text.split_once("after step ").unwrap();
        rest.chars().take_while(char::is_ascii_digit).collect::<String>()
    };
    assert_eq!(step(&ends[0]), step(&ends[1]), "{ends:?}");
    let resume = ["train", "--resume", "runs/a"].map(str::to_owned);
    World::start(folder.path(), 3, &resume).finish();
    let [a, whole] = ["a", "whole"].map(|name| adapter(folder.path(), name));
    assert!(relative_error(&a, &whole) <= 1e-5, "{}", relative_error(&a, &whole));
    assert_eq!(losses(folder.path(), "a").len(), 12);
}

/// A rank that is killed at any moment ends the other within seconds, with its name. The run goes on to the
/// bits of the undisturbed one.
#[test]
fn a_killed_rank_is_named_and_the_run_goes_on_to_the_same_bits() {
    let kills = std::env::var("SODA_KILLS").map_or(3, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    // A rank that is killed before it has met the other is missed for so long.
    let timeout = || "--rank-timeout=20".to_owned();
    let args =
        |name: &str| [train(name, 1, 30, &["checkpoints.every=3"]), vec![timeout()]].concat();
    let started = Instant::now();
    World::start(folder.path(), 2, &args("whole")).finish();
    let took = started.elapsed();
    let whole = adapter(folder.path(), "whole");
    for kill in 0..kills {
        let name = format!("k{kill}");
        let victim = kill % 2;
        let world = World::start(folder.path(), 2, &args(&name));
        // Moments that are spread over the run and repeat nothing.
        std::thread::sleep(took.mul_f64((kill as f64 * 0.618_034 + 0.3) % 1.0));
        let was_running = world.signal(victim, "KILL");
        let killed = Instant::now();
        let ends = world.ends();
        assert!(killed.elapsed() < Duration::from_secs(40), "{:?}: {ends:?}", killed.elapsed());
        let run = folder.path().join("runs").join(&name);
        if was_running && !run.join("report.html").is_file() {
            let other = &ends[1 - victim];
            // The other rank may have done all of its steps before.
            let named = other.contains(&format!("rank {victim} ")) || other.is_empty();
            assert!(named, "kill {kill} of rank {victim}: {ends:?}");
        }
        if run.join("config.toml").is_file() && !run.join("report.html").is_file() {
            let resume = ["train", "--resume", &format!("runs/{name}")].map(str::to_owned);
            World::start(folder.path(), 2, &resume).finish();
            let left = world::leftovers(&run);
            assert!(left.is_empty(), "{left:?}");
        }
        if run.join("adapter.safetensors").is_file() {
            assert_eq!(adapter(folder.path(), &name), whole, "kill {kill}");
        }
    }
}

#[test]
fn a_rank_that_hangs_is_named_within_the_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let args =
        [train("a", 1, 100_000, &["checkpoints.every=1"]), vec!["--rank-timeout=3".to_owned()]]
            .concat();
    let world = World::start(folder.path(), 2, &args);
    world.wait_for(&folder.path().join("runs/a/checkpoints/00000002.safetensors"));
    world.signal(1, "STOP");
    let started = Instant::now();
    let said = world.end_of(0);
    assert!(said.contains("rank 1 on ") && said.contains("has not answered for 3 s"), "{said}");
    assert!(said.contains("soda train --resume"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    world.signal(1, "CONT");
    let said = world.end_of(1);
    assert!(said.contains("has not answered for 3 s") || said.contains("rank 0 on"), "{said}");
}

#[test]
fn ranks_that_differ_end_with_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    common::copy_castle_mug(&other);
    let picture = std::fs::read_dir(&other).unwrap().map(|entry| entry.unwrap().path());
    let picture =
        picture.filter(|path| path.extension().is_some_and(|e| e == "png")).min().unwrap();
    let mut bytes = std::fs::read(&picture).unwrap();
    bytes.extend([0; 3]);
    std::fs::write(&picture, bytes).unwrap();
    let args = train("a", 1, 3, &[]);
    let with =
        |extra: &[&str]| [args.clone(), extra.iter().map(|e| (*e).to_owned()).collect()].concat();
    let mut with_data = args.clone();
    let at = with_data.iter().position(|arg| arg == "--data").unwrap();
    with_data[at + 1] = other.display().to_string();
    let name = picture.file_name().unwrap().to_str().unwrap();
    for (second, expected) in [
        (with(&["--set", "optimizer.rotation_lr=0.5"]), "in the setting `optimizer.rotation_lr`"),
        (with(&["--set", "validation.every=2"]), "in the setting `validation.every`"),
        (with_data, &*format!("in the picture or caption `{name}`")),
    ] {
        let started = Instant::now();
        let world = World::start_each(folder.path(), &[args.clone(), second]);
        let ends = world.ends();
        for end in &ends {
            assert!(end.contains("rank 1 on ") && end.contains(expected), "{expected}: {ends:?}");
            assert_eq!(end.trim().lines().count(), 1, "{end}");
        }
        assert!(started.elapsed() < Duration::from_secs(60));
        assert!(!folder.path().join("runs").exists(), "a run was begun");
    }
}

/// Only GPUs have NCCL. By default processors add over TCP and say nothing of it.
#[test]
fn processors_refuse_nccl_in_one_sentence() {
    if std::env::var("BURN_DEVICE").is_ok_and(|device| device != "flex") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, how: &[&str]| {
        let how: Vec<_> = ["--ranks=2"].iter().chain(how).map(|arg| (*arg).to_owned()).collect();
        let args = [train(name, 1, 1, &[]), how].concat();
        let output = rank(folder.path(), &args, &[]).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let (code, said) = run("nccl", &["--collectives=nccl"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("--collectives nccl: this rank computes on a processor"), "{said}");
    assert!(!folder.path().join("runs/nccl").exists());
    let (code, said) = run("auto", &[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(!said.contains("over TCP"), "{said}");
}

#[test]
fn variables_and_addresses_that_are_wrong_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let args = [train("a", 1, 1, &[]), vec!["--rank-timeout=1".to_owned()]].concat();
    let run = |variables: &[(&str, &str)]| {
        let output = rank(folder.path(), &args, variables).output().unwrap();
        (output.status.code(), text(&output.stderr))
    };
    let whole = [
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("LOCAL_RANK", "0"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "1"),
    ];
    let (code, said) = run(&whole[..3]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("MASTER_ADDR, MASTER_PORT is not: set all of them"), "{said}");
    let used = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = used.local_addr().unwrap().port().to_string();
    let with = |name: &'static str, value: &str| {
        let mut all = whole.map(|(name, value)| (name, value.to_owned()));
        all[4].1.clone_from(&port);
        all.iter_mut().find(|(other, _)| *other == name).unwrap().1 = value.to_owned();
        let all: Vec<_> = all.iter().map(|(name, value)| (*name, &**value)).collect();
        run(&all)
    };
    let started = Instant::now();
    for (name, value, expected) in [
        ("LOCAL_RANK", "0", "give another MASTER_PORT"),
        ("MASTER_ADDR", "192.0.2.1", "must be an address of the machine of rank 0"),
        ("MASTER_ADDR", "no-such-host.invalid", "no-such-host.invalid"),
        ("RANK", "2", "the variable RANK is `2`: give a number from 0 to 1"),
    ] {
        let (code, said) = with(name, value);
        assert!(said.contains(expected) && code != Some(0), "{name}={value}: {said}");
        assert_eq!(said.trim().lines().count(), 1, "{said}");
    }
    drop(used);
    let (_, said) = with("RANK", "1");
    assert!(said.contains("rank 1 on ") && said.contains("found no rank 0"), "{said}");
    let (_, said) = with("RANK", "0");
    assert!(said.contains("rank 1 did not connect to rank 0"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    // One launcher at a time.
    let both = [args.clone(), vec!["--ranks=2".to_owned()]].concat();
    let output = rank(folder.path(), &both, &whole).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("give one of the two"), "{}", text(&output.stderr));
    // More ranks than GPUs, or a build without them.
    let gpus = [args, vec!["--gpus=77,78".to_owned()]].concat();
    let output = rank(folder.path(), &gpus, &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cuda"), "{}", text(&output.stderr));
    assert!(!folder.path().join("runs").exists(), "a run was begun");
}

/// A rank that fails is named by the launcher's rank 0, and its sentence is shown.
#[test]
fn the_launcher_shows_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let args = [
        train("a", 1, 2, &["prior.prompt=a mug", "prior.data=/nowhere"]),
        vec!["--ranks=2".to_owned()],
    ];
    let args = args.concat();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let started = Instant::now();
    let output = common::soda(folder.path(), &args);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    let errors = said.lines().filter(|line| line.contains("error: ")).count();
    assert!(errors == 1 && said.contains("/nowhere"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(50), "{:?}", started.elapsed());
}

/// Class images that rank 0 draws, a method that is calibrated on data, text encoders and an average: the
/// others have them alike.
#[test]
fn what_is_made_before_the_first_step_is_the_same_on_all_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let settings = [
        "prior.prompt=a mug",
        "prior.count=3",
        "optimizer.ema_decay=0.9",
        "method=soda-subspace",
        r"text_encoder.targets=['layers\.1\..*q_proj\.weight$']",
        "text_encoder.learning_rate=1e-3",
    ];
    World::start(folder.path(), 2, &train("two", 1, 6, &settings)).finish();
    let one = train("one", 2, 6, &settings);
    let args: Vec<&str> = one.iter().map(String::as_str).collect();
    let output = common::soda(folder.path(), &args);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let [two, one] = ["two", "one"].map(|name| losses(folder.path(), name));
    assert!(relative_error(&two, &one) <= 1e-5, "{}", relative_error(&two, &one));
}
