//! Adapter files for FLUX.2 in the names of several tools, against diffusers 0.42, PEFT 0.21 and LyCORIS 3.2.
//!
//! `docs/parity/flux2/lora.py` writes the files, and the change that each tool makes of every weight.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../../soda-models/tests/common/mod.rs"]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Module as _;
use burn::tensor::{Device, FloatDType};
use common::{Fixture, uniform};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use soda_adapters::{Method as _, named_params};
use soda_models::flux2::Flux2Config;
use soda_models::pipeline::{Networks, Pipeline};
use soda_models::{config, weights};
use soda_pipeline::interop::{
    CompressionBudget, ExportSettings, Imported, compress_to_lora, import, write_diff,
    write_diffusers, write_kohya, write_peft,
};
use soda_pipeline::{Component, PipelineError};
use soda_testing::relative_error;

/// Relative to the largest change of a weight times the probe. The change is a difference of weights in f32,
/// some ten times larger than itself; a part in the wrong place gives about 1.
const TOLERANCE: f64 = 2e-5;

fn fixture(name: &str) -> PathBuf {
    soda_testing::workspace_path("crates/soda-pipeline/tests/fixtures/flux2").join(name)
}

/// For PiSSA. PEFT decomposes in f32, and the change is a small difference of two parts of the weight.
const PISSA_TOLERANCE: f64 = 1e-4;

/// The transformer of the fixtures.
fn uneven() -> Networks {
    let (device, dir) = (Device::default(), tempfile::tempdir().unwrap());
    let (config, file) = Fixture::read("flux2-uneven").write_model(dir.path());
    let config: Flux2Config = config::read(&config).unwrap();
    Networks::from(weights::load(config.init(&device), &file).unwrap())
}

/// The matrices of the transformer as torch's `[out, in]`, by module.
fn matrices(networks: &Networks) -> BTreeMap<String, (usize, Vec<f32>)> {
    let matrices = named_params(networks).into_iter().filter_map(|param| {
        let module = param.path.strip_prefix("transformer.")?.strip_suffix(".weight")?.to_owned();
        let [input, _] = param.shape[..] else { return None };
        let values = param.matrix()?.transpose().into_data().iter().collect();
        Some((module, (input, values)))
    });
    matrices.collect()
}

/// The weights that change with an adapter, and their changes.
fn changes(networks: &Networks, imported: &Imported) -> BTreeMap<String, (usize, Vec<f32>)> {
    let plan = imported.file.plan(networks).unwrap();
    let merged = matrices(&plan.attach(networks.clone()).materialize());
    let base = matrices(networks);
    let changed = merged.into_iter().filter_map(|(module, (input, merged))| {
        let change: Vec<f32> = merged.iter().zip(&base[&module].1).map(|(a, b)| a - b).collect();
        change.iter().any(|value| *value != 0.0).then_some((module, (input, change)))
    });
    changed.collect()
}

/// Each row of `[out, in]` times the probe of the fixtures.
fn probed(input: usize, rows: &[f32]) -> Vec<f32> {
    let probe = uniform("probe", input).into_iter();
    let probe: Vec<f64> = probe.map(|value| f64::from(value * 3f32.sqrt())).collect();
    let product =
        |row: &[f32]| -> f64 { row.iter().zip(&probe).map(|(a, b)| f64::from(*a) * b).sum() };
    rows.chunks_exact(input).map(|row| product(row) as f32).collect()
}

#[track_caller]
fn check(networks: &Networks, name: &str, file: &str) -> Imported {
    let imported = import(&fixture(file), networks, "base").unwrap();
    let left_out = [&imported.unmatched, &imported.unread];
    assert!(left_out.iter().all(|names| names.is_empty()), "{name}: {left_out:?}");
    assert!(imported.absent.is_empty(), "{name}: {:?}", imported.absent);
    let found = changes(networks, &imported);
    let expected = Fixture::open(&fixture(&format!("{name}.expected.safetensors")));
    assert_eq!(found.keys().cloned().collect::<Vec<_>>(), expected.names(""), "{name}");
    for (module, (input, change)) in &found {
        let error = relative_error(&probed(*input, change), &expected.floats(module).1);
        let tolerance = if name.contains("pissa") { PISSA_TOLERANCE } else { TOLERANCE };
        assert!(error < tolerance, "{name} {module}: {error:.1e}");
    }
    imported
}

