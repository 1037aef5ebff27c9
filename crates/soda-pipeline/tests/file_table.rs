//! The table of files in `docs/reference/files.md`: every method, on every family of models, in every format.
//!
//! An adapter is written, read back, and merged. The merged weights must agree as the page says, or the
//! sentence that refuses must be the one of the page. `soda export` is these functions.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../../soda-adapters/tests/common/mod.rs"]
mod adapters;
#[path = "../../soda-models/tests/common/mod.rs"]
mod models;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Device, FloatDType};
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
use soda_models::clip::ClipTextModel;
use soda_models::pipeline::{Networks, Pipeline};
use soda_pipeline::interop::{
    CompressionBudget, ExportSettings, compress_to_lora, import, write_diff, write_diffusers,
    write_kohya, write_peft,
};
use soda_pipeline::{AdapterFile, Component, Header, PipelineError};
use soda_testing::{max_abs, max_abs_diff};

/// The largest difference that is called exact, relative to the largest change: roundings of f32.
const EXACT: f64 = 2e-6;

/// The largest difference of a delta's singular vectors and values, which are decomposed in f32.
const CLOSE: f64 = 1e-4;

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
        let w = weights.remove(path).unwrap().matrix.cast(DType::F32);
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

/// The cell of the page: how well an adapter travels, or the sentence that refuses it.
fn cell(format: &str, file: &AdapterFile, pipeline: &Pipeline) -> Result<&'static str, String> {
    let (networks, folder) = (pipeline.networks(), tempfile::tempdir().unwrap());
    let there = match travel(format, file, pipeline, folder.path()) {
        Ok(file) => file,
        Err(error) => return Err(error.to_string()),
    };
    let (base, expected) = merged(&file.plan(&networks).unwrap(), &networks);
    let (_, found) = merged(&there.plan(&networks).unwrap(), &networks);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{format}");
    let mut error: f64 = 0.0;
    for (path, weight) in &expected {
        let change = max_abs_diff(weight, &base[path]);
        assert!(change > 1e-4 * max_abs(base[path].iter().copied()), "{path} does not change");
        // `max` would lose a NaN.
        let of_weight = max_abs_diff(&found[path], weight) / change;
        error = if of_weight <= error { error } else { of_weight };
    }
    if std::env::var_os("SODA_TABLE_ERRORS").is_some() {
        println!("{format}: {error:.1e}");
    }
    match error {
        error if error <= EXACT => Ok("exact"),
        error if error <= CLOSE => Ok("1e-4"),
        error => Err(format!("the merged weights differ by {error:.1e}")),
    }
}

/// The table as the page has it, and the sentences that it refers to.
fn table() -> (String, Vec<String>) {
    let methods = methods();
    let names: Vec<&str> = methods.iter().map(|(name, _)| *name).collect();
    let mut text = format!("| base | file | {} |\n", names.join(" | "));
    writeln!(text, "|---|---|{}", "---|".repeat(names.len())).unwrap();
    let mut refusals: Vec<String> = Vec::new();
    for (base, weights) in BASES {
        let pipeline = pipeline(base);
        let networks = pipeline.networks();
        let files: Vec<_> =
            methods.iter().map(|(_, method)| trained(method, &networks, weights)).collect();
        for format in FORMATS {
            write!(text, "| {base} | {format} |").unwrap();
            for file in &files {
                let cell = match cell(format, file, &pipeline) {
                    Ok(cell) => cell.to_owned(),
                    Err(sentence) => {
                        let known = refusals.iter().position(|known| *known == sentence);
                        let number = known.unwrap_or_else(|| {
                            refusals.push(sentence);
                            refusals.len() - 1
                        });
                        format!("refused ({})", number + 1)
                    }
                };
                write!(text, " {cell} |").unwrap();
            }
            text.push('\n');
        }
    }
    (text, refusals)
}

#[test]
fn the_page_of_files_says_what_travels() {
    let page = soda_testing::workspace_path("docs/reference/files.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (table, refusals) = table();
    let refusals = refusals.iter().zip(1..);
    let sentences: String =
        refusals.map(|(sentence, number)| format!("{number}. {sentence}\n")).collect();
    assert!(page.contains(&table), "docs/reference/files.md must have this table:\n\n{table}");
    assert!(page.contains(&sentences), "docs/reference/files.md must have:\n\n{sentences}");
}
