//! Comparison with PEFT 0.21 of every method that both have, and reading and writing its files.
//!
//! The tests compare outputs, merged weights, half strength and gradients. `adapters.py` of the parity
//! generators makes the reference values in f32. The fixtures are those of `soda-adapters`.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

#[path = "../../soda-adapters/tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::module::Module;
use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use common::{Input, Net, Networks, gradients, targets, values};
use safetensors::SafeTensors;
use soda_adapters::boft::BoftConfig;
use soda_adapters::loha::LohaConfig;
use soda_adapters::lokr::LokrConfig;
use soda_adapters::lora::LoraConfig;
use soda_adapters::oft::OftConfig;
use soda_adapters::{AdapterState, CayleyForm, Method as _, MethodConfig, Recipe, map_params};
use soda_kernels::matmul;
use soda_pipeline::Component;
use soda_pipeline::interop::{CompressionBudget, Imported, compress_to_lora, import, write_peft};
use soda_testing::{max_abs, relative_error};

/// Both sides sum up to 36 products of numbers near 1 in f32, each in its own order.
const TOLERANCE: f64 = 5e-6;
/// A gradient adds the sum over the seven rows and the derivative of a series or an inverse.
const GRADIENT_TOLERANCE: f64 = 2e-5;

type Vectors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn fixture(name: &str) -> PathBuf {
    soda_testing::workspace_path("crates/soda-adapters/tests/fixtures").join(name)
}

fn vectors(path: PathBuf) -> Vectors {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |data: &[u8]| -> Vec<f32> {
        data.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    };
    let tensors = file.tensors().into_iter();
    tensors.map(|(key, view)| (key, (view.shape().to_vec(), floats(view.data())))).collect()
}

fn tensor<const D: usize>(vectors: &Vectors, key: &str) -> Tensor<D> {
    let (shape, values) = &vectors[key];
    Tensor::from_data(TensorData::new(values.clone(), shape.clone()), &Device::default())
}

/// The base network of the fixtures.
fn base(vectors: &Vectors) -> Net {
    map_params(Net::new(), |param| {
        let path = &param.path;
        let (shape, values) = vectors.get(&format!("base.{path}"))?;
        Some(match shape[..] {
            // torch stores the weight of a linear layer as `[out, in]`.
            [_, _] => tensor::<2>(vectors, &format!("base.{path}")).transpose().flatten(0, 1),
            _ => Tensor::from_data(values.as_slice(), &Device::default()),
        })
    })
}

fn input(vectors: &Vectors) -> Input {
    Input { q: tensor(vectors, "q"), k: tensor(vectors, "k"), image: tensor(vectors, "image") }
}

fn output(net: &Net, input: &Input) -> Tensor<2> {
    Tensor::cat(net.features(input).to_vec(), 1)
}

fn assert_close(found: Tensor<2>, vectors: &Vectors, key: &str) {
    let found: Vec<f32> = found.into_data().iter().collect();
    let error = relative_error(&found, &vectors[key].1);
    assert!(error < TOLERANCE, "{key}: {error:.1e}");
}

/// The name of PEFT's tensor in an adapter state, and the conversion of its values.
fn state_name(key: &str) -> (String, Layout) {
    let (module, part) = key.split_once('.').unwrap();
    let (name, layout) = match part {
        "lora_A.weight" => ("a", Layout::Transposed),
        "lora_B.weight" => ("b", Layout::Transposed),
        "lora_magnitude_vector.weight" => ("magnitude.value", Layout::Same),
        "oft_R.weight" => ("rotation.skew", Layout::Same),
        "hada_w1_a" => ("w1_a", Layout::Same),
        "hada_w1_b" => ("w1_b", Layout::Same),
        "hada_w2_a" => ("w2_a", Layout::Same),
        "hada_w2_b" => ("w2_b", Layout::Same),
        "lokr_w1" => ("w1.whole", Layout::Same),
        "lokr_w2" => ("w2.whole", Layout::Same),
        "lokr_w2_a" => ("w2.a", Layout::Same),
        "lokr_w2_b" => ("w2.b", Layout::Same),
        "boft_s" => ("scale", Layout::Same),
        "boft_R" => ("levels.0.rotation.skew", Layout::SkewBlocks),
        other => panic!("unknown part {other}"),
    };
    (format!("{module}.weight.{name}"), layout)
}

enum Layout {
    Same,
    Transposed,
    /// 2 x 2 blocks whose skew-symmetric part is the parameter.
    SkewBlocks,
}

