//! Adapter files of other tools: what they make of the bundled model, and what is refused by name.
//!
//! `fixtures/foreign` has files in the forms of LyCORIS, kohya's scripts, OneTrainer and PEFT.
//! `expected.safetensors` has four rows of each adapted weight, by numpy in f64 from the tools' formulas.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::Device;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use soda_adapters::{Method as _, map_params, named_params};
use soda_models::pipeline::Pipeline;
use soda_pipeline::interop::{Imported, import};
use soda_pipeline::{Component, LoadAdapterOptions, PipelineError, load_adapter};
use soda_testing::relative_error;

/// A layer of 64 x 64, and one of 64 outputs and 160 inputs.
const SQUARE: &str = "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q";
const WIDE: &str = "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";

fn fixture(name: &str) -> PathBuf {
    soda_testing::workspace_path("crates/soda-pipeline/tests/fixtures/foreign").join(name)
}

fn pipeline() -> Pipeline {
    let base = soda_testing::workspace_path("examples/toybox/base");
    Pipeline::load(&base, &Device::default()).unwrap()
}

fn read(pipeline: &Pipeline, path: &Path) -> Result<Imported, PipelineError> {
    import(path, &pipeline.networks(), "base")
}

/// The weights of the UNet with an adapter merged, as torch's `[out, in…]` in rows, by module.
fn merged(pipeline: &Pipeline, imported: Option<&Imported>) -> BTreeMap<String, Vec<Vec<f32>>> {
    let networks = pipeline.networks();
    let networks = match imported {
        Some(imported) => imported.file.plan(&networks).unwrap().attach(networks).materialize(),
        None => networks,
    };
    let mut weights = BTreeMap::new();
    for param in named_params(&networks) {
        let Some(path) = param.path.strip_prefix("unet.") else { continue };
        let Some(module) = path.strip_suffix(".weight") else { continue };
        let values: Vec<f32> = param.value().into_data().iter().collect();
        let rows = match param.shape[..] {
            [input, output] => {
                let row = |row| (0..input).map(|col| values[col * output + row]).collect();
                (0..output).map(row).collect()
            }
            [output, ..] => values.chunks(values.len() / output).map(<[f32]>::to_vec).collect(),
            [] => continue,
        };
        weights.insert(module.to_owned(), rows);
    }
    weights
}

/// The four rows that `expected.safetensors` has of a weight.
fn four(rows: &[Vec<f32>]) -> Vec<f32> {
    rows.iter().step_by((rows.len() / 4).max(1)).take(4).flatten().copied().collect()
}

