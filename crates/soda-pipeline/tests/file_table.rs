//! The tables of files in `docs/reference/files.md`: every method on every family of models in every format.
//!
//! An adapter is written, read back, and merged. The merged weights must agree as the page says, or the
//! sentence that refuses must be the one of the page. `soda export` is these functions. The second table is
//! of files that other tools wrote; the tests of those compare the weights.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../../soda-adapters/tests/common/mod.rs"]
mod adapters;
#[path = "../../soda-models/tests/common/mod.rs"]
mod models;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{DType, Device, FloatDType, Tensor};
use models::{Fixture, write_pipeline, write_z_image};
use soda_adapters::boft::BoftConfig;
use soda_adapters::full::FullConfig;
use soda_adapters::loha::LohaConfig;
use soda_adapters::lokr::LokrConfig;
use soda_adapters::lora::LoraConfig;
use soda_adapters::oft::OftConfig;
use soda_adapters::soda::{Side, SodaConfig};
use soda_adapters::{
    Adapter as _, AdapterState, AnyAdapter, Method as _, MethodConfig, Plan, Recipe, Targets,
    TimestepMask,
};
use soda_kernels::has_vendor_blas;
use soda_models::clip::ClipTextModel;
use soda_models::flux2::Flux2Config;
use soda_models::pipeline::{Networks, Pipeline};
use soda_models::z_image::ZImageConfig;
use soda_models::{config, weights};
use soda_pipeline::interop::{
    CompressionBudget, ExportSettings, FileKind, Names, compress_to_lora, describe, import,
    write_diff, write_diffusers, write_kohya, write_peft,
};
use soda_pipeline::{AdapterFile, Component, Header, PipelineError};
use soda_testing::{max_abs, max_abs_diff};

/// The largest difference of what the page calls exact, relative to the largest change: roundings of f32.
///
/// The change is a difference of weights that are ten times as large, and a vendor's library sums the
/// norms of DoRA in another order.
fn exact(device: &Device) -> f64 {
    if has_vendor_blas(&Tensor::<1>::zeros([1], device)) { 3e-6 } else { 3e-7 }
}

/// The smallest and the largest difference of a LoRA that a decomposition in f32 made. By products of a
/// vendor's library it is up to 1.6e-4.
fn close(device: &Device) -> [f64; 2] {
    [1e-7, if has_vendor_blas(&Tensor::<1>::zeros([1], device)) { 2e-4 } else { 1e-4 }]
}

/// The families of models, with weights of each kind: projections that travel together, and others.
const BASES: [(&str, &[&str]); 4] = [
    (
        "SD 1.5",
        &[
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
            "unet.down_blocks.0.resnets.0.conv1.weight",
            "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.weight",
        ],
    ),
    (
        "SDXL",
        &[
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight",
            "unet.down_blocks.0.resnets.0.conv1.weight",
            "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.weight",
        ],
    ),
    (
        "FLUX.2",
        &[
            "transformer.transformer_blocks.0.attn.to_q.weight",
            "transformer.transformer_blocks.0.attn.to_v.weight",
            "transformer.transformer_blocks.1.ff.linear_out.weight",
            "transformer.single_transformer_blocks.0.attn.to_out.weight",
        ],
    ),
    (
        "Z-Image",
        &[
            "transformer.layers.0.attention.to_q.weight",
            "transformer.layers.0.attention.to_v.weight",
            "transformer.noise_refiner.0.feed_forward.w1.weight",
            "transformer.layers.1.adaLN_modulation.0.weight",
        ],
    ),
];

/// The formats, as the page names them.
const FORMATS: [&str; 5] = ["SODA", "diffusers", "kohya", "PEFT", "diff"];

fn pipeline(base: &str) -> Pipeline {
    let dir = tempfile::tempdir().unwrap();
    let bundled = |name: &str| soda_testing::workspace_path("examples").join(name).join("base");
    let path = match base {
        "SD 1.5" => bundled("toybox"),
        "FLUX.2" => bundled("toyflux"),
        _ => dir.path().to_owned(),
    };
    match base {
        "SDXL" => write_pipeline(&Fixture::read("pipeline-sdxl"), &path),
        "Z-Image" => write_z_image(&Fixture::read("pipeline-z-image"), &path),
        _ => {}
    }
    Pipeline::load(&path, &Device::default()).unwrap()
}

