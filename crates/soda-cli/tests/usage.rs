//! Mistakes on the command line, negative numbers, and text of strangers on the terminal.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::path::Path;
use std::process::Output;

use common::{soda, toybox};

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs each command line in an empty folder. It must end with `code` and a message that has the words, and
/// write nothing.
#[track_caller]
fn all_end_with(code: i32, cases: &[(&str, &str)]) {
    let (base, data, judges) = (toybox("base"), toybox("subjects/castle_mug"), toybox("eval"));
    let flux = soda_testing::workspace_path("examples/toyflux/base");
    for (line, needle) in cases {
        let folder = tempfile::tempdir().unwrap();
        let args: Vec<&str> = line
            .split(' ')
            .map(|word| match word {
                "BASE" => base.to_str().unwrap(),
                "FLUX" => flux.to_str().unwrap(),
                "DATA" => data.to_str().unwrap(),
                "JUDGES" => judges.to_str().unwrap(),
                "EMPTY" => "",
                word => word,
            })
            .collect();
        let output = soda(folder.path(), &args);
        let message = said(&output);
        assert_eq!(output.status.code(), Some(code), "{line}: {message}");
        assert!(message.contains(needle), "{line}: `{needle}` is not in: {message}");
        assert!(!message.contains("panicked"), "{line}: {message}");
        let written = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(written, 0, "{line} wrote something");
    }
}

#[test]
fn every_usage_mistake_of_train_and_config_ends_with_2() {
    all_end_with(
        2,
        &[
            ("train --steps 3", "--base and --data"),
            ("train --base x --data y --set nonsense", "key=value"),
            ("train --base x --data y --set stepz=3", "did you mean `steps`"),
            ("train --base x --data y --batch-size 0", "batch_size"),
            ("train --base x --data y --batch-size -1", "--batch-size"),
            ("train --base x --data y --set accumulation=99999999", "a million samples"),
            ("train --base x --data y --set samples.steps=1000000000", "`samples.steps` must be"),
            ("train --base x --data y --set shards=x", "`shards`: invalid type"),
            ("train --base x --data y --steps many", "--steps"),
            ("train --base x --data y --seed -1", "a whole number from 0"),
            ("train --base x --data y --set seed=-1", "a whole number from 0"),
            ("train --base x --data y --rotation-lr inf", "finite"),
            ("train --base x --data y --rotation-lr -1", "rotation_lr"),
            ("train --base x --data y --text-encoder-lr -1", "text_encoder.learning_rate"),
            ("train --base x --data y --token-lr 1", "--token"),
            ("train --base x --data y --method lora --factors 3", "settings of SODA"),
            ("train --base x --data y --method lora --rotation-lr 1", "give --spectrum-lr"),
            ("train --base x --data y --method svdiff --rotation-lr 1", "give --spectrum-lr"),
            ("train --base x --data y --method gsoft --rotation-lr 1", "give --spectrum-lr"),
            ("train --base x --data y --rank 4", "tip: give --set method.rank=4"),
            ("train --base x --data y --alpha=4", "tip: give --set method.alpha=4"),
            ("train --base x --data y --resolution 64", "tip: give --set resolution=64"),
            ("config show --learning-rate 1e-4", "tip: give --spectrum-lr"),
            ("train --base x --data y --stepz 4", "'--steps'"),
            ("train --base x --data y --no-rotation --factors 3", "--factors"),
            ("train --base x --data y --set validation.held_out=1", "validation.held_out"),
            ("train --base x --data y --set objective.loss=dcx", "did you mean `dco`"),
            ("train --base x --data y --name EMPTY", "cannot name a run"),
            ("train --base x --data y --name ..", "cannot name a run"),
            ("train --base x --data y --name a/b", "cannot name a run"),
            ("train --base x --data y --name ../a", "cannot name a run"),
            ("train --base x --data y --runs EMPTY", "--runs"),
            ("train --base EMPTY --data y", "--base"),
            ("train --base x --data y --device cuda:-1", "cuda:N"),
            ("train --resume a --runs b", "--runs"),
            ("train --resume a --name b", "--name"),
            ("config show --method nosuch", "nosuch"),
            ("config show --preset nosuch", "nosuch"),
            ("config show --set stepz=3", "did you mean `steps`"),
            ("config show --set method.rnk=3 --method lora", "rnk"),
            ("config show --batch-size 0", "batch_size"),
            ("config", "Usage"),
            ("config check", "CONFIG"),
        ],
    );
}

