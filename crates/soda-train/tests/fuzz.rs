//! Damaged configurations, data folders and checkpoints give a value or an error: no panic and no hang.
//! `CONTRIBUTING.md` says how to run the long form.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;

use soda_testing::fuzz;
use soda_train::{
    Checkpoint, Dataset, PRESETS, RunScores, TrainConfig, TrainerState, apply_setting, preset,
    read_step_scores,
};

#[test]
fn no_bytes_make_a_configuration_panic() {
    let with_base = |name: &str| {
        let mut table = preset(name).unwrap();
        for setting in ["base=\"base\"", "data=\"data\"", "prompt=\"a [trigger]\""] {
            apply_setting(&mut table, setting).unwrap();
        }
        TrainConfig::from_table(table).unwrap().to_toml().unwrap().into_bytes()
    };
    let seeds: Vec<_> = PRESETS.iter().map(|preset| with_base(preset.name)).collect();
    fuzz("config.toml", &seeds, 1000, |input| {
        let Ok(text) = std::str::from_utf8(input) else { return };
        if let Ok(config) = TrainConfig::from_toml(text) {
            let _ = (config.check().map_err(|error| error.to_string()), config.to_toml());
        }
    });
}

#[test]
fn no_bytes_make_a_data_folder_panic() {
    let folder = tempfile::tempdir().unwrap();
    let images = ["a.png", "b.jpg", "c.webp"];
    images.iter().for_each(|name| std::fs::write(folder.path().join(name), "").unwrap());
    let line = |name: &str, repeats: usize| {
        format!(
            "{{\"file_name\": \"{name}\", \"text\": \"a [trigger]\", \"repeats\": {repeats}}}\n"
        )
    };
    let metadata: String = images.iter().map(|name| line(name, 3)).collect();
    let subject = r#"{"identifier": "sks", "class": "mug", "eval_prompts": ["a sks mug", "2"]}"#;
    for (name, seed) in
        [("metadata.jsonl", &metadata[..]), ("subject.json", subject), ("a.txt", "a sks mug\n")]
    {
        let path = folder.path().join(name);
        fuzz(name, &[seed.as_bytes().to_vec()], 400, |input| {
            std::fs::write(&path, input).unwrap();
            if let Ok(data) = Dataset::read(folder.path(), Some("for all")) {
                let mut data = data.with_trigger("sks mug");
                let _ = (data.without_identifier("a sks mug"), data.hold_out(0.5, 1));
            }
        });
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn no_bytes_make_a_run_folder_panic() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = folder.path().join("checkpoints");
    let mut checkpoint = Checkpoint { data: "hash".to_owned(), ..Checkpoint::default() };
    checkpoint.state = TrainerState { step: 7, ..TrainerState::default() };
    checkpoint.state.adapter.insert("unet.x".to_owned(), [[1f32, 2.0], [3.0, 4.0]].into());
    checkpoint.write(&checkpoints, 1).unwrap();
    let path = checkpoints.join("00000007.safetensors");
    let whole = std::fs::read(&path).unwrap();
    fuzz("checkpoint", &[whole], 800, |input| {
        std::fs::write(&path, input).unwrap();
        let _ = Checkpoint::newest(&checkpoints, |_| ());
    });

    let read = |name: &str, seed: &str, reader: &dyn Fn(&Path)| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        fuzz(name, &[seed.as_bytes().to_vec()], 300, |input| {
            std::fs::write(&path, input).unwrap();
            reader(folder.path());
        });
    };
    let scores = r#"{"scores": {"clip_t": 0.2, "clip_i": 0.7, "dino": 0.5}, "prompts": ["a mug"]}"#;
    read("scores.json", scores, &|folder| drop(RunScores::read(folder)));
    std::fs::create_dir_all(folder.path().join("samples")).unwrap();
    std::fs::write(folder.path().join("samples/00000007.png"), "").unwrap();
    read("samples/00000007.json", scores, &|folder| drop(read_step_scores(folder)));
}