fn difference(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

/// A tensor of a file: its type, its shape and its bytes.
type Part = (Dtype, Vec<usize>, Vec<u8>);

fn floats(shape: &[usize], values: &[f32]) -> Part {
    (Dtype::F32, shape.to_vec(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// Values of about `scale`, which differ from index to index.
fn noise(seed: usize, shape: &[usize], scale: f32) -> Part {
    let value = |index: usize| ((index * 37 + seed * 101) as f32 * 0.7).sin() * scale;
    floats(shape, &(0..shape.iter().product()).map(value).collect::<Vec<_>>())
}

fn values(part: &Part) -> Vec<f32> {
    part.2.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn write(tensors: &[(String, Part)], metadata: &[(&str, &str)]) -> tempfile::TempPath {
    let views = tensors.iter().map(|(key, (dtype, shape, bytes))| {
        (key.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let bytes = safetensors::serialize(views, Some(metadata.collect())).unwrap();
    let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file.into_temp_path()
}

/// A LoRA of the square layer with names made by `key`.
fn lora(
    key: impl Fn(&str) -> String,
    rank: usize,
    outputs: usize,
    inputs: usize,
) -> Vec<(String, Part)> {
    vec![
        (key("down"), noise(1, &[rank, inputs], 0.1)),
        (key("up"), noise(2, &[outputs, rank], 0.1)),
    ]
}

fn kohya(module: &str) -> impl Fn(&str) -> String {
    move |part| format!("lora_unet_{module}.lora_{part}.weight")
}

/// The change of a weight: `up down`, as rows.
fn product(tensors: &[(String, Part)]) -> Vec<f32> {
    let (down, up) = (&tensors[0].1, &tensors[1].1);
    let (rank, inputs, outputs) = (down.1[0], down.1[1], up.1[0]);
    let (down, up) = (values(down), values(up));
    let entry = |index: usize| {
        let (row, col) = (index / inputs, index % inputs);
        let term = |k: usize| f64::from(up[row * rank + k]) * f64::from(down[k * inputs + col]);
        (0..rank).map(term).sum::<f64>() as f32
    };
    (0..outputs * inputs).map(entry).collect()
}

/// Asserts that an imported file changes a weight by `change`.
#[track_caller]
fn assert_changes(pipeline: &Pipeline, imported: &Imported, module: &str, change: &[f32]) {
    let (base, found) = (merged(pipeline, None), merged(pipeline, Some(imported)));
    let found = difference(&found[module].concat(), &base[module].concat());
    let error = relative_error(&found, change);
    assert!(error < 1e-4, "{module}: {error:.1e}");
}

#[test]
fn files_make_the_weights_that_their_tools_make() {
    let pipeline = pipeline();
    let base = merged(&pipeline, None);
    let bytes = std::fs::read(fixture("expected.safetensors")).unwrap();
    let mut files: BTreeMap<String, Vec<(String, Vec<f32>)>> = BTreeMap::new();
    for (key, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let (file, module) = key.split_once('/').unwrap();
        let rows = values(&(view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        files.entry(file.to_owned()).or_default().push((module.to_owned(), rows));
    }
    assert_eq!(files.len(), 17);
    for (name, expected) in files {
        let imported = read(&pipeline, &fixture(&name)).unwrap();
        assert!(imported.unmatched.is_empty() && imported.unread.is_empty(), "{name}");
        let found = merged(&pipeline, Some(&imported));
        for (module, rows) in expected {
            let start = four(&base[&module]);
            let error = relative_error(
                &difference(&four(&found[&module]), &start),
                &difference(&rows, &start),
            );
            assert!(error < 1e-4, "{name} {module}: {error:.1e}");
        }
    }
}

#[test]
fn a_network_keeps_its_method_where_one_holds_all_layers() {
    let pipeline = pipeline();
    for (name, method) in [
        ("lokr_full.safetensors", "lokr"),
        ("lokr_dora_out.safetensors", "full"),
        ("lokr_factors.safetensors", "lokr"),
        ("mixed.safetensors", "lora"),
        ("dora_out.safetensors", "lora"),
        ("kohya_oft.safetensors", "oft"),
        ("diff2.safetensors", "full"),
    ] {
        let imported = read(&pipeline, &fixture(name)).unwrap();
        let state = &imported.file.adapters[&Component::Unet];
        assert_eq!(state.recipe.method.name(), method, "{name}");
    }
}

#[test]
fn a_rank_above_the_side_of_a_layer_is_held_exactly() {
    let pipeline = pipeline();
    let wide = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k";
    for (rank, module, name, [outputs, inputs]) in
        [(96, WIDE, wide, [64, 160]), (64, "conv_in", "conv_in", [64, 36])]
    {
        let tensors = lora(kohya(module), rank, outputs, inputs);
        let imported = read(&pipeline, &write(&tensors, &[])).unwrap();
        assert_changes(&pipeline, &imported, name, &product(&tensors));
    }
}

#[test]
fn a_layer_with_a_magnitude_beside_one_without_is_read() {
    let pipeline = pipeline();
    let mut tensors = lora(kohya(WIDE), 4, 64, 160);
    let bytes = std::fs::read(fixture("dora_out.safetensors")).unwrap();
    for (key, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        tensors.push((key, (view.dtype(), view.shape().to_vec(), view.data().to_vec())));
    }
    let imported = read(&pipeline, &write(&tensors, &[])).unwrap();
    let wide = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k";
    assert_changes(&pipeline, &imported, wide, &product(&tensors));
    let alone = read(&pipeline, &fixture("dora_out.safetensors")).unwrap();
    let square = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    let (found, expected) = (merged(&pipeline, Some(&imported)), merged(&pipeline, Some(&alone)));
    assert!(relative_error(&found[square].concat(), &expected[square].concat()) < 1e-5);
}

#[test]
fn names_and_types_that_tools_write_are_read() {
    let pipeline = pipeline();
    let square = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
    type KeyOfPart = fn(&str) -> String;
    let names: [(&str, KeyOfPart); 4] = [
        ("lycoris_", |part| format!("lycoris_{SQUARE}.lora_{part}.weight")),
        ("default", |part| {
            let part = if part == "down" { "A" } else { "B" };
            let module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
            format!("unet.{module}.lora_{part}.default.weight")
        }),
        ("diffusion_model.", |part| {
            let module = "input_blocks.1.1.transformer_blocks.0.attn1.to_q";
            format!("diffusion_model.{module}.lora_{part}.weight")
        }),
        ("sgm", |part| {
            format!("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_{part}.weight")
        }),
    ];
    for (name, key) in names {
        let tensors = lora(key, 4, 64, 64);
        let imported = read(&pipeline, &write(&tensors, &[])).unwrap();
        assert_eq!(imported.matched, [format!("unet.{square}.weight")], "{name}");
        assert_changes(&pipeline, &imported, square, &product(&tensors));
    }

    // diffusers' conversion to kohya's names writes α as an integer.
    let mut tensors = lora(kohya(SQUARE), 4, 64, 64);
    let alpha = (Dtype::I64, Vec::new(), 8i64.to_le_bytes().to_vec());
    tensors.push((format!("lora_unet_{SQUARE}.alpha"), alpha));
    let imported = read(&pipeline, &write(&tensors, &[])).unwrap();
    let twice: Vec<f32> = product(&tensors).into_iter().map(|value| value * 2.0).collect();
    assert_changes(&pipeline, &imported, square, &twice);

    for prefix in ["lora_te_text_model_encoder", "lora_te_encoder", "lora_te1_encoder"] {
        let key = |part: &str| format!("{prefix}_layers_0_self_attn_q_proj.lora_{part}.weight");
        let imported = read(&pipeline, &write(&lora(key, 4, 160, 160), &[])).unwrap();
        let path = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight";
        assert_eq!(imported.matched, [path], "{prefix}");
    }
}

#[test]
fn tensors_that_are_not_read_are_listed() {
    let pipeline = pipeline();
    let imported = read(&pipeline, &fixture("lora_plus_diff.safetensors")).unwrap();
    assert_eq!((imported.matched.len(), imported.unread.len()), (2, 2));
    assert!(imported.unread.iter().all(|key| key.ends_with("_norm")), "{:?}", imported.unread);
    assert!(imported.file.embeddings.is_empty() && imported.unmatched.is_empty());

    let imported = read(&pipeline, &fixture("diff160.safetensors")).unwrap();
    assert!(imported.file.embeddings.is_empty(), "a delta is no word");
}

#[test]
fn what_cannot_be_applied_is_refused_by_name() {
    let pipeline = pipeline();
    let refused = |tensors: &[(String, Part)], metadata: &[(&str, &str)]| {
        read(&pipeline, &write(tensors, metadata)).unwrap_err().to_string()
    };
    let with = |key: &str, part: Part| {
        let mut tensors = lora(kohya(SQUARE), 4, 64, 64);
        tensors.push((format!("lora_unet_{SQUARE}.{key}"), part));
        refused(&tensors, &[])
    };
    assert!(with("lora_B.bias", noise(3, &[64], 1.0)).contains("lora_bias"));
    assert!(with("scalar", floats(&[], &[1.0])).contains("scalar"));
    assert!(with("diff", noise(3, &[64, 64], 1.0)).contains("another method"));
    assert!(with("dora_scale", noise(3, &[32, 2], 1.0)).contains("dora_scale has shape [32, 2]"));

    // Two tensors of some megabytes whose product has 10^12 values.
    let mut middle = lora(kohya(SQUARE), 1, 64, 1_000_000);
    middle.push((kohya(SQUARE)("mid"), noise(3, &[1, 1, 1000, 1000], 1.0)));
    let message = refused(&middle, &[]);
    assert!(message.contains("lora_mid.weight has shape [1, 1, 1000, 1000]"), "{message}");

    // A shape without values says nothing about a rank.
    let empty = (Dtype::F32, vec![4_294_967_295, 4_294_967_296, 0], Vec::new());
    let loha = ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"].map(|name| {
        let part = if name == "hada_w1_b" { empty.clone() } else { noise(1, &[64, 64], 1.0) };
        (format!("lora_unet_{SQUARE}.{name}"), part)
    });
    let message = refused(&loha, &[]);
    assert!(message.contains("hada_w1_b` claims the shape [4294967295"), "{message}");

    let butterfly = [(format!("lora_unet_{SQUARE}.oft_blocks"), noise(1, &[2, 4, 16, 16], 1.0))];
    assert!(refused(&butterfly, &[]).contains("BOFT"));
}

#[test]
fn a_file_for_another_architecture_is_named() {
    let pipeline = pipeline();
    let wide = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k";
    let key = |part: &str| format!("{wide}.lora_{part}.weight");
    let message = |tensors: &[(String, Part)], metadata: &[(&str, &str)]| {
        read(&pipeline, &write(tensors, metadata)).unwrap_err().to_string()
    };
    let sdxl = message(&lora(key, 4, 640, 2048), &[]);
    assert!(sdxl.contains("is for SDXL") && sdxl.contains("text states of 160"), "{sdxl}");
    let named = [("ss_base_model_version", "sdxl_base_v1-0")];
    assert!(message(&lora(kohya(SQUARE), 4, 64, 64), &named).contains("is for SDXL"));
    let flux = |part: &str| format!("lora_unet_double_blocks_0_img_attn_qkv.lora_{part}.weight");
    assert!(message(&lora(flux, 4, 64, 64), &[]).contains("is for FLUX"));
    // A base of another width than the known ones may be of either version.
    let sd1 = write(&lora(kohya(SQUARE), 4, 64, 64), &[("ss_base_model_version", "sd_v1")]);
    assert!(read(&pipeline, &sd1).is_ok());
}

#[test]
fn an_added_change_is_loaded_onto_a_fine_tune_with_a_word() {
    let base = pipeline();
    let lora = read(&base, &write(&lora(kohya(SQUARE), 4, 64, 64), &[])).unwrap().file;
    let dora = read(&base, &fixture("dora_out.safetensors")).unwrap().file;
    let mut tuned = pipeline();
    tuned.set_networks(map_params(tuned.networks(), |param| Some(param.value().mul_scalar(1.01))));
    let mut load = |adapter, listen: bool| {
        let mut calls = 0;
        let mut on_other_base = || calls += 1;
        let on_other_base: Option<&mut dyn FnMut()> =
            if listen { Some(&mut on_other_base) } else { None };
        let options = LoadAdapterOptions { on_other_base, ..LoadAdapterOptions::default() };
        load_adapter(&mut tuned, adapter, options).map(|_| calls)
    };
    assert_eq!(load(&lora, true).unwrap(), 1);
    assert!(load(&lora, false).unwrap_err().is_other_base());
    assert!(load(&dora, true).unwrap_err().is_other_base(), "a magnitude is of its own base");
    let mut same = pipeline();
    let on_other_base: Option<&mut dyn FnMut()> = Some(&mut || panic!("it is its own base"));
    let options = LoadAdapterOptions { on_other_base, ..LoadAdapterOptions::default() };
    load_adapter(&mut same, &lora, options).unwrap();
}

/// A network with as many layers as a LoRA of SDXL has.
#[derive(Module, Debug)]
struct Many {
    blocks: Vec<Linear>,
}

#[derive(Module, Debug)]
struct Networks {
    unet: Many,
}

#[test]
fn as_many_layers_as_those_of_sdxl_are_matched() {
    let layer = || LinearConfig::new(8, 8).init(&Device::default());
    let networks = Networks { unet: Many { blocks: (0..722).map(|_| layer()).collect() } };
    let mut tensors = Vec::new();
    for index in 0..722 {
        tensors.extend(lora(kohya(&format!("blocks_{index}")), 4, 8, 8));
        tensors.push((format!("lora_unet_blocks_{index}.alpha"), floats(&[], &[2.0])));
    }
    let path = write(&tensors, &[]);
    assert_eq!(import(&path, &networks, "base").unwrap().matched.len(), 722);
}