#[test]
fn every_usage_mistake_of_the_other_commands_ends_with_2() {
    all_end_with(
        2,
        &[
            ("generate --base BASE --prompt x --karras", "--karras needs --scheduler"),
            ("generate --base BASE --prompt x --guidance nan", "finite"),
            ("generate --base BASE --prompt x --seed -1", "no number stands for a random one"),
            ("generate --base BASE --prompt x --seed 1.5", "a whole number from 0"),
            ("generate --base BASE --prompt x --width 0", "--width"),
            ("generate --base BASE --prompt x --steps 1 --width 7", "7"),
            ("generate --base BASE --prompt x --width 100000 --height 100000", "150000000 pixels"),
            ("generate --base BASE --prompt x --count 0", "--count"),
            ("generate --base BASE --prompt x --tile-size 63", "64..=16384"),
            ("generate --base FLUX --prompt x --scheduler ddim", "leave out --scheduler"),
            (
                "generate --base BASE --prompt x --text-encoder-out-layers 9,18",
                "CLIP text encoders",
            ),
            ("generate --base FLUX --prompt x --text-encoder-out-layers 9,18,99", "states 0 to 28"),
            ("generate --base FLUX --prompt x --max-sequence-length 4", "a chat of one word"),
            ("generate --base BASE --prompt x --clip-skip -1", "--clip-skip"),
            ("generate --base BASE --prompt x --clip-skip 99 --steps 1", "99"),
            ("generate --base BASE --prompt x --variant EMPTY", "--variant"),
            ("generate --base BASE --prompt x --strength-of-init 0.5", "--init"),
            ("generate --base BASE --prompt x --init i.png --strength-of-init -1", "above 0"),
            ("generate --base BASE --prompt x --out EMPTY", "--out"),
            ("generate --base BASE", "--prompt"),
            ("merge --base BASE --out q", "--adapter"),
            ("merge --base BASE --subject a --style b --weights 1 --out q", "two numbers"),
            ("merge --base BASE --subject a --style b --weights 1,nan --out q", "finite"),
            ("merge --base BASE --subject a --style b --weights --out q", "Usage"),
            ("merge --base BASE --subject a --out q", "--style"),
            ("merge --base BASE --adapter a --weights 1,1 --out q", "--subject"),
            ("merge --base BASE --adapter a --mode compose --out q", "--subject"),
            ("merge --base BASE --subject a --style b --restore 2 --out q", "from 0 to 1"),
            ("merge --base BASE --subject a --style b --restore 1 --out q", "--mode geodesic"),
            ("merge --base BASE --adapter a --subject b --style c --out q", "--subject"),
            ("convert --base BASE --config x --out y", "--config is for a single file"),
            ("convert --base BASE --out EMPTY", "--out"),
            ("evaluate --base BASE --judges JUDGES --data DATA --held-out 2 --out e", "--held-out"),
            (
                "evaluate --base BASE --judges JUDGES --data DATA --held-out -1 --out e",
                "--held-out",
            ),
            ("evaluate --base BASE --judges JUDGES --data DATA --guidance nan --out e", "finite"),
            ("evaluate --base BASE --judges JUDGES --data DATA --strength 1 --out e", "--adapter"),
            ("export --base BASE --adapter x --format kohya --error nan --out z", "finite"),
            ("export --base BASE --adapter x --format kohya --error -1 --out z", "--error"),
            ("export --base BASE --adapter x --format kohya --max-rank 0 --out z", "--max-rank"),
            ("export --base BASE --adapter x --format peft --strength 0.5 --out z", "PEFT"),
            ("export --base BASE --adapter x --format lora --out z", "lora"),
            ("export --base BASE --adapter x --format embeddings --dtype f16 --out z", "--dtype"),
            ("export --base BASE --adapter x --format kohya --out z.ckpt", ".safetensors"),
            ("export --base BASE --adapter x --format kohya --out z", ".safetensors"),
            ("export --base BASE --adapter x --format diff --max-rank 2 --out z", "--max-rank"),
            ("export --base BASE --adapter x --format diff --error 0.3 --out z", "--error"),
            (
                "export --base BASE --adapter x --format embeddings --strength 2 --out z",
                "--strength",
            ),
            ("export --base BASE --adapter x --format peft --out z.safetensors", "directories"),
            ("merge --base BASE --adapter x --out z.Safetensors", "merge writes a directory"),
            ("convert --base BASE --out z.ckpt", "no pickle"),
            ("import x --base BASE", "--out"),
            ("inspect", "PATH"),
            ("compare", "TOML"),
            ("compare x.toml", "--out"),
            ("compare x.toml --out q --gpus 0 --device cuda:1", "both choose a GPU"),
            ("compare x.toml --out q --jobs 0", "--jobs"),
            ("bench --batch 0", "--batch"),
            ("bench --steps 0", "--steps"),
            ("bench --latents 0", "--latents"),
            ("bench --rank 0 --method lora", "--rank"),
            ("bench --rank 4", "LoRA family"),
            ("bench --method nosuch", "nosuch"),
        ],
    );
}

