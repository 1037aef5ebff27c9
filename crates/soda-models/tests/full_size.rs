//! The UNets of SD 1.5 and SDXL at full size: loaded from a file and called once, against diffusers, with a
//! bound on memory.
//!
//! The fixtures are written by `docs/parity/full_size.py`. The tests are ignored, since they need 3.4 and
//! 10.3 GB of disk and as much memory:
//!
//! ```text
//! cargo test --workspace --test full_size -- --ignored --nocapture --test-threads=1
//! ```
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "it says time and memory")]

mod common;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use common::{Fixture, check, value, weight};
use soda_models::condition::{AddedCondition, Condition};
use soda_models::unet::UnetConfig;
use soda_models::{config, weights};

/// The tolerance of the tiny models; here sums are longer and there are more layers.
const TOLERANCE: f32 = 5e-5;

/// The peak resident memory of this process in bytes, if the system reports it.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(1024 * line.split_whitespace().nth(1)?.parse::<u64>().ok()?)
}

/// Writes the weights of the formula one after the other. Returns their size in bytes.
fn stream_weights(path: &Path, keys: &BTreeMap<String, Vec<usize>>) -> u64 {
    let mut end = 0;
    let mut header = serde_json::Map::new();
    for (key, shape) in keys {
        let begin = end;
        end += 4 * shape.iter().product::<usize>() as u64;
        let tensor =
            serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]});
        header.insert(key.clone(), tensor);
    }
    let header = serde_json::to_string(&header).unwrap();
    let mut file = BufWriter::new(File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    for (key, shape) in keys {
        for x in weight(key, shape) {
            file.write_all(&x.to_le_bytes()).unwrap();
        }
    }
    file.into_inner().unwrap();
    end
}

fn full_size(name: &str) {
    let fixture = Fixture::read(name);
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = (dir.path().join("config.json"), dir.path().join("model.safetensors"));
    std::fs::write(&path, fixture.metadata("config")).unwrap();
    let config: UnetConfig = config::read(&path).unwrap();
    let bytes = stream_weights(&file, &fixture.keys());

    let device = Device::default();
    let start = Instant::now();
    let unet = weights::load(config.init(&device), &file).unwrap();
    let loaded = start.elapsed();
    let (shape, expected) = fixture.floats("out");
    // The fixture keeps every other row and column.
    let size = 2 * shape[2];
    let added = config.addition_embed_type.map(|_| AddedCondition {
        pooled: value("pooled", [1, 1280], &device),
        time_ids: Tensor::from_floats([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]], &device),
    });
    let text = value("text", [1, 77, config.cross_attention_dim.get(0)], &device);
    let start = Instant::now();
    let out = unet.forward(
        value("sample", [1, 4, size, size], &device),
        Tensor::<1>::full([1], 500.0, &device),
        Condition { text, lengths: None, added },
    );
    let out: Vec<f32> = out.into_data().iter::<f32>().collect();
    let called = start.elapsed();
    let half: Vec<f32> = (0..4 * size * size)
        .filter(|i| (i % size).is_multiple_of(2) && (i / size % size).is_multiple_of(2))
        .map(|i| out[i])
        .collect();
    check(name, &half, &expected, TOLERANCE);
    if let Some(peak) = peak() {
        let share = peak as f64 / bytes as f64;
        eprintln!(
            "{name}: loaded in {loaded:.1?}, called in {called:.1?}, peak {share:.2} of the weights"
        );
        assert!(share <= 1.3, "peak memory {peak} of {bytes} bytes of weights");
    }
}

#[test]
#[ignore = "needs 4 GB of memory and of disk"]
fn stable_diffusion_1_at_full_size() {
    full_size("full-sd15");
}

#[test]
#[ignore = "needs 11 GB of memory and of disk"]
fn stable_diffusion_xl_at_full_size() {
    full_size("full-sdxl");
}
