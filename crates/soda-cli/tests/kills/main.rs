//! Commands that are killed (SIGKILL) at any moment, or at any of their changes to files, lose nothing, leave
//! nothing half and nothing behind. The same holds where a change fails: a full disk, an error of the device.
//!
//! The moments and changes follow from a seed. `SODA_KILLS=50` harms each command so many times, and
//! `SODA_KILL_SEED` chooses others; by default one or two show that the mechanism works:
//!
//! ```sh
//! SODA_KILLS=50 cargo test --workspace --test kills -- --nocapture
//! ```

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod case;
#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "hub")]
#[path = "../../../soda-hub/tests/server/mod.rs"]
mod server;
mod tree;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use case::{Case, End, Harm, Process};
use soda_pipeline::AdapterFile;
use soda_testing::{Fault, Faults};

/// A path in `examples/toybox`.
fn toybox(name: &str) -> String {
    common::toybox(name).canonicalize().unwrap().display().to_string()
}

/// A number of the environment.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// Numbers that follow from a seed and a name.
struct Draw(u64);

impl Draw {
    fn new(name: &str) -> Self {
        let seed = number("SODA_KILL_SEED", 18);
        Self(name.bytes().fold(seed, |state, byte| state.wrapping_mul(257) + u64::from(byte)))
    }

    /// A number from 0 up to, but not, 1.
    fn share(&mut self) -> f64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f64 / (1_u64 << 24) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        (self.share() * end as f64) as usize
    }
}

/// A folder for the cases of one test, with a trained adapter and an empty folder.
struct Home {
    folder: tempfile::TempDir,
    faults: Faults,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("empty")).unwrap();
        let faults = Faults::compile(folder.path());
        Self { folder, faults }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Trains an adapter outside of the folders of the cases.
    fn adapter(&self) -> String {
        finish(self.folder.path(), &train_args(1, &["method=lora"]));
        self.path("runs/a/adapter.safetensors").display().to_string()
    }

    /// A case that starts in an empty folder.
    fn case(&self, name: &'static str, args: &[&str]) -> Case {
        Case::new(name, &self.path("empty"), strings(args))
    }

    /// A run that was killed after its first checkpoint and goes on.
    fn resumed(&self, name: &'static str, settings: &[&str]) -> Case {
        let before = self.path(name);
        let fresh = Case::new(name, &self.path("empty"), train_args(2, settings));
        let whole = fresh.finish(&self.faults, &self.path("work"));
        let is_first = |call: &String| {
            call.starts_with("rename ") && call.ends_with("checkpoints/00000001.safetensors")
        };
        let first = 1 + whole.calls.iter().position(is_first).unwrap();
        std::fs::create_dir(&before).unwrap();
        let mut command = soda(&before, &fresh.args);
        self.faults.interfere(&mut command, &before, first, Fault::KillAfter);
        assert_eq!(command.status().unwrap().code(), None, "{name}: not killed");
        let args = strings(&["train", "--resume", "runs/a"]);
        Case { run: Some("runs/a"), ..Case::new(name, &before, args) }
    }

    /// Harms each case as often as `SODA_KILLS` says.
    ///
    /// # Panics
    /// With all broken laws.
    fn harm_all(&self, cases: &[Case], default: u64) {
        let work = self.path("work");
        let mut broken = Vec::new();
        for case in cases {
            let whole = case.finish(&self.faults, &work);
            let mut draw = Draw::new(case.name);
            let mut ends = Vec::new();
            let count = number("SODA_KILLS", default);
            for index in 0..count as usize {
                let harm = match index % 5 {
                    4 => Harm::Moment(whole.took.mul_f64(draw.share())),
                    _ => Harm::Call(
                        choose(&whole.calls, &mut draw),
                        Fault::ALL[draw.below(Fault::ALL.len())],
                    ),
                };
                match case.harm(&self.faults, &work, harm, &whole) {
                    Ok(end) => ends.push(end),
                    Err(law) => {
                        let at = match harm {
                            Harm::Call(number, _) => &whole.calls[number - 1],
                            Harm::Moment(_) => "",
                        };
                        broken.push(format!("{}, {harm:?} {at}: {law}", case.name));
                    }
                }
            }
            let number = |end: End| ends.iter().filter(|found| **found == end).count();
            report(&format!(
                "{}: {} killed, {} failed, {} succeeded of {count}; {} changes of files",
                case.name,
                number(End::Killed),
                number(End::Failed),
                number(End::Succeeded),
                whole.calls.len()
            ));
        }
        assert!(broken.is_empty(), "{} laws broken:\n{}", broken.len(), broken.join("\n"));
    }
}

#[allow(clippy::print_stdout, reason = "the long form says how far it is")]
fn report(text: &str) {
    println!("{text}");
}