/// A file that is missing or wrong is no usage mistake.
#[test]
fn what_the_files_are_to_blame_for_ends_with_1() {
    all_end_with(
        1,
        &[
            ("train --config no/such.toml", "no/such.toml"),
            ("generate --base no/such --prompt x --guidance -3", "no/such"),
            ("generate --base BASE --prompt x --adapter no/such --strength -1", "no/such"),
            ("merge --base BASE --subject no/a --style b --weights -0.5,1 --out q", "no/a"),
            ("convert --base no/such --out y", "no/such"),
            ("import no/such --base BASE --out y", "no/such"),
            ("generate --base BASE --prompt x --init no.png", "correct the path"),
            ("generate --base BASE --prompt x --adapter x --cache /dev/null", "another --cache"),
            ("inspect no.safetensors", "No such file or directory"),
            ("generate --base no/such --prompt x --out made/below", "no/such"),
            ("bench --layer 1048576x1048576", "--layer"),
            ("bench --layer 8x8 --rows 1000000 --batch 1000000", "--rows"),
            ("bench --latents 1000000", "--latents"),
            ("bench --batch 1000000 --latents 1000", "--batch"),
        ],
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    let text = "base = 'b'\ndata = 'd'\nsteps = 1\nbatch_size = 0\n";
    let check = |text: &str, args: &[&str], code: i32, needle: &str| {
        std::fs::write(&path, text).unwrap();
        let output = soda(folder.path(), &[&["train", "--config", "c.toml"], args].concat());
        let message = said(&output);
        assert_eq!(output.status.code(), Some(code), "{message}");
        assert!(message.contains(needle), "{message}");
        assert_eq!(message.trim_end().lines().count(), 1, "{message}");
    };
    check(text, &[], 1, "c.toml: `batch_size`");
    check(text, &["--batch-size", "1", "--set", "augment.crops=0"], 2, "augment.crops");
    check(
        &text.replace("= 0", "= 1\nstepz = 2"),
        &[],
        1,
        "line 5, column 1: unknown field `stepz`",
    );
    check("base = 'b", &[], 1, "line 1");
}

/// A short run of one layer.
fn train(folder: &Path, args: &[&str]) -> Output {
    let (base, data) = (toybox("base"), toybox("subjects/castle_mug"));
    let short = [
        "train",
        "--steps",
        "1",
        "--batch-size",
        "1",
        "--set",
        "samples.steps=1",
        "--sample",
        "a",
        "--set",
        "validation.every=0",
    ];
    let target = ["--target", r"mid_block.*attn2\.to_q\.weight$", "--method", "lora"];
    let paths = ["--base", base.to_str().unwrap(), "--data", data.to_str().unwrap()];
    soda(folder, &[&short[..], &target, &paths, args].concat())
}

#[test]
fn the_largest_seed_is_read_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let largest = "18446744073709551615";
    let one = train(folder.path(), &["--name", "one", "--seed", largest]);
    assert!(one.status.success(), "{}", said(&one));
    let two = ["train", "--config", "runs/one/config.toml", "--name", "two"];
    let two = soda(folder.path(), &two);
    assert!(two.status.success(), "{}", said(&two));
    let three = train(folder.path(), &["--name", "three", "--set", &format!("seed={largest}")]);
    assert!(three.status.success(), "{}", said(&three));
    let losses = ["one", "two", "three"].map(|name| {
        std::fs::read_to_string(folder.path().join("runs").join(name).join("loss.csv")).unwrap()
    });
    assert!(losses[0] == losses[1] && losses[0] == losses[2], "{losses:?}");
    let other = train(folder.path(), &["--name", "four", "--seed", "9223372036854775808"]);
    assert!(other.status.success(), "{}", said(&other));
    let check = soda(folder.path(), &["config", "check", "runs/four/config.toml"]);
    assert!(check.status.success(), "{}", said(&check));
}

