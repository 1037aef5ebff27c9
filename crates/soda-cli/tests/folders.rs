//! Data folders as other programs and systems leave them, from the command line.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Output;

use common::{soda, toybox};
use soda_pipeline::AdapterFile;

/// A folder in which data sets are made.
struct Desk {
    folder: tempfile::TempDir,
}

impl Desk {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file, with the bytes of a picture if it is one that is to be read.
    fn write(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    /// Copies a picture of the bundled data.
    fn picture(&self, name: &str) {
        let bytes = std::fs::read(toybox("subjects/castle_mug/00.png")).unwrap();
        self.write(name, &bytes);
    }

    /// One step on the data set `data`.
    fn train(&self, data: &str, more: &[&str]) -> Output {
        let base = toybox("base");
        let args = [
            "train",
            "--base",
            base.to_str().unwrap(),
            "--data",
            data,
            "--name",
            data,
            "--steps",
            "1",
            "--batch-size",
            "1",
            "--method",
            "lora",
            "--set",
            "method.rank=1",
            "--set",
            "samples.steps=1",
            "--sample",
            "a",
            "--set",
            "validation.every=0",
            "--target",
            r"mid_block.*attn2\.to_q\.weight$",
        ];
        soda(self.folder.path(), &[&args[..], more].concat())
    }

    /// What a run that must succeed says.
    #[track_caller]
    fn run(&self, data: &str) -> String {
        let output = self.train(data, &[]);
        assert!(output.status.success(), "{}", said(&output));
        said(&output)
    }

    #[track_caller]
    fn refused(&self, data: &str, needles: &[&str]) {
        let output = self.train(data, &[]);
        let message = said(&output);
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
        for needle in needles {
            assert!(message.contains(needle), "`{needle}` is not in: {message}");
        }
    }

    /// Two runs have the same adapter, to the bit.
    #[track_caller]
    fn same(&self, one: &str, other: &str) {
        let read = |name: &str| -> AdapterFile {
            AdapterFile::read(&self.path("runs").join(name).join("adapter.safetensors")).unwrap()
        };
        let (one, other) = (read(one), read(other));
        assert!(one.num_tensors() > 0 && one.tensors().eq(other.tensors()));
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn utf16(text: &str) -> Vec<u8> {
    format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn byte_order_marks_are_no_part_of_captions() {
    let desk = Desk::new();
    let caption = "a photo of a red mug";
    let marked = format!("\u{feff}{caption}");
    let sets: [(&str, &[u8]); 4] = [
        ("plain", caption.as_bytes()),
        ("bom", marked.as_bytes()),
        ("wide", &utf16(caption)),
        ("latin", b"caf\xe9"),
    ];
    for (name, text) in sets {
        desk.picture(&format!("{name}/0.png"));
        desk.write(&format!("{name}/0.txt"), text);
    }
    let line = format!("{{\"file_name\": \"0.png\", \"text\": \"{caption}\"}}\r\n");
    for (name, text) in
        [("list", format!("\u{feff}{line}").into_bytes()), ("wide_list", utf16(&line))]
    {
        desk.picture(&format!("{name}/0.png"));
        desk.write(&format!("{name}/metadata.jsonl"), &text);
        desk.write(&format!("{name}/subject.json"), "\u{feff}{\"class\": \"mug\"}".as_bytes());
    }
    desk.run("plain");
    for name in ["bom", "wide", "list", "wide_list"] {
        desk.run(name);
        desk.same("plain", name);
    }
    desk.refused("latin", &["latin/0.txt is Latin-1", "save it as UTF-8"]);

    // A configuration that PowerShell has written.
    let config = std::fs::read_to_string(desk.path("runs/plain/config.toml")).unwrap();
    desk.write("wide.toml", &utf16(&config));
    let again = soda(desk.folder.path(), &["train", "--config", "wide.toml", "--name", "again"]);
    assert!(again.status.success(), "{}", said(&again));
    desk.same("plain", "again");
}

#[test]
fn folders_are_named_with_their_repeats() {
    let desk = Desk::new();
    for name in ["0_unused thing/0.png", "0_unused thing/1.png", "2_red mug/0.png", "more/x.png"] {
        desk.picture(&format!("mugs/{name}"));
    }
    let message = desk.run("mugs");
    for needle in [
        "warning: mugs/0_unused thing: 2 pictures are left out",
        "warning: mugs/more: 1 picture is not read",
        "folders: 1 of 2_red mug, 2 times each",
    ] {
        assert!(message.contains(needle), "`{needle}` is not in: {message}");
    }
    let report = std::fs::read_to_string(desk.path("runs/mugs/report.html")).unwrap();
    assert!(report.contains("1 training image,") && report.contains("2 times each"));

    desk.picture("dated/0.png");
    desk.write("dated/0.txt", b"a mug");
    desk.picture("dated/20240115_party/x.png");
    desk.refused("dated", &["20240115_party/x.png", "repeats"]);
    desk.picture("only/more/x.png");
    desk.refused("only", &["only/more", "`3_sks mug`"]);
}

#[test]
fn hidden_files_and_paths_of_imagefolder() {
    let desk = Desk::new();
    desk.picture("hidden/0.png");
    desk.write("hidden/0.txt", b"a mug");
    desk.write("hidden/._0.png", b"\0\x05\x16\x07");
    desk.write("hidden/._0.txt", b"\0\x05\x16\x07\xff");
    desk.picture("hidden/.trashed-1.png");
    desk.write("hidden/Thumbs.db", b"\xd0\xcf");
    let message = desk.run("hidden");
    assert!(!message.contains("warning"), "{message}");
    let report = std::fs::read_to_string(desk.path("runs/hidden/report.html")).unwrap();
    assert!(report.contains("1 training image,"), "a hidden picture is trained");

    let line = |name: &str| format!("{{\"file_name\": \"{name}\", \"text\": \"a mug\"}}\n");
    for (set, picture, name) in [
        ("nested", "images/0.png", "images/0.png"),
        ("dotted", "0.png", "./0.png"),
        ("composed", "cafe\u{301}.png", "caf\u{e9}.png"),
    ] {
        desk.picture(&format!("{set}/{picture}"));
        desk.write(&format!("{set}/metadata.jsonl"), line(name).as_bytes());
        desk.run(set);
        desk.same("hidden", set);
    }
    for (set, name, reason) in [
        ("absolute", "/abs/0.png", "is an absolute path"),
        ("outside", "../hidden/0.png", "leads out of the folder"),
    ] {
        desk.picture(&format!("{set}/0.png"));
        desk.write(&format!("{set}/metadata.jsonl"), line(name).as_bytes());
        desk.refused(set, &["metadata.jsonl, line 1", reason]);
    }
    assert!(Path::new(&desk.path("runs/nested/adapter.safetensors")).is_file());
}

/// The check prints every finding and fails only for a folder that a training would refuse.
#[test]
fn data_check_warns_and_fails_only_where_training_would() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("mug");
    std::fs::create_dir(&data).unwrap();
    for name in ["00.png", "01.png"] {
        std::fs::copy(toybox("subjects/castle_mug").join(name), data.join(name)).unwrap();
    }
    std::fs::copy(data.join("00.png"), data.join("02.png")).unwrap();
    let base = toybox("base").display().to_string();
    for (name, text) in
        [("00", "a photo of a sks mug"), ("01", "sks"), ("02", &"sks mug ".repeat(60))]
    {
        std::fs::write(data.join(name).with_extension("txt"), text).unwrap();
    }
    let check = |more: &[&str]| {
        let output = soda(folder.path(), &[&["data", "check", "mug"], more].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = check(&[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("warning: mug/02.png resembles mug/00.png, of whose dHash 0"), "{text}");
    assert!(
        text.contains("note: the length of the captions is not checked: give --base"),
        "{text}"
    );
    assert!(text.ends_with("3 pictures, 0 errors, 1 warning\n"), "{text}");

    let (code, text) =
        check(&["--trigger", "sks mug", "--resolution", "65", "--base", &base, "--json"]);
    assert_eq!(code, Some(0), "{text}");
    let found: serde_json::Value = serde_json::from_str(&text).unwrap();
    let kinds = found["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| (finding["path"].as_str().unwrap(), finding["kind"].as_str().unwrap()));
    let expected = [
        ("mug/00.png", "too_small"),
        ("mug/01.png", "too_small"),
        ("mug/01.png", "no_trigger"),
        ("mug/02.png", "too_small"),
        ("mug/02.png", "near_duplicate"),
        ("mug/02.png", "caption_too_long"),
    ];
    assert_eq!(kinds.collect::<Vec<_>>(), expected);
    assert_eq!(found["unchecked"].as_array().unwrap().len(), 0);

    std::fs::write(data.join("01.png"), "no picture").unwrap();
    let (code, text) = check(&[]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("error: "), "{text}");
    assert_eq!(soda(folder.path(), &["data", "check", "nowhere"]).status.code(), Some(1));
    assert_eq!(soda(folder.path(), &["data"]).status.code(), Some(2));
}
