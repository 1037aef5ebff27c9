//! Files of PEFT and of other tools whose scale, rank or kind is not in their tensors.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::Path;

use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use safetensors::tensor::{Dtype, TensorView};
use soda_adapters::Method as _;
use soda_pipeline::interop::{CompressionBudget, Imported, compress_to_lora, import, write_peft};
use soda_pipeline::{Component, PipelineError};
use soda_testing::relative_error;

#[derive(Module, Debug)]
struct Unet {
    to_q: Linear,
    to_out: Linear,
}

#[derive(Module, Debug)]
struct Networks {
    unet: Unet,
}

fn networks() -> Networks {
    let layer = || {
        let values: Vec<f32> = (0..24).map(|index| (index as f32 * 1.3).cos()).collect();
        let weight = Tensor::from_data(TensorData::new(values, [6, 4]), &Device::default());
        let linear = LinearConfig::new(6, 4).init(&Device::default());
        Linear { weight: Param::from_tensor(weight), ..linear }
    };
    Networks { unet: Unet { to_q: layer(), to_out: layer() } }
}

/// A tensor of a file: its name, its type, its shape and its bytes.
type Part = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn floats(name: &'static str, shape: &[usize]) -> Part {
    let count = shape.iter().product();
    let value = |index: usize| (index as f32 * 0.7 + name.len() as f32).sin();
    let bytes = (0..count).flat_map(|index| value(index).to_le_bytes()).collect();
    (name, Dtype::F32, shape.to_vec(), bytes)
}

fn lora() -> Vec<Part> {
    vec![
        floats("base_model.model.to_q.lora_A.weight", &[2, 6]),
        floats("base_model.model.to_q.lora_B.weight", &[4, 2]),
    ]
}

fn write(path: &Path, parts: &[Part]) {
    let views = parts.iter().map(|(name, dtype, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// A PEFT directory with this configuration.
fn directory(parts: &[Part], config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("adapter_model.safetensors"), parts);
    std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
    folder
}

fn read(path: &Path) -> Result<Imported, PipelineError> {
    import(path, &networks(), "base")
}

fn refusal(path: &Path) -> String {
    read(path).unwrap_err().to_string()
}

/// The change of a weight by an imported adapter.
fn change(imported: &Imported, weight: impl Fn(&Unet) -> Vec<f32>) -> Vec<f32> {
    let networks = networks();
    let before = weight(&networks.unet);
    let merged = imported.file.plan(&networks).unwrap().attach(networks).materialize();
    weight(&merged.unet).iter().zip(before).map(|(after, before)| after - before).collect()
}

fn to_q(unet: &Unet) -> Vec<f32> {
    unet.to_q.weight.val().into_data().iter().collect()
}

fn to_out(unet: &Unet) -> Vec<f32> {
    unet.to_out.weight.val().into_data().iter().collect()
}

#[test]
fn the_file_in_a_peft_directory_has_the_scale_of_its_configuration() {
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 16}"#;
    let folder = directory(&lora(), config);
    let whole = read(folder.path()).unwrap();
    let file = read(&folder.path().join("adapter_model.safetensors")).unwrap();
    for imported in [&whole, &file] {
        let soda_adapters::MethodConfig::Lora(method) =
            &imported.file.adapters[&Component::Unet].recipe.method
        else {
            panic!("not a LoRA")
        };
        assert_eq!(method.alpha_pattern.values().collect::<Vec<_>>(), [&16.0]);
    }
    assert!(whole.file.tensors().eq(file.file.tensors()));
}

#[test]
fn pefts_names_without_their_configuration_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter_model.safetensors");
    write(&path, &lora());
    let message = refusal(&path);
    assert!(message.contains("adapter_config.json, which is not beside it"), "{message}");
    // With a number for each layer, nothing is missing. Tools write it in any type.
    let mut parts = lora();
    parts.push(("base_model.model.to_q.alpha", Dtype::U8, vec![], vec![2]));
    write(&path, &parts);
    let once = change(&read(&path).unwrap(), to_q);
    parts[2].3 = vec![4];
    write(&path, &parts);
    let twice = change(&read(&path).unwrap(), to_q);
    let doubled: Vec<f32> = once.iter().map(|value| value * 2.0).collect();
    assert!(relative_error(&twice, &doubled) < 1e-4);
}