/// A safetensors file with this header and data.
fn write_safetensors(path: &Path, header: &str, data: &[u8]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
}

/// A file that is not what an option takes is refused with what it is and what to do.
#[test]
fn what_a_file_is_instead_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let header =
        r#"{"lora_unet_x.lora_down.weight":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]}}"#;
    write_safetensors(&path("lora.safetensors"), header, &[0; 4]);
    write_safetensors(&path("none.safetensors"), "{}", &[]);
    let junk = r#"{"__metadata__":{"format":"soda-adapter"}}"#;
    write_safetensors(&path("junk.safetensors"), junk, &[]);
    std::fs::write(path("a.toml"), "steps = 99999999999999999999").unwrap();
    // The first bytes of a pickle of protocol 4.
    std::fs::write(path("a.ckpt"), b"\x80\x04\x95\x0a\x00\x00\x00\x00\x00\x00\x00}.").unwrap();
    for (file, text) in [("run/adapter.safetensors", ""), ("peft/adapter_config.json", "{}")] {
        std::fs::create_dir(path(file).parent().unwrap()).unwrap();
        std::fs::write(path(file), text).unwrap();
    }
    let (base, data) = (toybox("base"), toybox("subjects/castle_mug"));
    for (line, code, needle) in [
        ("generate --base BASE --prompt x --adapter lora.safetensors", 1, "`soda import lora"),
        ("generate --base BASE --prompt x --adapter peft", 1, "`soda import peft"),
        ("generate --base BASE --prompt x --adapter run", 1, "give run/adapter.safetensors"),
        ("generate --base BASE --prompt x --adapter junk.safetensors", 1, "usable `version`"),
        ("generate --base lora.safetensors --prompt x", 1, "`soda convert --base lora"),
        ("convert --base lora.safetensors --config BASE --out o", 1, "is an adapter, not a model"),
        ("import a.ckpt --base BASE --out o", 1, "is a pickle"),
        ("import none.safetensors --base BASE --out o", 1, "(it has no tensors)"),
        ("inspect a.toml", 1, "is not a safetensors file"),
        ("inspect run", 1, "inspect run/adapter.safetensors"),
        ("inspect .", 1, "neither model_index.json nor adapter_config.json"),
        ("config check a.toml", 1, "expected a whole number of at least 0"),
        ("train --base BASE --data DATA --token a\tb=mug --plan", 2, "is one word, without spaces"),
        #[cfg(feature = "ui")]
        ("ui --data no/such --no-open", 1, "no/such is no folder"),
    ] {
        let args = line.split(' ').map(|word| match word {
            "BASE" => base.to_str().unwrap(),
            "DATA" => data.to_str().unwrap(),
            word => word,
        });
        let output = soda(folder.path(), &args.collect::<Vec<_>>());
        let message = said(&output);
        assert_eq!(output.status.code(), Some(code), "{line}: {message}");
        assert!(message.contains(needle), "{line}: `{needle}` is not in: {message}");
        assert!(!message.contains("claims") && !message.contains("i128"), "{line}: {message}");
    }
}

