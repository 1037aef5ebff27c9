//! Images of several shapes, masks and caches, from the command line.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use common::{program, soda, toybox};
use soda_pipeline::AdapterFile;

/// A folder with a data set `mug` of images of three shapes.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("mug");
        std::fs::create_dir(&data).unwrap();
        let shapes = [(64, 64), (64, 40), (42, 64), (64, 43)];
        for (index, (width, height)) in shapes.into_iter().enumerate() {
            let name = format!("{index:02}.png");
            let picture = image::open(toybox("subjects/castle_mug").join(&name)).unwrap();
            picture.crop_imm(0, 0, width, height).save(data.join(&name)).unwrap();
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A short run with the settings that interact with the data set.
    fn train(&self, name: &str, settings: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.current_dir(self.folder.path()).args(["train", "--name", name, "--base"]);
        command.arg(toybox("base")).args(["--data", "mug", "--prompt", "a photo of a sks mug"]);
        command.args(["--steps", "4", "--batch-size", "2", "--sample", "a mug"]);
        command.args(["--target", r"mid_block.*to_q\.weight$"]);
        for setting in ["samples.steps=1", "checkpoints.every=1", "shards=2", "accumulation=2"] {
            command.args(["--set", setting]);
        }
        for setting in settings {
            command.args(["--set", setting]);
        }
        command
    }

    fn run(&self, name: &str, settings: &[&str]) -> Output {
        let output = self.train(name, settings).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        output
    }

    /// The losses and the adapter of a finished run.
    fn result(&self, name: &str) -> (String, AdapterFile) {
        let run = self.path("runs").join(name);
        let losses = std::fs::read_to_string(run.join("loss.csv")).unwrap();
        (losses, AdapterFile::read(&run.join("adapter.safetensors")).unwrap())
    }

    #[track_caller]
    fn same(&self, one: &str, other: &str) {
        let ((losses, adapter), (others, another)) = (self.result(one), self.result(other));
        assert_eq!(losses, others);
        assert!(adapter.tensors().eq(another.tensors()));
    }
}

/// Standard error.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn wait_for(path: &Path) {
    while !path.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Batches of three shapes with gradient accumulation, shards and a prior. A killed and resumed run gives
/// the same bits.
#[test]
fn buckets_are_reported_and_a_run_with_buckets_resumes_to_the_bit() {
    let desk = Desk::new();
    let prior = format!("prior.data={}", toybox("subjects/garden_house").display());
    let settings = [
        "buckets.step=8",
        "augment.flip=true",
        "augment.crops=2",
        "validation.every=2",
        "prior.prompt=a house",
        &prior,
    ];
    let straight = desk.run("straight", &settings);
    let counts = "buckets: 1 of 48 x 80, 1 of 64 x 64, 2 of 80 x 48";
    assert!(said(&straight).contains(counts), "{}", said(&straight));
    let report = std::fs::read_to_string(desk.path("runs/straight/report.html")).unwrap();
    assert!(report.contains("2 of 80 x 48"));

    let mut child = desk.train("killed", &settings).spawn().unwrap();
    wait_for(&desk.path("runs/killed/checkpoints/00000002.safetensors"));
    child.kill().unwrap();
    child.wait().unwrap();
    let resumed = soda(desk.folder.path(), &["train", "--resume", "runs/killed"]);
    assert!(resumed.status.success(), "{}", said(&resumed));
    desk.same("straight", "killed");
}

#[test]
fn invalid_buckets_are_refused_in_one_sentence() {
    let desk = Desk::new();
    for (setting, needle) in [
        ("buckets.step=10", "`buckets.step` is 10: it must be a multiple of 4"),
        ("buckets.min_side=40", "`buckets.min_side` is 40"),
        ("buckets={}", "set a smaller `buckets.step`"),
        ("buckets.steps=8", "did you mean `step`?"),
    ] {
        let output = desk.train("refused", &[setting]).output().unwrap();
        let message = said(&output);
        assert!(!output.status.success() && message.contains(needle), "{message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    }
}

/// A white mask changes no bit of either loss. A mask that is partly black does.
#[test]
fn masks_weight_the_loss_and_white_masks_change_nothing() {
    let desk = Desk::new();
    let common = ["buckets.step=8", "augment.flip=true", "prior.prompt=a house"];
    let prior = format!("prior.data={}", toybox("subjects/garden_house").display());
    let with = |more: &[&'static str]| [&common[..], &[&prior], more].concat();
    let refused = desk.train("plain", &with(&["masks={}"])).output().unwrap();
    assert!(said(&refused).contains("no picture in mug has a mask: put NAME.mask.png"));

    let white = |name: &str, black: u32| {
        let picture = image::open(desk.path("mug").join(name)).unwrap();
        let grey = |x, _| image::Luma([if x < black { 0_u8 } else { 255 }]);
        let mask = image::GrayImage::from_fn(picture.width(), picture.height(), grey);
        mask.save(desk.path("mug").join(name.replace(".png", ".mask.png"))).unwrap();
    };
    white("00.png", 0);
    let plain = desk.run("plain", &with(&[]));
    assert!(said(&plain).contains("1 of the pictures have masks"), "{}", said(&plain));
    desk.run("white", &with(&["masks={}"]));
    desk.same("plain", "white");
    ["00.png", "01.png", "02.png", "03.png"].iter().for_each(|name| white(name, 30));
    desk.run("black", &with(&["masks={}"]));
    assert_ne!(desk.result("black").0, desk.result("plain").0);
    desk.run("dco", &["masks.normalize=true", "objective.loss=dco", "objective.min_snr_gamma=5"]);

    white("00.png", 64);
    let nothing = ["masks.unmasked_weight=0"];
    let refused = desk.train("nothing", &nothing).output().unwrap();
    assert!(said(&refused).contains("00.mask.png is black everywhere"), "{}", said(&refused));
}

/// A second start runs no encoder and gives the same run. Only a changed image is encoded again.
#[test]
fn a_second_start_finds_all_encodings_and_gives_the_same_bits() {
    let desk = Desk::new();
    let prior = format!("prior.data={}", toybox("subjects/garden_house").display());
    let settings = ["buckets.step=8", "augment.flip=true", "prior.prompt=a house", &prior];
    let cached = |name: &str| {
        let output = desk.train(name, &settings).args(["--cache", "cache"]).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    };
    desk.run("without", &settings);
    let first = cached("first");
    let second = cached("second");
    // Encodings: four images, their mirror images and their caption; five prior images with captions; the
    // empty prompt, twice.
    assert!(first.contains("cache: 1 encodings found, 20 made"), "{first}");
    assert!(second.contains("cache: 21 encodings found, 0 made"), "{second}");
    desk.same("without", "first");
    desk.same("without", "second");
    let picture = desk.path("mug/01.png");
    image::open(&picture).unwrap().fliph().save(&picture).unwrap();
    std::fs::write(desk.path("mug/02.txt"), "another caption").unwrap();
    let third = cached("third");
    assert!(third.contains("cache: 19 encodings found, 3 made"), "{third}");
}
