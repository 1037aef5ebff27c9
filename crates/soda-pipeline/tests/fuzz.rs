//! Damaged adapter files of all methods and dialects give an adapter or an error: no panic, no hang, and
//! no memory beyond a bound. `CONTRIBUTING.md` says how to run the long form.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../../soda-adapters/tests/common/mod.rs"]
mod common;
#[path = "../../soda-models/tests/common/mod.rs"]
mod models;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, TensorData};
use common::{Net, Networks, disturb, plan, recipe};
use peak_alloc::PeakAlloc;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use soda_adapters::{AdapterState, METHOD_PRESETS, MethodConfig};
use soda_models::flux2::Flux2Config;
use soda_models::pipeline::{Networks as PipelineNetworks, Pipeline};
use soda_models::z_image::ZImageConfig;
use soda_models::{config, weights};
use soda_pipeline::interop::{describe, import};
use soda_pipeline::{AdapterFile, Component, Header, configure_pipeline};
use soda_testing::fuzz;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The most memory of a reader of these small files, in MB.
const MOST_MEMORY: f32 = 1024.0;

fn trained(method: &MethodConfig, net: &Net) -> AdapterState {
    let adapted = disturb(method, plan(method, net).attach(net.clone()));
    AdapterState::capture(recipe(method, net), &adapted)
}

/// Everything that a command does with an adapter file.
fn read_adapter(path: &Path, networks: &Networks) -> Result<(), String> {
    let file: AdapterFile = AdapterFile::read(path).map_err(|error| error.to_string())?;
    let _ = (file.summary(), file.factor_sizes(), file.num_params(), file.num_tensors());
    let plan = file.plan(networks).map_err(|error| error.to_string())?;
    let plan = plan.at_strength(0.5).map_err(|error| error.to_string())?;
    let _ = plan.attach(networks.clone());
    Ok(())
}

#[test]
fn no_adapter_file_makes_a_reader_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let networks = Networks { unet: Net::new() };
    let seeds = METHOD_PRESETS.iter().map(|(_, method)| {
        let header = Header { base: "net".to_owned(), ..Header::default() };
        let state = trained(&method(), &networks.unet);
        let mut file = AdapterFile::new(header).with_adapter(Component::Unet, state);
        let vectors = TensorData::from([[1f32, 2.0, 3.0]]);
        file.embeddings.insert("<mug>".to_owned(), [(Component::TextEncoder, vectors)].into());
        file.write(&path).unwrap();
        assert_eq!(read_adapter(&path, &networks), Ok(()));
        std::fs::read(&path).unwrap()
    });
    let seeds: Vec<_> = seeds.collect();
    MEMORY.reset_peak_usage();
    fuzz("adapter", &seeds, 600, |input| {
        std::fs::write(&path, input).unwrap();
        let _ = read_adapter(&path, &networks);
    });
    assert!(MEMORY.peak_usage_as_mb() < MOST_MEMORY, "{} MB", MEMORY.peak_usage_as_mb());
}