#[test]
fn control_characters_of_files_are_escaped() {
    let folder = tempfile::tempdir().unwrap();
    let plain = |output: &Output| {
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        let text = String::from_utf8(text).unwrap();
        assert!(text.chars().all(|char| char == '\n' || !char.is_control()), "{text:?}");
        text
    };
    let header = r#"{"__metadata__":{"format":"pt","x":"\u001b]0;owned\u0007\u001b[2J"},
        "k\u001b[31m\nfake":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#;
    write_safetensors(&folder.path().join("a.safetensors"), header, &[]);
    let output = soda(folder.path(), &["inspect", "a.safetensors"]);
    assert!(output.status.success(), "{}", said(&output));
    let text = plain(&output);
    assert!(text.contains("\\u{1b}[31m\\nfake"), "{text}");

    // An adapter whose metadata fakes a second line, for another base.
    let run = train(folder.path(), &["--name", "one", "--set", "method=soda"]);
    assert!(run.status.success(), "{}", said(&run));
    let adapter = folder.path().join("runs/one/adapter.safetensors");
    let bytes = std::fs::read(&adapter).unwrap();
    let end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..end]).unwrap();
    let metadata = &mut header["__metadata__"];
    metadata["base"] = "\u{1b}[2Jred\nerror: all is well".into();
    let parts = metadata["parts"].as_str().unwrap();
    let mut parts: serde_json::Value = serde_json::from_str(parts).unwrap();
    parts["unet"]["base_hash"] = "x".into();
    metadata["parts"] = parts.to_string().into();
    write_safetensors(&folder.path().join("b.safetensors"), &header.to_string(), &bytes[end..]);
    let base = toybox("base");
    let draw = ["generate", "--prompt", "x", "--steps", "1", "--out", "g", "--adapter"];
    let draw = [&draw[..], &["b.safetensors", "--base", base.to_str().unwrap()]].concat();
    let output = soda(folder.path(), &draw);
    assert_eq!(output.status.code(), Some(1));
    let text = plain(&output);
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    let text = plain(&soda(folder.path(), &["inspect", "b.safetensors"]));
    assert!(!text.lines().any(|line| line.starts_with("error")), "{text}");

    // An adapter that asks for what its base does not have.
    header["__metadata__"]["prompt_encoding"] = r#"{"max_sequence_length":5}"#.into();
    write_safetensors(&folder.path().join("b.safetensors"), &header.to_string(), &bytes[end..]);
    let output = soda(folder.path(), &draw);
    assert_eq!(output.status.code(), Some(1));
    let text = plain(&output);
    assert!(text.contains("b.safetensors was trained with max_sequence_length = 5"), "{text}");

    // Names of files in warnings and errors.
    std::fs::create_dir_all(folder.path().join("d/more\u{1b}[2J")).unwrap();
    std::fs::write(folder.path().join("d/more\u{1b}[2J/0.png"), "").unwrap();
    let args = ["train", "--data", "d", "--base", base.to_str().unwrap()];
    let text = plain(&soda(folder.path(), &args));
    assert!(text.contains("more\\u{1b}[2J"), "{text}");
}