/// The number of a change of a file. Half of them are no writes, which are the most.
fn choose(calls: &[String], draw: &mut Draw) -> usize {
    let is_write = |call: &String| call.starts_with("write");
    let others: Vec<usize> = (0..calls.len()).filter(|at| !is_write(&calls[*at])).collect();
    match draw.share() < 0.5 {
        true => others[draw.below(others.len())] + 1,
        false => draw.below(calls.len()) + 1,
    }
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

fn soda(folder: &Path, args: &[String]) -> Command {
    let mut command = Command::new(common::program());
    command.args(args).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// Runs a command to its end, and returns how long it took.
fn finish(folder: &Path, args: &[String]) -> Duration {
    let started = Instant::now();
    assert!(soda(folder, args).status().unwrap().success(), "{args:?}");
    started.elapsed()
}

/// The smallest run, with a checkpoint after each step.
fn train_args(steps: usize, settings: &[&str]) -> Vec<String> {
    let mut args = ["train", "--name", "a", "--sample", "a mug", "--batch-size", "1"].to_vec();
    let steps = steps.to_string();
    args.extend(["--steps", &steps, "--target", r"mid_block.*to_q\.weight$"]);
    let always = [
        "samples.steps=1",
        "samples.unrelated=[]",
        "validation.every=0",
        "checkpoints.every=1",
        "checkpoints.keep=1",
        "shards=1",
    ];
    for setting in always.iter().chain(settings) {
        args.extend(["--set", setting]);
    }
    let (base, data) = (toybox("base"), toybox("subjects/castle_mug"));
    args.extend(["--base", &base, "--data", &data]);
    strings(&args)
}

#[test]
fn a_harmed_command_leaves_its_output_whole_or_not_at_all() {
    let home = Home::new();
    let (base, data, judges) = (toybox("base"), toybox("subjects/castle_mug"), toybox("eval"));
    let adapter = home.adapter();
    let export = |name: &'static str, format: &str, out: &str| {
        let args = ["export", "--base", &base, "--adapter", &adapter, "--format", format];
        home.case(name, &[&args[..], &["--out", out]].concat())
    };
    let kohya = home.path("kohya.safetensors").display().to_string();
    let args = ["export", "--base", &base, "--adapter", &adapter, "--format", "kohya", "--out"];
    finish(&home.path("empty"), &strings(&[&args[..], &[&kohya]].concat()));
    let draw = ["generate", "--base", &base, "--prompt", "x", "--prompt", "y", "--steps", "1"];
    home.harm_all(
        &[
            home.case("merge", &["merge", "--base", &base, "--adapter", &adapter, "--out", "o"]),
            home.case(
                "convert to a directory",
                &["convert", "--base", &base, "--out", "o", "--dtype", "bf16"],
            ),
            home.case(
                "convert to a file",
                &["convert", "--base", &base, "--out", "o.safetensors", "--dtype", "f16"],
            ),
            export("export of differences", "diff", "o.safetensors"),
            export("export for PEFT", "peft", "o"),
            home.case("import", &["import", &kohya, "--base", &base, "--out", "o.safetensors"]),
            home.case("generate", &[&draw[..], &["--out", "o"]].concat()),
            home.case(
                "evaluate",
                &["evaluate", "--base", &base, "--judges", &judges, "--data", &data]
                    .into_iter()
                    .chain(["--prompt", "x", "--steps", "1", "--out", "o"])
                    .collect::<Vec<_>>(),
            ),
        ],
        1,
    );
}

/// The decompositions and encodings of a cache are read, or made again where they are missing.
#[test]
fn a_harmed_cache_and_a_harmed_download_are_completed() {
    let home = Home::new();
    let mut train = train_args(1, &["tensorboard=true", "prior.prompt=a mug", "prior.count=2"]);
    train.extend(["--cache".to_owned(), "cache".to_owned()]);
    let fresh = Case::new("train with a cache", &home.path("empty"), train);
    let mut cases = vec![Case { run: Some("runs/a"), cache: Some("cache"), ..fresh }];
    #[cfg(feature = "hub")]
    let server = server::serve(server::toybox_repo());
    #[cfg(feature = "hub")]
    {
        let args = ["convert", "--base", "toys/base", "--out", "o.safetensors"];
        let mut hub = home.case("convert of a download", &args);
        hub.env = vec![
            ("HF_ENDPOINT", server.endpoint.clone()),
            ("HF_HOME", "home".to_owned()),
            ("NO_PROXY", "127.0.0.1".to_owned()),
        ];
        cases.push(hub);
    }
    home.harm_all(&cases, 2);
}

/// The state of every optimizer, of the average, of text encoders and of new words survives.
#[test]
fn a_harmed_run_goes_on() {
    let home = Home::new();
    let cases = [
        home.resumed(
            "resume with Stiefel Adam, an average and text encoders",
            &[
                "optimizer.ema_decay=0.9",
                r"text_encoder.targets=['layers\.1\..*q_proj\.weight$']",
                "samples.every=1",
                "tensorboard=true",
            ],
        ),
        home.resumed(
            "resume with AdamW and new words",
            &["method=lora", "tokens.words={'sks'='mug'}"],
        ),
        home.resumed("resume with AdamW of 8 bits", &["method=lora", "optimizer.flat=adamw-8bit"]),
        home.resumed(
            "resume with Prodigy",
            &["method=lora", "optimizer.flat=prodigy", "optimizer.spectrum_lr=1"],
        ),
    ];
    home.harm_all(&cases, 1);
}

/// A comparison ends with its processes, and finishes when it is started again.
#[test]
fn a_harmed_comparison_goes_on_without_orphans() {
    let home = Home::new();
    let plan = home.path("plan.toml");
    let text = format!(
        r#"
[train]
base = {:?}
judges = {:?}
steps = 1
batch_size = 1
shards = 1
targets = ['mid_block.*to_q\.weight$']
validation.every = 0
samples = {{ steps = 1, prompts = ["a mug"], unrelated = [] }}

[score]
data = [{:?}]
seeds = [0]

[[arm]]
name = "lora"
train.method = "lora"

[[strength]]
arm = "lora"
at = [1.0]
"#,
        toybox("base"),
        toybox("eval"),
        toybox("subjects/castle_mug"),
    );
    std::fs::write(&plan, text).unwrap();
    let plan = plan.display().to_string();
    let compare = |name| home.case(name, &["compare", &plan, "--out", "out", "--cache", "cache"]);
    let child = Case { process: Process::Child, ..compare("compare, in its processes") };
    home.harm_all(&[compare("compare"), child], 1);
}

/// A run is killed again and again and goes on, under the same name if it had not begun, until it is
/// finished.
#[test]
fn a_run_killed_many_times_loses_nothing() {
    const STEPS: usize = 6;
    let home = Home::new();
    let [straight, killed] = ["straight", "killed"].map(|name| home.path(name));
    [&straight, &killed].into_iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
    let train = train_args(STEPS, &[]);
    let whole = finish(&straight, &train);
    let run = killed.join("runs/a");
    let resume = strings(&["train", "--resume", "runs/a"]);
    let next = || if run.exists() { &resume } else { &train };
    let mut draw = Draw::new("many");
    for _ in 0..number("SODA_KILLS", 3) {
        let mut child = soda(&killed, next()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(draw.share()));
        child.kill().unwrap();
        child.wait().unwrap();
        if run.join("report.html").exists() {
            std::fs::remove_dir_all(&run).unwrap();
        }
    }
    finish(&killed, next());
    let found = tree::tree(&killed);
    let differs = tree::difference(&found, &tree::tree(&straight));
    assert_eq!(differs, None);
    let adapter: AdapterFile = AdapterFile::read(&run.join("adapter.safetensors")).unwrap();
    assert!(adapter.num_tensors() > 0);
}

/// Pictures are files of their own: a kill between two of them leaves the first.
#[test]
fn pictures_that_a_killed_command_drew_are_kept() {
    let home = tempfile::tempdir().unwrap();
    let draw = |prompts: [&str; 2]| {
        let args = ["generate", "--base", &toybox("base"), "--steps", "1", "--out", "o"];
        let prompts = prompts.into_iter().flat_map(|prompt| ["--prompt", prompt]);
        let args: Vec<&str> = args.into_iter().chain(prompts).collect();
        let output = soda(home.path(), &strings(&args)).stderr(Stdio::piped()).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let tree = || tree::tree(home.path());
    assert!(draw(["x", "y"]).0);
    let (whole, first) = (tree(), home.path().join("o/seed0-00.png"));
    let (drawn, said) = draw(["x", "y"]);
    assert!(!drawn && said.contains("seed0-00.png exists"), "{said}");
    for name in ["o/seed0-00.png", "o/seed0-01.png"] {
        std::fs::remove_file(home.path().join(name)).unwrap();
        // A picture of another prompt is not taken for the missing one, and is not overwritten.
        let before = tree();
        let (drawn, said) = draw(["z", "z"]);
        assert!(!drawn && said.contains("exists; give another --out"), "{said}");
        assert_eq!(tree::difference(&tree(), &before), None);
        assert!(draw(["x", "y"]).0);
        assert_eq!(tree::difference(&tree(), &whole), None);
    }
    // Neither is one with the same settings and other pixels.
    let mut bytes = std::fs::read(&first).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&first, &bytes).unwrap();
    std::fs::remove_file(home.path().join("o/seed0-01.png")).unwrap();
    let (drawn, said) = draw(["x", "y"]);
    assert!(!drawn && said.contains("exists; give another --out"), "{said}");
    assert!(std::fs::read(&first).unwrap() == bytes);
}

/// A kill after the report leaves the checkpoints, which nothing would remove any more.
#[test]
fn a_finished_run_keeps_no_checkpoints() {
    let home = tempfile::tempdir().unwrap();
    finish(home.path(), &train_args(1, &["method=lora"]));
    let checkpoints = home.path().join("runs/a/checkpoints");
    std::fs::create_dir(&checkpoints).unwrap();
    std::fs::write(checkpoints.join("00000001.safetensors"), "x").unwrap();
    let mut resume = soda(home.path(), &strings(&["train", "--resume", "runs/a"]));
    let output = resume.stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("is finished") && !checkpoints.exists(), "{said}");
}