/// The methods, as the page names them.
fn methods() -> Vec<(&'static str, MethodConfig)> {
    let lora = LoraConfig { rank: 4, ..LoraConfig::default() };
    let dora = LoraConfig { dora: true, ..lora.clone() };
    let masked = LoraConfig { timestep_mask: Some(TimestepMask::default()), ..lora.clone() };
    // Blocks of four divide all widths of the models.
    let oft = |side| OftConfig { block_size: 4, side, ..OftConfig::default() };
    vec![
        ("LoRA", lora.into()),
        ("DoRA", dora.into()),
        ("LoHa", LohaConfig { rank: 2, ..LohaConfig::default() }.into()),
        ("LoKr", LokrConfig { rank: 2, ..LokrConfig::default() }.into()),
        ("OFT", oft(Side::Input).into()),
        ("OFT of outputs", oft(Side::Output).into()),
        ("BOFT", BoftConfig { block_size: 4, ..BoftConfig::default() }.into()),
        ("HRA", SodaConfig::hra().into()),
        ("SODA", SodaConfig::default().into()),
        ("delta", FullConfig {}.into()),
        ("T-LoRA", masked.into()),
    ]
}

/// An adapter as training leaves it, on these weights of a network.
fn trained_on<N: Module>(method: &MethodConfig, paths: &[&str], network: &N) -> AdapterState {
    let targets = Targets::from_paths(paths.iter().copied());
    let plan = method.plan(&targets, network).unwrap();
    let adapted = adapters::disturb(method, plan.attach(network.clone()));
    AdapterState::capture(Recipe::new(method.clone(), targets, network).unwrap(), &adapted)
}

/// An adapter as training leaves it, on these weights of several networks.
fn trained(method: &MethodConfig, networks: &Networks, weights: &[&str]) -> AdapterFile {
    let mut of_component: BTreeMap<Component, Vec<&str>> = BTreeMap::new();
    for path in weights {
        let (component, inside) = Component::split_path(path).unwrap();
        // The mask refuses kernels.
        if !(method.depends_on_timestep() && path.contains("conv")) {
            of_component.entry(component).or_default().push(inside);
        }
    }
    let mut file = AdapterFile::new(Header::default());
    for (component, paths) in of_component {
        let text =
            |encoder: &Option<ClipTextModel>| trained_on(method, &paths, encoder.as_ref().unwrap());
        let state = match component {
            Component::Unet | Component::Transformer => {
                trained_on(method, &paths, &networks.denoiser)
            }
            Component::TextEncoder => text(&networks.text_encoder),
            Component::TextEncoder2 => text(&networks.text_encoder_2),
        };
        file = file.with_adapter(component, state);
    }
    file
}

type Weights = BTreeMap<String, Vec<f32>>;

/// The weights of the base that a plan adapts, and the merged ones.
fn merged(plan: &Plan<AnyAdapter>, networks: &Networks) -> (Weights, Weights) {
    let mut weights = Targets::from_paths(plan.paths()).select(networks).unwrap();
    let (mut base, mut merged) = (Weights::new(), Weights::new());
    for (path, adapter) in plan.adapters() {
        let w = weights.remove(path).unwrap().matrix().cast(DType::F32);
        base.insert(path.clone(), w.to_data().iter().collect());
        merged.insert(path.clone(), adapter.apply(w).into_data().iter().collect());
    }
    (base, merged)
}