fn convert((shape, values): &(Vec<usize>, Vec<f32>), layout: &Layout) -> Vec<f32> {
    match layout {
        Layout::Same => values.clone(),
        Layout::Transposed => {
            let (rows, cols) = (shape[0], values.len() / shape[0]);
            (0..values.len()).map(|at| values[(at % rows) * cols + at / rows]).collect()
        }
        // The parameter is `(R - Rᵀ) / 2`. The gradients of the entries above and below the diagonal are half
        // that of the parameter, with opposite signs.
        Layout::SkewBlocks => {
            values.as_chunks::<4>().0.iter().map(|r| (r[1] - r[2]) / 2.0).collect()
        }
    }
}

/// The trained state of a case: the import of PEFT's file, or its parameters by name for a given method.
fn trained_state(
    case: &str,
    method: Option<MethodConfig>,
    vectors: &Vectors,
    net: &Net,
) -> AdapterState {
    let Some(method) = method else {
        return unet_state(import(&fixture("peft").join(case), &networks(net), "base").unwrap());
    };
    let plan = method.plan(&targets(), net).unwrap();
    let recipe = Recipe::new(method.clone(), targets(), net).unwrap();
    let mut state = AdapterState::capture(recipe, &plan.attach(net.clone()));
    for (key, data) in vectors {
        let Some(key) = key.strip_prefix(&format!("{case}.parameter.")) else { continue };
        let (name, layout) = state_name(key);
        let key = name.replace(".weight.", &format!(".weight.{}.", method.name()));
        let old = state.tensors.get_mut(&key).unwrap_or_else(|| panic!("no {key}"));
        *old = TensorData::new(convert(data, &layout), old.shape());
    }
    state
}

fn networks(net: &Net) -> Networks {
    Networks { unet: net.clone() }
}

/// The state of the UNet, the only network of an import.
fn unet_state(mut imported: Imported) -> AdapterState {
    imported.file.adapters.remove(&Component::Unet).unwrap()
}

fn check(case: &str, method: Option<MethodConfig>) {
    let vectors = vectors(fixture("reference.safetensors"));
    let (net, input) = (base(&vectors), input(&vectors));
    let state = trained_state(case, method, &vectors, &net);
    let adapted = state.attach(net.clone()).unwrap();
    assert_close(output(&adapted, &input), &vectors, &format!("{case}.output"));

    let merged = adapted.clone().materialize();
    let linear = |weight: &burn::module::Param<Tensor<2>>| weight.val().transpose();
    assert_close(linear(&merged.to_q.weight), &vectors, &format!("{case}.merged.to_q.weight"));
    assert_close(linear(&merged.to_k.weight), &vectors, &format!("{case}.merged.to_k.weight"));
    let conv = merged.conv.weight.val().flatten::<2>(1, 3);
    assert_close(conv, &vectors, &format!("{case}.merged.conv.weight"));

    if vectors.contains_key(&format!("{case}.half")) {
        let half = state.plan(&net).unwrap().at_strength(0.5).unwrap().attach(net);
        assert_close(output(&half, &input), &vectors, &format!("{case}.half"));
    }

    let trained = adapted.train();
    let toward = Tensor::from_inner(tensor::<2>(&vectors, "toward"));
    let loss = (output(&trained, &input.on_tape()) * toward).sum();
    let grads = gradients(&trained, &loss.backward());
    let mut compared = 0;
    for (key, data) in &vectors {
        let Some(key) = key.strip_prefix(&format!("{case}.gradient.")) else { continue };
        let (name, layout) = state_name(key);
        let found: Vec<f32> = grads[&name.replace(".weight.", ".weight.adapter.")]
            .iter()
            .map(|g| *g as f32)
            .collect();
        let mut expected = convert(data, &layout);
        if matches!(layout, Layout::SkewBlocks) {
            expected.iter_mut().for_each(|value| *value *= 2.0);
        }
        let error = relative_error(&found, &expected);
        assert!(error < GRADIENT_TOLERANCE, "{case} gradient by {key}: {error:.1e}");
        compared += 1;
    }
    assert_eq!(compared, grads.len(), "{case}: every gradient has a reference");
}

#[test]
fn lora_matches_peft() {
    check("lora", None);
    check("rslora", None);
}

#[test]
fn dora_matches_peft() {
    check("dora", None);
}

#[test]
fn oft_matches_peft_in_all_its_forms() {
    for case in ["oft", "oft-exact", "oft-shared", "coft"] {
        check(case, None);
    }
}