#[test]
fn files_make_the_weights_that_their_tools_make() {
    let networks = uneven();
    for (name, method) in [
        ("diffusers", "lora"),
        ("bfl", "lora"),
        ("kohya", "lora"),
        // 7 x 18 outputs of queries, keys and values are no thirds, 6 x 21 are.
        ("lokr-bfl", "lokr"),
        ("lokr-bfl-thirds", "lokr"),
        ("lokr-simpletuner", "lokr"),
        ("lokr-lycoris", "lokr"),
        // Magnitudes of inputs are of the whole layer, those of outputs have rows.
        ("lycoris-locon-dora-in", "full"),
        ("lycoris-locon-dora-out", "lora"),
        ("lycoris-loha", "loha"),
        ("lycoris-lokr", "lokr"),
        ("lycoris-lokr-thirds", "lokr"),
        ("lycoris-oft", "oft"),
        // The bound is that of all blocks together.
        ("lycoris-oft-constraint", "full"),
        ("lycoris-full", "full"),
    ] {
        let imported = check(&networks, name, &format!("{name}.safetensors"));
        let state = &imported.file.adapters[&Component::Transformer];
        assert_eq!(state.recipe.method.name(), method, "{name}");
    }
}

#[test]
fn directories_of_peft_on_either_names_make_the_same_weights() {
    let networks = uneven();
    for (name, method) in [
        ("lora", "lora"),
        ("dora-bfl", "lora"),
        // The triples are those of the whole layer.
        ("pissa-bfl", "full"),
        ("loha-bfl", "loha"),
        ("lokr-bfl", "lokr"),
        ("oft-bfl", "oft"),
        ("boft-bfl", "boft"),
        ("hra-bfl", "soda"),
    ] {
        let name = format!("peft/{name}");
        let imported = check(&networks, &name, &name);
        let state = &imported.file.adapters[&Component::Transformer];
        assert_eq!(state.recipe.method.name(), method, "{name}");
    }
}

