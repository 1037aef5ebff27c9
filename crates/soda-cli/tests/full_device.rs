//! A GPU whose memory is full. No other test may use the GPU meanwhile.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use common::{soda, toybox};

#[test]
fn a_full_gpu_is_one_sentence_and_the_next_run_works() {
    // The main memory is not filled: its owner would be killed.
    if std::env::var("BURN_DEVICE").as_deref() != Ok("cuda") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (base, data) = (toybox("base"), toybox("subjects/castle_mug"));
    let train = |batch: &str| {
        let paths = ["--base", base.to_str().unwrap(), "--data", data.to_str().unwrap()];
        let run = ["--name", "run", "--steps", "1", "--batch-size", batch, "--sample", "a mug"];
        let short = ["--method", "lora", "--set", "samples.steps=1", "--set", "validation.every=0"];
        soda(folder.path(), &[&["train"], &paths[..], &run, &short].concat())
    };
    let output = train("40000");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: the GPU's memory is full"), "{said}");
    assert!(said.contains("`--set batch_size=1`") && !said.contains("panicked"), "{said}");

    let failed = folder.path().join("runs/run");
    if failed.exists() {
        std::fs::rename(failed, folder.path().join("failed")).unwrap();
    }
    let output = train("2");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