/// Writes an adapter and reads it back.
fn travel(
    format: &str,
    file: &AdapterFile,
    pipeline: &Pipeline,
    folder: &Path,
) -> Result<AdapterFile, PipelineError> {
    let networks = pipeline.networks();
    let path = folder.join(format!("{format}.safetensors"));
    if format == "SODA" {
        file.write(&path)?;
        return AdapterFile::read(&path);
    }
    file.check_has_weights()?;
    let plan = file.plan(&networks)?;
    let mut settings = ExportSettings::new(pipeline);
    settings.dtype = FloatDType::F32;
    let budget = CompressionBudget { error: 0.0, max_rank: None };
    if format == "diff" {
        write_diff(&plan, &networks, &settings, &path)?;
        return Ok(import(&path, &networks, "base")?.file);
    }
    let lora = compress_to_lora(&plan, &networks, budget)?;
    let out = if format == "PEFT" { folder.join("peft") } else { path };
    match format {
        "kohya" => write_kohya(&lora, &settings, &out)?,
        "diffusers" => write_diffusers(&lora, &settings, &out)?,
        _ => {
            let methods = file
                .adapters
                .iter()
                .map(|(component, state)| (*component, &state.recipe.method))
                .collect();
            write_peft(&methods, &plan, &lora, FloatDType::F32, &out)?;
        }
    }
    let imported = import(&out, &networks, "base")?;
    let left_out = imported.unmatched.len() + imported.unread.len() + imported.absent.len();
    assert_eq!(left_out, 0, "{format}");
    Ok(imported.file)
}

/// How well an adapter travels: the difference of the merged weights relative to the largest change, or the
/// sentence that refuses it.
fn difference(format: &str, file: &AdapterFile, pipeline: &Pipeline) -> Result<f64, String> {
    let (networks, folder) = (pipeline.networks(), tempfile::tempdir().unwrap());
    let there = travel(format, file, pipeline, folder.path()).map_err(|error| error.to_string())?;
    let (base, expected) = merged(&file.plan(&networks).unwrap(), &networks);
    let (base_of_found, found) = merged(&there.plan(&networks).unwrap(), &networks);
    // A layer of queries, keys and values has zeros for those that are not adapted.
    for (path, weight) in found.iter().filter(|(path, _)| !expected.contains_key(*path)) {
        assert_eq!(*weight, base_of_found[path], "{format}: {path} is not adapted");
    }
    let mut largest: f64 = 0.0;
    for (path, weight) in &expected {
        let change = max_abs_diff(weight, &base[path]);
        assert!(change > 1e-4 * max_abs(base[path].iter().copied()), "{path} does not change");
        // `max` would lose a NaN.
        let of_weight = max_abs_diff(&found[path], weight) / change;
        largest = if of_weight <= largest { largest } else { of_weight };
    }
    Ok(largest)
}

/// The cells of a row of a table.
fn cells(row: &str) -> Vec<String> {
    row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
}

fn page() -> String {
    let page = soda_testing::workspace_path("docs/reference/files.md");
    std::fs::read_to_string(page).unwrap()
}

/// The rows of the table that begins with this row, by base and format.
fn rows(page: &str, header: &str) -> BTreeMap<(String, String), Vec<String>> {
    let mut lines = page.lines().skip_while(|line| *line != header);
    assert!(lines.next().is_some(), "docs/reference/files.md needs a table with the row\n{header}");
    let rows = lines.skip(1).take_while(|line| line.starts_with('|')).map(cells);
    rows.map(|row| ((row[0].clone(), row[1].clone()), row[2..].to_vec())).collect()
}

#[test]
fn every_method_travels_in_every_format_as_the_page_says() {
    let (page, methods) = (page(), methods());
    let words = page.split_whitespace().collect::<Vec<_>>().join(" ");
    let names: Vec<&str> = methods.iter().map(|(name, _)| *name).collect();
    let mut rows = rows(&page, &format!("| base | file | {} |", names.join(" | ")));
    for (base, weights) in BASES {
        let pipeline = pipeline(base);
        let networks = pipeline.networks();
        let files: Vec<_> =
            methods.iter().map(|(_, method)| trained(method, &networks, weights)).collect();
        for format in FORMATS {
            let row = rows.remove(&(base.to_owned(), format.to_owned()));
            let row = row.unwrap_or_else(|| panic!("no row for {base} and {format}"));
            assert_eq!(row.len(), names.len(), "{base}, {format}");
            for ((cell, file), name) in row.iter().zip(&files).zip(&names) {
                let found = difference(format, file, &pipeline);
                let holds = match (cell.as_str(), &found) {
                    ("exact", Ok(found)) => *found <= exact(&Device::default()),
                    ("1e-4", Ok(found)) => {
                        let [least, most] = close(&Device::default());
                        least < *found && *found <= most
                    }
                    (cell, Err(sentence)) => {
                        let number =
                            cell.strip_prefix("refused (").and_then(|c| c.strip_suffix(')'));
                        let item = number.map(|number| format!(" {number}. {sentence} "));
                        item.is_some_and(|item| words.contains(&item))
                    }
                    _ => false,
                };
                assert!(
                    holds,
                    "{name} for {base} in {format}: the page says {cell}, not {found:?}"
                );
            }
        }
    }
    assert!(rows.is_empty(), "rows of no format: {:?}", rows.keys());
}