/// A file with tensors of these names and shapes.
fn write(path: &Path, tensors: &[(String, Vec<usize>)], metadata: &[(&str, &str)]) {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(key, shape)| {
            let values = uniform(key, shape.iter().product()).into_iter();
            (key, shape, values.flat_map(|value| (value * 0.2).to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(key, shape, bytes)| {
        (key.as_str(), TensorView::new(Dtype::F32, (*shape).clone(), bytes).unwrap())
    });
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    std::fs::write(path, safetensors::serialize(views, Some(metadata.collect())).unwrap()).unwrap();
}

/// The factors of a LoRA with these names.
fn lora(module: &str, [outputs, inputs]: [usize; 2], rank: usize) -> [(String, Vec<usize>); 2] {
    let name = |part| format!("{module}.lora_{part}.weight");
    [(name("A"), vec![rank, inputs]), (name("B"), vec![outputs, rank])]
}

fn read(tensors: &[(String, Vec<usize>)], networks: &Networks) -> Result<Imported, PipelineError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    write(&path, tensors, &[]);
    import(&path, networks, "base")
}

#[track_caller]
fn refusal(tensors: &[(String, Vec<usize>)], networks: &Networks) -> String {
    read(tensors, networks).unwrap_err().to_string()
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let networks = uneven();
    let qkv = "diffusion_model.double_blocks.0.img_attn.qkv";
    let to_q = "transformer.transformer_blocks.0.attn.to_q";
    let message = refusal(&lora(qkv, [127, 42], 2), &networks);
    assert!(message.contains("qkv.lora_B.weight has shape [127, 2]"), "{message}");
    assert!(message.contains("needs [126, 2]"), "{message}");
    // The sizes of the whole layer are named, and not those of a part.
    let message = refusal(&lora(qkv, [63, 42], 2), &networks);
    assert!(
        message.contains("has shape [63, 2]") && message.contains("needs [126, 2]"),
        "{message}"
    );

    let both = [lora(qkv, [126, 42], 2), lora(to_q, [42, 42], 2)].concat();
    let message = refusal(&both, &networks);
    assert!(message.contains("to_q.lora_A.weight and") && message.contains(qkv), "{message}");
    let [down, _] = lora(qkv, [126, 42], 2);
    let message = refusal(&[down], &networks);
    assert!(message.contains("not its B (up)"), "{message}");
    let mut scalar = lora(qkv, [126, 42], 2).to_vec();
    scalar.push((format!("{qkv}.scalar"), Vec::new()));
    assert!(refusal(&scalar, &networks).contains("trained scalar"));
}

#[test]
fn changes_of_norms_are_listed() {
    let networks = uneven();
    let norm = "diffusion_model.double_blocks.0.img_attn.norm.query_norm.diff".to_owned();
    let mut tensors = lora("diffusion_model.img_in", [42, 12], 2).to_vec();
    tensors.push((norm.clone(), vec![14]));
    let imported = read(&tensors, &networks).unwrap();
    assert_eq!(imported.unmatched, [norm]);
    assert_eq!(imported.matched, ["transformer.x_embedder.weight"]);
}

#[test]
fn a_file_for_another_architecture_is_named() {
    let networks = uneven();
    let qkv = "diffusion_model.double_blocks.0.img_attn.qkv";
    for (module, sizes, expected) in [
        ("lora_unet_input_blocks_4_1_proj_in", [64, 64], "is for Stable Diffusion, and"),
        ("unet.down_blocks.1.attentions.0.proj_in", [64, 64], "is for Stable Diffusion, and"),
        ("diffusion_model.double_blocks.0.img_mod.lin", [252, 42], "is for FLUX.1, and"),
        ("diffusion_model.double_blocks.7.img_attn.qkv", [126, 42], "is for a larger model, and"),
        ("transformer.single_transformer_blocks.2.attn.to_out", [42, 155], "is for a larger model"),
    ] {
        let mut tensors = lora(module, sizes, 2).to_vec();
        if expected.contains("model") || expected.contains("FLUX") {
            // This layer fits.
            tensors.extend(lora(qkv, [126, 42], 2));
        }
        let message = refusal(&tensors, &networks);
        assert!(message.contains(expected) && message.contains("the base is FLUX.2"), "{message}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    for (value, fits) in
        [("flux_2_klein_4b", true), ("flux1", false), ("sdxl_base_v1-0", false), ("sd_v1", false)]
    {
        write(&path, &lora(qkv, [126, 42], 2), &[("ss_base_model_version", value)]);
        assert_eq!(import(&path, &networks, "base").is_ok(), fits, "{value}");
    }
}

fn toyflux() -> Pipeline {
    let base = soda_testing::workspace_path("examples/toyflux/base");
    Pipeline::load(&base, &Device::default()).unwrap()
}

/// Shapes in toyflux: 192 channels, and 576 in the MLPs.
fn adapted() -> Vec<(String, Vec<usize>)> {
    let block = "transformer.transformer_blocks.1";
    [
        // Two of three, with an `A` each.
        lora(&format!("{block}.attn.to_q"), [192, 192], 2),
        lora(&format!("{block}.attn.to_v"), [192, 192], 3),
        lora(&format!("{block}.attn.add_k_proj"), [192, 192], 2),
        lora(&format!("{block}.attn.to_add_out"), [192, 192], 4),
        lora(&format!("{block}.ff_context.linear_in"), [1152, 192], 2),
        lora("transformer.single_transformer_blocks.5.attn.to_qkv_mlp_proj", [1728, 192], 2),
        lora("transformer.single_transformer_blocks.0.attn.to_out", [192, 768], 2),
        lora("transformer.norm_out.linear", [384, 192], 2),
        lora("transformer.single_stream_modulation.linear", [576, 192], 2),
    ]
    .concat()
}

fn full_precision(pipeline: &Pipeline) -> ExportSettings {
    let mut settings = ExportSettings::new(pipeline);
    settings.dtype = FloatDType::F32;
    settings
}

fn keys(path: &Path) -> BTreeMap<String, Vec<usize>> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(key, view)| (key.to_owned(), view.shape().to_vec())).collect()
}

fn metadata(path: &Path) -> BTreeMap<String, String> {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    header.metadata().clone().unwrap().into_iter().collect()
}

#[test]
fn exported_files_have_the_names_of_their_tools_and_are_read_back() {
    let pipeline = toyflux();
    let networks = pipeline.networks();
    let ours = read(&adapted(), &networks).unwrap();
    let expected = changes(&networks, &ours);
    assert_eq!(expected.len(), 9);
    let plan = ours.file.plan(&networks).unwrap();
    let lora = compress_to_lora(&plan, &networks, CompressionBudget::default()).unwrap();
    let settings = full_precision(&pipeline);
    let dir = tempfile::tempdir().unwrap();
    let paths = ["kohya", "diffusers", "diff"].map(|name| dir.path().join(format!("{name}.st")));
    let peft = dir.path().join("peft");
    write_kohya(&lora, &settings, &paths[0]).unwrap();
    write_diffusers(&lora, &settings, &paths[1]).unwrap();
    assert_eq!(write_diff(&plan, &networks, &settings, &paths[2]).unwrap(), 0.0);
    let adapter = &ours.file.adapters[&Component::Transformer];
    let methods = BTreeMap::from([(Component::Transformer, &adapter.recipe.method)]);
    write_peft(&methods, &plan, &lora, FloatDType::F32, &peft).unwrap();

    for path in paths.iter().chain([&peft]) {
        let again = import(path, &networks, "base").unwrap();
        let left_out = again.unmatched.len() + again.unread.len() + again.absent.len();
        assert_eq!(left_out, 0, "{}", path.display());
        let found = changes(&networks, &again);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (module, (_, change)) in &found {
            // The factors are equal to the bit, and the difference of the weights rounds.
            let error = relative_error(change, &expected[module].1);
            assert!(error < 1e-5, "{} {module}: {error:.1e}", path.display());
        }
    }

    let names = keys(&paths[0]);
    let qkv = "lora_unet_double_blocks_1_img_attn_qkv";
    // The rank is the sum of those of the parts.
    assert_eq!(names[&format!("{qkv}.lora_down.weight")], [5, 192]);
    assert_eq!(names[&format!("{qkv}.lora_up.weight")], [576, 5]);
    assert_eq!(names["lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"], [384, 2]);
    assert_eq!(names.len(), 3 * 8);
    assert!(names.keys().all(|name| name.starts_with("lora_unet_") && !name.contains("attn_to_")));
    assert_eq!(keys(&paths[1]), adapted().into_iter().collect());
    let deltas = keys(&paths[2]);
    assert_eq!(deltas[&format!("{qkv}.diff")], [576, 192]);
    assert_eq!(deltas.len(), 8);
    assert!(peft.join("adapter_config.json").is_file(), "a transformer alone is one directory");

    for (path, implementation) in [
        (&paths[0], "https://github.com/black-forest-labs/flux2"),
        (&paths[1], "diffusers"),
        (&paths[2], "https://github.com/black-forest-labs/flux2"),
    ] {
        let metadata = metadata(path);
        for (key, value) in [
            ("ss_base_model_version", "flux_2_klein"),
            ("modelspec.architecture", "Flux.2-klein/lora"),
            ("modelspec.implementation", implementation),
            ("modelspec.prediction_type", "flow"),
        ] {
            assert_eq!(metadata[key], value, "{} {key}", path.display());
        }
    }
    let [kohya, diffusers] = [&paths[0], &paths[1]].map(|path| metadata(path));
    assert_eq!((&*kohya["ss_network_dim"], &*kohya["ss_network_alpha"]), ("Dynamic", "5"));
    assert_eq!((&*diffusers["ss_network_dim"], &*diffusers["ss_network_alpha"]), ("Dynamic", "4"));
}

/// A layer of the original code keeps its rank, there and back.
#[test]
fn one_first_factor_of_queries_keys_and_values_stays_one() {
    let pipeline = toyflux();
    let networks = pipeline.networks();
    let qkv = lora("diffusion_model.double_blocks.0.txt_attn.qkv", [576, 192], 4);
    let ours = read(&qkv, &networks).unwrap();
    let parts = ["add_k_proj", "add_q_proj", "add_v_proj"];
    let parts = parts.map(|part| format!("transformer.transformer_blocks.0.attn.{part}.weight"));
    assert_eq!(ours.matched, parts);
    let plan = ours.file.plan(&networks).unwrap();
    let compressed = compress_to_lora(&plan, &networks, CompressionBudget::default()).unwrap();
    let ranks: BTreeSet<usize> = compressed.reports.iter().map(|layer| layer.rank).collect();
    assert_eq!(ranks, BTreeSet::from([4]));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kohya.safetensors");
    let settings = full_precision(&pipeline);
    write_kohya(&compressed, &settings, &path).unwrap();
    let name = |part: &str| format!("lora_unet_double_blocks_0_txt_attn_qkv.{part}");
    let names = keys(&path);
    assert_eq!(names[&name("lora_down.weight")], [4, 192]);
    assert_eq!(names[&name("lora_up.weight")], [576, 4]);
    assert_eq!(names[&name("alpha")], [0usize; 0]);
}