#[test]
fn boft_loha_and_lokr_match_peft() {
    check("boft", Some(BoftConfig { block_size: 2, levels: 1 }.into()));
    check("loha", Some(LohaConfig { rank: 2, alpha: Some(3.0), seed: 0 }.into()));
    check("lokr", Some(LokrConfig { rank: 2, ..LokrConfig::default() }.into()));
}

#[test]
fn directories_of_boft_loha_and_lokr_are_read() {
    let vectors = vectors(fixture("reference.safetensors"));
    let (net, input) = (base(&vectors), input(&vectors));
    for (case, config) in [
        ("boft", r#"{"peft_type": "BOFT", "boft_block_size": 2, "bias": "none"}"#),
        ("loha", r#"{"peft_type": "LOHA", "r": 2, "alpha": 3, "rank_pattern": {}}"#),
        (
            "lokr",
            r#"{"peft_type": "LOKR", "r": 2, "alpha": 5, "alpha_pattern": {"to_q|to_k|conv": 2}}"#,
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut tensors = Vectors::new();
        for (key, value) in &vectors {
            let Some(key) = key.strip_prefix(&format!("{case}.parameter.")) else { continue };
            tensors.insert(format!("base_model.model.{key}"), value.clone());
        }
        write(&tensors, &folder.path().join("adapter_model.safetensors"));
        std::fs::write(folder.path().join("adapter_config.json"), config).unwrap();
        let imported = import(folder.path(), &networks(&net), "base").unwrap();
        assert!(imported.unmatched.is_empty() && imported.unread.is_empty(), "{case}");
        let adapted = unet_state(imported).attach(net.clone()).unwrap();
        assert_close(output(&adapted, &input), &vectors, &format!("{case}.output"));
        let merged = adapted.materialize().conv.weight.val().flatten::<2>(1, 3);
        assert_close(merged, &vectors, &format!("{case}.merged.conv.weight"));
    }
}

#[test]
fn settings_are_read_from_pefts_configuration() {
    let net = base(&vectors(fixture("reference.safetensors")));
    let method = |case: &str| {
        unet_state(import(&fixture("peft").join(case), &networks(&net), "base").unwrap())
            .recipe
            .method
    };
    let shared = OftConfig {
        block_size: 5,
        cayley: CayleyForm::Neumann { terms: 3 },
        block_share: true,
        ..OftConfig::default()
    };
    assert_eq!(method("oft-shared"), shared.into());
    let MethodConfig::Lora(LoraConfig { rank_pattern, alpha_pattern, dora: false, .. }) =
        method("rslora")
    else {
        panic!("rslora is a LoRA");
    };
    assert_eq!(rank_pattern[r"^to_k\.weight$"], 2);
    // s = 3/√4 as α/r with r = 4.
    assert_eq!(alpha_pattern[r"^conv\.weight$"], 6.0);
}

/// Writes PEFT's parameters to a file in the layout of LyCORIS.
fn lycoris_file(vectors: &Vectors, case: &str, alpha: f32, folder: &std::path::Path) -> PathBuf {
    let mut tensors: Vectors = Vectors::new();
    for (key, value) in vectors {
        let Some(key) = key.strip_prefix(&format!("{case}.parameter.")) else { continue };
        let module = key.split('.').next().unwrap();
        tensors.insert(format!("lora_unet_{key}"), value.clone());
        tensors.insert(format!("lora_unet_{module}.alpha"), (Vec::new(), vec![alpha]));
    }
    let te = "lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a".to_owned();
    tensors.insert(te, (vec![1], vec![1.0]));
    let path = folder.join(format!("{case}-{}.safetensors", tensors.len()));
    write(&tensors, &path);
    path
}

fn write(tensors: &Vectors, path: &std::path::Path) {
    let bytes: Vec<_> = tensors
        .iter()
        .map(|(key, (shape, values))| {
            (key, shape, values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
        })
        .collect();
    let views = bytes.iter().map(|(key, shape, bytes)| {
        let dtype = safetensors::Dtype::F32;
        (*key, safetensors::tensor::TensorView::new(dtype, (*shape).clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

#[test]
fn files_of_lycoris_are_read() {
    let vectors = vectors(fixture("reference.safetensors"));
    let (net, input) = (base(&vectors), input(&vectors));
    let folder = tempfile::tempdir().unwrap();
    for (case, alpha) in [("loha", 3.0), ("lokr", 2.0)] {
        let path = lycoris_file(&vectors, case, alpha, folder.path());
        let imported = import(&path, &networks(&net), "base").unwrap();
        assert_eq!(imported.matched.len(), 3);
        let text_encoder = ["lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a"];
        assert_eq!(imported.absent[&Component::TextEncoder], text_encoder);
        let state = unet_state(imported);
        assert_eq!(state.recipe.method.name(), case);
        let adapted = state.attach(net.clone()).unwrap();
        assert_close(output(&adapted, &input), &vectors, &format!("{case}.output"));
        let merged = adapted.materialize().conv.weight.val().flatten::<2>(1, 3);
        assert_close(merged, &vectors, &format!("{case}.merged.conv.weight"));
    }

    // A file in which a layer has a smaller rank than the others.
    let mut tensors = self::vectors(lycoris_file(&vectors, "loha", 3.0, folder.path()));
    for key in ["hada_w1_a", "hada_w2_a"] {
        let (shape, values) = tensors.get_mut(&format!("lora_unet_to_q.{key}")).unwrap();
        *values = values.iter().step_by(2).copied().collect();
        shape[1] = 1;
    }
    for key in ["hada_w1_b", "hada_w2_b"] {
        let (shape, values) = tensors.get_mut(&format!("lora_unet_to_q.{key}")).unwrap();
        values.truncate(shape[1]);
        shape[0] = 1;
    }
    let path = folder.path().join("uneven.safetensors");
    write(&tensors, &path);
    let read = |path: &std::path::Path| unet_state(import(path, &networks(&net), "base").unwrap());
    let merged = read(&path).attach(net.clone()).unwrap();
    let merged = merged.materialize();
    let factor = |key: &str| tensor::<2>(&tensors, &format!("lora_unet_to_q.{key}"));
    let delta = matmul(factor("hada_w1_a"), factor("hada_w1_b"))
        * matmul(factor("hada_w2_a"), factor("hada_w2_b")).mul_scalar(3.0);
    let expected = net.to_q.weight.val() + delta.transpose();
    let difference = max_abs(values(merged.to_q.weight.val() - expected));
    assert!(difference < 1e-5, "{difference:e}");

    // Twice the alpha of LoKr is twice the change.
    let double = lycoris_file(&vectors, "lokr", 4.0, folder.path());
    let double = read(&double).attach(net.clone()).unwrap();
    let once = lycoris_file(&vectors, "lokr", 2.0, folder.path());
    let once = read(&once).attach(net.clone()).unwrap();
    let delta = |other: &Net| other.clone().materialize().to_q.weight.val() - net.to_q.weight.val();
    let difference = delta(&double) - delta(&once).mul_scalar(2.0);
    assert!(max_abs(values(difference)) < 1e-5);

    // A core of another size than its factors is an error that names it.
    tensors.insert("lora_unet_conv.hada_t1".to_owned(), (vec![1], vec![1.0]));
    write(&tensors, &path);
    let error = import(&path, &networks(&net), "base").unwrap_err().to_string();
    assert!(error.contains("conv.hada_t1 has shape [1]"), "{error}");
}

#[test]
fn files_written_for_peft_are_those_of_peft() {
    let net = base(&vectors(fixture("reference.safetensors")));
    let folder = tempfile::tempdir().unwrap();
    for case in ["lora", "rslora", "dora", "oft", "oft-exact", "oft-shared", "coft"] {
        let theirs = fixture("peft").join(case);
        let read =
            |path: &std::path::Path| unet_state(import(path, &networks(&net), "base").unwrap());
        let state = read(&theirs);
        let plan = state.plan(&net).unwrap();
        let compressed = compress_to_lora(&plan, &net, CompressionBudget::default()).unwrap();
        let written = folder.path().join(case);
        let methods = [(Component::Unet, &state.recipe.method)].into();
        write_peft(&methods, &plan, &compressed, FloatDType::F32, &written).unwrap();

        let (theirs, ours) = (
            vectors(theirs.join("adapter_model.safetensors")),
            vectors(written.join("adapter_model.safetensors")),
        );
        let shapes = |vectors: &Vectors| -> Vec<_> {
            vectors.iter().map(|(key, (shape, _))| (key.clone(), shape.clone())).collect()
        };
        assert_eq!(shapes(&ours), shapes(&theirs), "{case}");
        if case.contains("oft") {
            assert_eq!(ours, theirs, "{case}");
        }
        let again = read(&written).attach(net.clone()).unwrap();
        let once = state.attach(net.clone()).unwrap();
        let difference = max_abs(values(again.conv.weight.val() - once.conv.weight.val()));
        // The scale is multiplied into `B`, which rounds once.
        assert!(difference < 1e-6, "{case}");
    }
}