#[test]
fn tensors_that_contradict_their_configuration_are_refused() {
    let magnitude = floats("base_model.model.to_q.lora_magnitude_vector", &[4]);
    let with_magnitude = [lora(), vec![magnitude]].concat();
    for (parts, fields, needle) in [
        (&lora(), r#""r": 8"#, "`r` or `rank_pattern`"),
        (&lora(), r#""r": 2, "rank_pattern": {"to_q": 4}"#, "`r` or `rank_pattern`"),
        (&lora(), r#""r": 2, "use_dora": true"#, "`use_dora` is true"),
        (&with_magnitude, r#""r": 2, "use_dora": false"#, "`use_dora` is false"),
    ] {
        let folder = directory(parts, &format!(r#"{{"peft_type": "LORA", {fields}}}"#));
        let message = refusal(folder.path());
        assert!(message.contains(needle), "{fields}: {message}");
    }
    for (parts, fields) in [
        (&lora(), r#""r": 8, "rank_pattern": {"to_q": 2}"#),
        (&lora(), r#""r": 2, "use_dora": false"#),
        (&with_magnitude, r#""r": 2, "use_dora": true"#),
        (&with_magnitude, r#""r": 2"#),
    ] {
        let folder = directory(parts, &format!(r#"{{"peft_type": "LORA", {fields}}}"#));
        assert!(read(folder.path()).is_ok(), "{fields}");
    }
}

/// `W0 H_1 ⋯ H_r - W0` for a weight that is stored as `[6, 4]`, with PEFT's loop over the columns of `u`.
fn change_by_reflections(weight: &[f32], u: &[f32], rank: usize) -> Vec<f32> {
    let before: Vec<f64> = weight.iter().map(|value| f64::from(*value)).collect();
    let mut w = before.clone();
    for i in 0..rank {
        let u: Vec<f64> = (0..6).map(|row| f64::from(u[row * rank + i])).collect();
        let square: f64 = u.iter().map(|value| value * value).sum();
        for output in 0..4 {
            let dot: f64 = (0..6).map(|row| w[row * 4 + output] * u[row]).sum();
            (0..6).for_each(|row| w[row * 4 + output] -= 2.0 * dot / square * u[row]);
        }
    }
    w.iter().zip(before).map(|(after, before)| (after - before) as f32).collect()
}

#[test]
fn reflections_of_hra_are_read_and_written() {
    let parts = || {
        let layer = |name| floats(name, &[6, 4]);
        vec![layer("base_model.model.to_q.hra_u"), layer("base_model.model.to_out.hra_u")]
    };
    let config = r#"{"peft_type": "HRA", "r": 4, "apply_GS": false, "bias": "none"}"#;
    let folder = directory(&parts(), config);
    let imported = read(folder.path()).unwrap();
    let networks = networks();
    for (part, weight) in parts().iter().zip([to_q, to_out]) {
        let u: Vec<f32> =
            part.3.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let expected = change_by_reflections(&weight(&networks.unet), &u, 4);
        let error = relative_error(&change(&imported, weight), &expected);
        assert!(error < 2e-6, "{}: {error:.1e}", part.0);
    }

    let plan = imported.file.plan(&networks).unwrap();
    let compressed = compress_to_lora(&plan, &networks, CompressionBudget::default()).unwrap();
    let method = &imported.file.adapters[&Component::Unet].recipe.method;
    let written = folder.path().join("written");
    let methods = [(Component::Unet, method)].into();
    write_peft(&methods, &plan, &compressed, FloatDType::F32, &written).unwrap();
    let tensors = |folder: &Path| {
        let bytes = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let parts = file.tensors().into_iter();
        let parts = parts.map(|(name, view)| (name, view.shape().to_vec(), view.data().to_vec()));
        parts.collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(tensors(&written), tensors(folder.path()));
    assert!(read(&written).unwrap().file.tensors().eq(imported.file.tensors()));

    // Another strength is no product of these reflections any more, and becomes a LoRA.
    let half = imported.file.plan(&networks).unwrap().at_strength(0.5).unwrap();
    let compressed = compress_to_lora(&half, &networks, CompressionBudget::default()).unwrap();
    let written = folder.path().join("half");
    write_peft(&methods, &half, &compressed, FloatDType::F32, &written).unwrap();
    let config = std::fs::read_to_string(written.join("adapter_config.json")).unwrap();
    assert!(config.contains(r#""peft_type": "LORA""#), "{config}");
}

#[test]
fn reflections_without_an_equivalent_are_refused_by_name() {
    let hra = |shape: &[usize], fields: &str| {
        let part = floats("base_model.model.to_q.hra_u", shape);
        let folder = directory(&[part], &format!(r#"{{"peft_type": "HRA"{fields}}}"#));
        refusal(folder.path())
    };
    assert!(hra(&[6, 3], "").contains("odd number of reflections"));
    assert!(hra(&[6, 8], "").contains("to_q.hra_u has shape [6, 8]"));
    assert!(hra(&[5, 2], "").contains("to_q.hra_u has shape [5, 2]"));
    assert!(hra(&[6], "").contains("to_q.hra_u has shape [6]"));
    assert!(hra(&[6, 2], r#", "apply_GS": true"#).contains("`apply_GS`"));
}

#[test]
fn an_adapter_of_soda_needs_no_import() {
    let folder = directory(&lora(), r#"{"peft_type": "LORA", "r": 2}"#);
    let path = folder.path().join("mug.safetensors");
    read(folder.path()).unwrap().file.write(&path).unwrap();
    let message = refusal(&path);
    assert!(message.contains("an adapter of SODA already"), "{message}");
}

/// LyCORIS has blocks of one row for as few outputs as those of `conv_out`.
#[test]
fn blocks_of_one_row_rotate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("oft.safetensors");
    let blocks = |name, shape: &[usize]| floats(name, shape);
    let parts = [
        blocks("lora_unet_to_q.oft_blocks", &[2, 2, 2]),
        blocks("lora_unet_to_out.oft_blocks", &[4, 1, 1]),
    ];
    write(&path, &parts);
    let imported = read(&path).unwrap();
    assert_eq!(imported.matched, ["unet.to_out.weight", "unet.to_q.weight"]);
    assert!(change(&imported, to_out).iter().all(|value| *value == 0.0));
    assert!(change(&imported, to_q).iter().any(|value| value.abs() > 1e-3));

    let rescaled = [parts[1].clone(), floats("lora_unet_to_out.rescale", &[4, 1])];
    write(&path, &rescaled);
    let imported = read(&path).unwrap();
    assert_eq!(imported.file.adapters[&Component::Unet].recipe.method.name(), "full");
    assert!(change(&imported, to_out).iter().any(|value| value.abs() > 1e-3));
}

#[test]
fn tensors_of_other_types_are_unread_or_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mixed.safetensors");
    let ia3 = ("lora_unet_to_out.on_input", Dtype::BOOL, vec![], vec![1]);
    let mut parts = vec![
        floats("lora_unet_to_q.lora_down.weight", &[2, 6]),
        floats("lora_unet_to_q.lora_up.weight", &[4, 2]),
        ia3,
    ];
    write(&path, &parts);
    assert_eq!(read(&path).unwrap().unread, ["lora_unet_to_out.on_input"]);
    parts[0] = ("lora_unet_to_q.lora_down.weight", Dtype::I8, vec![2, 6], vec![1; 12]);
    write(&path, &parts);
    let message = refusal(&path);
    assert!(message.contains("lora_down.weight has type I8"), "{message}");
}

#[derive(Module, Debug)]
struct TwoEncoders {
    text_encoder: Unet,
    text_encoder_2: Unet,
}

/// The modules of SDXL's two text encoders have the same names, which PEFT's files do not distinguish.
#[test]
fn a_directory_with_the_name_of_a_network_is_for_it() {
    let encoders = TwoEncoders { text_encoder: networks().unet, text_encoder_2: networks().unet };
    for name in ["text_encoder", "text_encoder_2"] {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        write(&folder.join("adapter_model.safetensors"), &lora());
        let config = r#"{"peft_type": "LORA", "r": 2}"#;
        std::fs::write(folder.join("adapter_config.json"), config).unwrap();
        for path in [folder.clone(), folder.join("adapter_model.safetensors")] {
            let imported = import(&path, &encoders, "base").unwrap();
            assert_eq!(imported.matched, [format!("{name}.to_q.weight")]);
        }
    }
}