/// A file in the names of another tool, with small numbers that depend on the position.
fn foreign(tensors: &[(&str, &[usize])], metadata: &[(&str, &str)]) -> Vec<u8> {
    let bytes: Vec<(String, Vec<u8>, Vec<usize>)> = tensors
        .iter()
        .map(|(key, shape)| {
            let count: usize = shape.iter().product();
            let values = (0..count).flat_map(|i| ((i % 7) as f32 * 0.01).to_le_bytes());
            ((*key).to_owned(), values.collect(), shape.to_vec())
        })
        .collect();
    let views = bytes.iter().map(|(key, bytes, shape)| {
        (key, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let text = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    safetensors::serialize(views, Some(metadata.iter().map(text).collect())).unwrap()
}

/// A small file of each dialect for the layers of [`Net`].
fn dialects() -> Vec<Vec<u8>> {
    let peft = json!({"unet.r": 2, "unet.lora_alpha": 4, "unet.target_modules": ["to_q"]});
    vec![
        // diffusers and PEFT, with DoRA
        foreign(
            &[
                ("unet.to_q.lora_A.weight", &[2, 12]),
                ("unet.to_q.lora_B.weight", &[20, 2]),
                ("unet.to_q.lora_magnitude_vector", &[20]),
                ("unet.conv.lora_A.weight", &[2, 4, 3, 3]),
                ("unet.conv.lora_B.weight", &[6, 2, 1, 1]),
            ],
            &[("lora_adapter_metadata", &peft.to_string())],
        ),
        foreign(
            &[
                ("base_model.model.to_k.lora_A.weight", &[2, 30]),
                ("base_model.model.to_k.lora_B.weight", &[20, 2]),
            ],
            &[],
        ),
        // kohya
        foreign(
            &[
                ("lora_unet_to_q.lora_down.weight", &[2, 12]),
                ("lora_unet_to_q.lora_up.weight", &[20, 2]),
                ("lora_unet_to_q.alpha", &[]),
                ("lora_unet_conv.lora_down.weight", &[2, 4, 3, 3]),
                ("lora_unet_conv.lora_up.weight", &[6, 2, 1, 1]),
                ("lora_unet_conv.dora_scale", &[6, 1, 1, 1]),
            ],
            &[("ss_network_dim", "2")],
        ),
        // PEFT's HRA
        foreign(&[("unet.to_q.hra_u", &[12, 4]), ("unet.conv.hra_u", &[36, 4])], &[]),
        // LyCORIS
        foreign(
            &[
                ("lora_unet_to_q.hada_w1_a", &[20, 2]),
                ("lora_unet_to_q.hada_w1_b", &[2, 12]),
                ("lora_unet_to_q.hada_w2_a", &[20, 2]),
                ("lora_unet_to_q.hada_w2_b", &[2, 12]),
                ("lora_unet_to_q.alpha", &[]),
            ],
            &[],
        ),
        foreign(
            &[
                ("lora_unet_to_q.lokr_w1", &[4, 3]),
                ("lora_unet_to_q.lokr_w2_a", &[5, 2]),
                ("lora_unet_to_q.lokr_w2_b", &[2, 4]),
                ("lora_unet_to_q.alpha", &[]),
                ("lora_unet_to_k.lokr_w1", &[4, 5]),
                ("lora_unet_to_k.lokr_w2", &[5, 6]),
            ],
            &[],
        ),
        foreign(&[("lora_unet_to_q.diff", &[20, 12]), ("lora_unet_conv.diff", &[6, 4, 3, 3])], &[]),
        foreign(&[("lora_unet_to_q.oft_blocks", &[2, 6, 6])], &[]),
        // kohya's metadata, which tell a file's family and words
        foreign(
            &[
                ("lora_unet_to_q.lora_down.weight", &[2, 12]),
                ("lora_unet_to_q.lora_up.weight", &[20, 2]),
                ("lora_unet_to_q.alpha", &[1]),
            ],
            &[
                ("ss_base_model_version", "sd_v1"),
                ("modelspec.architecture", "stable-diffusion-v1/lora"),
                ("ss_tag_frequency", r#"{"5_mug": {"sks mug": 9, "red": 18446744073709551615}}"#),
                ("ss_trigger_words", "sks, mug"),
            ],
        ),
    ]
}

/// The embeddings of textual inversion go into the vocabulary of a model.
#[test]
fn no_file_of_embeddings_makes_the_import_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mug.safetensors");
    let base = soda_testing::workspace_path("examples/toybox/base");
    let pipeline = Pipeline::load(&base, &Device::default()).unwrap();
    let clip = pipeline.text.clip().unwrap();
    let width = clip.text_encoder.text_model.embeddings.token_embedding.weight.dims()[1];
    let networks = pipeline.networks();
    let read = |path: &Path| {
        let _ = describe(path).map(|description| description.readers());
        let file = match AdapterFile::read(path) {
            Ok(file) => file,
            Err(_) => import(path, &networks, "net").map_err(|error| error.to_string())?.file,
        };
        let mut pipeline = pipeline.clone();
        configure_pipeline(&mut pipeline, &file).map_err(|error| error.to_string())
    };
    let schedule = json!({"prediction_type": "v_prediction", "rescale_betas_zero_snr": true});
    let mut own: AdapterFile = AdapterFile::new(Header { schedule, ..Header::default() });
    let vectors = TensorData::new(vec![0.1f32; 2 * width], [2, width]);
    own.embeddings.insert("<mug>".to_owned(), [(Component::TextEncoder, vectors)].into());
    own.write(&path).unwrap();
    let seeds = [
        std::fs::read(&path).unwrap(),
        foreign(&[("emb_params", &[2, width])], &[]),
        foreign(&[("<mug>", &[width])], &[]),
        foreign(&[("clip_l", &[2, width]), ("clip_g", &[2, 8])], &[]),
        foreign(&[("bundle_emb.mug.string_to_param.*", &[2, width])], &[]),
    ];
    let imported = seeds.iter().filter(|seed| {
        std::fs::write(&path, seed).unwrap();
        read(&path).is_ok()
    });
    assert!(imported.count() >= 3);
    MEMORY.reset_peak_usage();
    fuzz("embeddings", &seeds, 150, |input| {
        std::fs::write(&path, input).unwrap();
        let _ = read(&path);
    });
    assert!(MEMORY.peak_usage_as_mb() < MOST_MEMORY, "{} MB", MEMORY.peak_usage_as_mb());
}

#[test]
fn no_file_of_another_tool_makes_the_import_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("other.safetensors");
    let networks = Networks { unet: Net::new() };
    let read = |path: &Path| {
        let _ = describe(path).map(|description| description.readers());
        let imported = import(path, &networks, "net").map_err(|error| error.to_string())?;
        let plan = imported.file.plan(&networks).map_err(|error| error.to_string())?;
        let _ = plan.at_strength(0.5).map_err(|error| error.to_string())?;
        Ok::<(), String>(())
    };
    let seeds = dialects();
    let imported = seeds.iter().filter(|seed| {
        std::fs::write(&path, seed).unwrap();
        read(&path).is_ok()
    });
    // The harness would find nothing in files that are all refused at once.
    assert!(imported.count() >= 5);
    MEMORY.reset_peak_usage();
    fuzz("import", &seeds, 1500, |input| {
        std::fs::write(&path, input).unwrap();
        let _ = read(&path);
    });
    assert!(MEMORY.peak_usage_as_mb() < MOST_MEMORY, "{} MB", MEMORY.peak_usage_as_mb());
}

/// Files of the original code's names, whose layers are divided among several weights.
fn no_file_for_a_transformer_panics(
    family: &str,
    networks: &PipelineNetworks,
    folder: &Path,
    seeds: &[&str],
) {
    let path = folder.join("other.safetensors");
    let fixtures = soda_testing::workspace_path("crates/soda-pipeline/tests/fixtures").join(family);
    let read = |name| std::fs::read(fixtures.join(format!("{name}.safetensors"))).unwrap();
    let seeds: Vec<_> = seeds.iter().map(read).collect();
    for seed in &seeds {
        std::fs::write(&path, seed).unwrap();
        import(&path, networks, "net").unwrap();
    }
    MEMORY.reset_peak_usage();
    fuzz(&format!("import for {family}"), &seeds, 300, |input| {
        std::fs::write(&path, input).unwrap();
        let _ = describe(&path).map(|description| description.readers());
        if let Ok(imported) = import(&path, networks, "net") {
            let _ = imported.file.plan(networks);
        }
    });
    assert!(MEMORY.peak_usage_as_mb() < MOST_MEMORY, "{} MB", MEMORY.peak_usage_as_mb());
}

#[test]
fn no_file_for_flux2_makes_the_import_panic() {
    let folder = tempfile::tempdir().unwrap();
    let (config, file) = models::Fixture::read("flux2-uneven").write_model(folder.path());
    let config: Flux2Config = config::read(&config).unwrap();
    let transformer = weights::load(config.init(&Device::default()), &file).unwrap();
    let seeds = ["kohya", "lokr-bfl", "lycoris-loha", "lycoris-locon-dora-in", "lycoris-oft"];
    no_file_for_a_transformer_panics("flux2", &transformer.into(), folder.path(), &seeds);
}

#[test]
fn no_file_for_z_image_makes_the_import_panic() {
    let folder = tempfile::tempdir().unwrap();
    let (config, file) = models::Fixture::read("z-image-uneven").write_model(folder.path());
    let config: ZImageConfig = config::read(&config).unwrap();
    let transformer = weights::load(config.init(&Device::default()), &file).unwrap();
    let seeds = ["kohya", "musubi", "ai-toolkit-lokr", "lycoris-lokr", "lycoris-oft"];
    no_file_for_a_transformer_panics("z_image", &transformer.into(), folder.path(), &seeds);
}

#[test]
fn no_peft_configuration_makes_the_import_panic() {
    let folder = tempfile::tempdir().unwrap();
    let networks = Networks { unet: Net::new() };
    let tensors = foreign(
        &[
            ("base_model.model.to_q.lora_A.weight", &[2, 12]),
            ("base_model.model.to_q.lora_B.weight", &[20, 2]),
        ],
        &[],
    );
    std::fs::write(folder.path().join("adapter_model.safetensors"), tensors).unwrap();
    let config = |fields: Value| {
        let mut config = json!({
            "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["to_q"],
        });
        for (field, value) in fields.as_object().unwrap() {
            config[field] = value.clone();
        }
        config.to_string().into_bytes()
    };
    let seeds = [
        config(json!({})),
        config(json!({"rank_pattern": {"to_q": 2}, "alpha_pattern": {"^to_q$": 8}})),
        config(json!({"peft_type": "OFT", "oft_block_size": 4, "num_cayley_neumann_terms": 5})),
        config(json!({"peft_type": "HRA", "apply_GS": false})),
    ];
    fuzz("PEFT's adapter_config.json", &seeds, 500, |input| {
        std::fs::write(folder.path().join("adapter_config.json"), input).unwrap();
        if let Ok(imported) = import(folder.path(), &networks, "net") {
            let _ = imported.file.plan(&networks);
        }
    });
}

/// Ranks, sizes and terms of adapter files that would take memory or time without bound.
#[test]
fn absurd_settings_of_adapter_files_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let networks = Networks { unet: Net::new() };
    let huge = 1u64 << 33;
    for (preset, change, named) in [
        ("loha", json!({"rank": 1u64 << 40}), "rank"),
        ("loha", json!({"rank": 1u64 << 22}), "rank"),
        ("lokr", json!({"rank": 1u64 << 63}), "rank"),
        ("lora", json!({"rank": u64::MAX}), "rank"),
        ("oft", json!({"cayley": {"form": "neumann", "terms": 1u64 << 60}}), "terms"),
        ("oft", json!({"block_size": 1u64 << 40}), "block size"),
        ("boft", json!({"levels": u64::MAX}), "levels"),
        ("boft", json!({"block_size": u64::MAX}), "block size"),
        ("soda", json!({"rotation": {"sizes": [[huge, huge]]}}), "sizes"),
        ("soda", json!({"rotation": {"factors": u64::MAX}}), "factors"),
        ("psoft", json!({"rotation": {"structure": "subspace", "rank": huge}}), "rank"),
        ("t-lora", json!({"timestep_mask": {"min_rank": huge, "alpha": 1.0}}), "min_rank"),
        ("t-lora", json!({"timestep_mask": {"min_rank": 1, "alpha": 1e300}}), "alpha"),
        ("hra", json!({"rotation": {"structure": "householder", "rank": huge}}), "rank"),
        (
            "gsoft",
            json!({"rotation": {"structure": "group-and-shuffle", "block_size": huge}}),
            "block_size",
        ),
        (
            "soda-qr-low-rank",
            json!({"spectrum": {"basis": "qr", "shift": {"form": "low-rank", "rank": huge, "seed": 0}}}),
            "rank",
        ),
    ] {
        let state = trained(&MethodConfig::preset(preset).unwrap(), &networks.unet);
        AdapterFile::new(Header::default())
            .with_adapter(Component::Unet, state)
            .write(&path)
            .unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut metadata = metadata.metadata().clone().unwrap();
        let mut parts: BTreeMap<String, Value> = serde_json::from_str(&metadata["parts"]).unwrap();
        let method = &mut parts.get_mut("unet").unwrap()["method"];
        for (field, value) in change.as_object().unwrap() {
            method[field] = value.clone();
        }
        metadata.insert("parts".to_owned(), json!(parts).to_string());
        let views: Vec<_> = tensors.tensors();
        std::fs::write(&path, safetensors::serialize(views, Some(metadata)).unwrap()).unwrap();
        let error = read_adapter(&path, &networks).unwrap_err();
        assert!(error.contains(named), "{preset}: {error}");
    }
    let _ = Device::default();
}

/// Shapes without elements from which a reader would take ranks and widths.
#[test]
fn huge_shapes_without_elements_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("empty.safetensors");
    for shape in ["[4294967296,0]", "[4294967295,4294967296,0]", "[0,4294967296,4294967296]"] {
        let tensor = format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}"#);
        let header = format!(r#"{{"lora_unet_to_q.hada_w1_b":{tensor}}}"#);
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        std::fs::write(&path, file).unwrap();
        let networks = Networks { unet: Net::new() };
        let error = import(&path, &networks, "net").map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("hada_w1_b") && error.contains("shape"), "{error}");
    }
}

/// A sparse file costs its maker nothing.
#[test]
fn an_alpha_of_gigabytes_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.safetensors");
    let numbers = 1u64 << 30;
    let bytes = 4 * numbers;
    let tensor = format!(r#"{{"dtype":"F32","shape":[{numbers}],"data_offsets":[0,{bytes}]}}"#);
    let header = format!(r#"{{"lora_unet_to_q.alpha":{tensor}}}"#);
    let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    std::fs::write(&path, &start).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(start.len() as u64 + bytes).unwrap();
    MEMORY.reset_peak_usage();
    describe(&path).unwrap();
    assert!(MEMORY.peak_usage_as_mb() < MOST_MEMORY, "{} MB", MEMORY.peak_usage_as_mb());
}