/// A file or a PEFT directory that another tool wrote, and the base that it is for.
fn files_of_others() -> Vec<(&'static str, PathBuf)> {
    let fixtures = |folder: &str| soda_testing::workspace_path("crates").join(folder);
    let mut files = Vec::new();
    for (base, folder) in [
        ("SD 1.5", "soda-cli/tests/fixtures/lora/sd15"),
        ("SD 1.5", "soda-pipeline/tests/fixtures/foreign"),
        ("SDXL", "soda-cli/tests/fixtures/lora/sdxl"),
        ("FLUX.2", "soda-pipeline/tests/fixtures/flux2"),
        ("FLUX.2", "soda-pipeline/tests/fixtures/flux2/peft"),
        ("Z-Image", "soda-pipeline/tests/fixtures/z_image"),
        ("Z-Image", "soda-pipeline/tests/fixtures/z_image/peft"),
    ] {
        for entry in std::fs::read_dir(fixtures(folder)).unwrap() {
            let path = entry.unwrap().path();
            let inside = ["adapter_model.safetensors", "unet/adapter_model.safetensors"];
            let inside = inside.map(|file| path.join(file)).into_iter().find(|file| file.is_file());
            let file = inside.unwrap_or(path);
            let name = file.to_string_lossy().into_owned();
            if name.ends_with(".safetensors") && !name.contains("expected") {
                files.push((base, file));
            }
        }
    }
    files
}

/// The transformers of the files, whose sizes are uneven.
fn networks(base: &str) -> Networks {
    let (device, dir) = (Device::default(), tempfile::tempdir().unwrap());
    let model = |name| Fixture::read(name).write_model(dir.path());
    match base {
        "FLUX.2" => {
            let (config, file) = model("flux2-uneven");
            let config: Flux2Config = config::read(&config).unwrap();
            weights::load(config.init(&device), &file).unwrap().into()
        }
        "Z-Image" => {
            let (config, file) = model("z-image-uneven");
            let config: ZImageConfig = config::read(&config).unwrap();
            weights::load(config.init(&device), &file).unwrap().into()
        }
        base => pipeline(base).networks(),
    }
}

#[test]
fn files_of_other_tools_are_read_as_the_page_says() {
    const METHODS: [&str; 8] = ["LoRA", "DoRA", "LoHa", "LoKr", "OFT", "BOFT", "HRA", "delta"];
    let networks: BTreeMap<_, _> = BASES.iter().map(|(base, _)| (*base, networks(base))).collect();
    let mut read: BTreeMap<(String, String), BTreeSet<&str>> = BTreeMap::new();
    for (base, path) in files_of_others() {
        let FileKind::Adapter { methods, names, .. } = describe(&path).unwrap().kind else {
            panic!("{} is an adapter", path.display())
        };
        import(&path, &networks[base], "base").unwrap();
        let names = if names == Names::Other { "no prefix" } else { names.tool() };
        let row = (base.to_owned(), names.to_owned());
        read.entry(row).or_default().extend(methods);
    }
    let header = format!("| base | names of | {} |", METHODS.join(" | "));
    let cells = |methods: &BTreeSet<&str>| -> Vec<String> {
        let cell = |method| if methods.contains(method) { "read" } else { "" }.to_owned();
        METHODS.into_iter().map(cell).collect()
    };
    let expected: BTreeMap<_, _> =
        read.into_iter().map(|(row, methods)| (row, cells(&methods))).collect();
    let rows = rows(&page(), &header);
    assert_eq!(rows, expected);
}
