//! Checkpoints with quantized weights: int8 with a scale for each output, E4M3 with one scale or none, and
//! the forms of bitsandbytes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bitsandbytes;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Device};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use soda_kernels::{HostNumbers, QuantFormat, QuantLayout, StoredWeight, stored_weights};
use soda_models::ModelError;
use soda_models::pipeline::{LoadOptions, Pipeline};
use soda_models::weights::WeightStorage;
use soda_testing::{relative_error, workspace_path};

const FILE: &str = "transformer/diffusion_pytorch_model.safetensors";

type Stored = (Dtype, Vec<usize>, Vec<u8>);
type Tensors = BTreeMap<String, Stored>;

/// The tensors of the bundled transformer.
fn tensors() -> Tensors {
    let bytes = std::fs::read(workspace_path("examples/toyflux/base").join(FILE)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let stored = |(name, view): (String, TensorView<'_>)| {
        (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    };
    file.tensors().into_iter().map(stored).collect()
}

/// Loads the bundled model with these tensors as its transformer.
fn load(tensors: &Tensors, options: &LoadOptions) -> Result<Pipeline, ModelError> {
    let folder = tempfile::tempdir().unwrap();
    copy(&workspace_path("examples/toyflux/base"), folder.path());
    let views: BTreeMap<_, _> = tensors
        .iter()
        .map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        })
        .collect();
    safetensors::serialize_to_file(views, None, &folder.path().join(FILE)).unwrap();
    Pipeline::load_with(folder.path(), options, &Device::default())
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, target) = {
            let entry = entry.unwrap();
            (entry.path(), to.join(entry.file_name()))
        };
        if path.is_dir() {
            std::fs::create_dir(&target).unwrap();
            copy(&path, &target);
        } else if !path.ends_with(FILE) {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

fn int8() -> LoadOptions {
    let storage =
        WeightStorage { quantization: Some(QuantFormat::Int8), ..WeightStorage::default() };
    LoadOptions { storage, ..LoadOptions::default() }
}

/// Replaces the weights of the blocks by int8 with scales, from the program's own codes.
fn as_int8(tensors: &mut Tensors) -> BTreeMap<String, StoredWeight> {
    let weights = stored_weights(&load(tensors, &int8()).unwrap().denoiser);
    for (path, weight) in &weights {
        let [rows, columns] = layout_of(weight).shape();
        let bytes = weight.to_bytes();
        let (codes, scales) = bytes.split_at(rows * columns);
        tensors.insert(path.clone(), (Dtype::I8, vec![rows, columns], codes.to_vec()));
        let scale = path.replace(".weight", ".weight_scale");
        tensors.insert(scale, (Dtype::F32, vec![rows, 1], scales.to_vec()));
    }
    weights
}

#[test]
fn int8_is_read_as_its_numbers_and_keeps_its_codes() {
    let mut tensors = tensors();
    let expected = as_int8(&mut tensors);
    assert!(expected.len() > 20);
    // In floats the weight is the code times the scale.
    let floats = load(&tensors, &LoadOptions::default()).unwrap();
    let (path, weight) = expected.iter().next().unwrap();
    let params = values_by_path(&floats);
    let found = &params[path];
    let values = weight.to_float(DType::F32).into_data().iter::<f32>().collect::<Vec<_>>();
    assert!(relative_error(found, &values) < 1e-6);
    // A row has a code of the largest magnitude, so that quantizing it again finds the codes.
    let again = stored_weights(&load(&tensors, &int8()).unwrap().denoiser);
    for (path, weight) in &expected {
        let codes = layout_of(weight).numbers();
        assert_eq!(again[path].to_bytes()[..codes], weight.to_bytes()[..codes], "{path}");
    }
}

/// The values of linear weights `[in, out]` by path.
fn values_by_path(pipeline: &Pipeline) -> BTreeMap<String, Vec<f32>> {
    use burn::module::{Module, ModuleVisitor, Param};
    use burn::tensor::Tensor;
    #[derive(Default)]
    struct Values(Vec<String>, BTreeMap<String, Vec<f32>>);
    impl ModuleVisitor for Values {
        fn enter_module(&mut self, name: &str, _container: &str) {
            self.0.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let values = param.val().into_data().iter().collect();
            self.1.insert(self.0.join("."), values);
        }
    }
    let mut values = Values::default();
    pipeline.denoiser.visit(&mut values);
    values.1
}

#[test]
fn e4m3_is_read_with_one_scale_or_none() {
    let path = "transformer_blocks.0.attn.to_q.weight";
    let plain = tensors();
    let (_, shape, _) = plain[path].clone();
    let codes: Vec<u8> = (0..shape.iter().product::<usize>()).map(|i| (i % 0x70) as u8).collect();
    let mut scaled = plain.clone();
    scaled.insert(path.to_owned(), (Dtype::F8_E4M3, shape.clone(), codes));
    let of = |tensors: &Tensors| {
        values_by_path(&load(tensors, &LoadOptions::default()).unwrap())[path].clone()
    };
    let without = of(&scaled);
    let layer = path.strip_suffix("weight").unwrap();
    scaled
        .insert(format!("{layer}scale_weight"), (Dtype::F32, vec![], 0.5f32.to_le_bytes().into()));
    // The scale of activations is for products in 8 bits.
    scaled.insert(format!("{layer}input_scale"), (Dtype::F32, vec![], 3f32.to_le_bytes().into()));
    // The mark of ComfyUI's files.
    scaled.insert("scaled_fp8".to_owned(), (Dtype::F8_E4M3, vec![2], vec![0; 2]));
    let half: Vec<f32> = without.iter().map(|x| x * 0.5).collect();
    assert_eq!(of(&scaled), half);
    // The first row of the file is the first column here: codes 0, 1, 2 are multiples of 2^-9.
    let stride = shape[0];
    assert_eq!(without[stride], 2f32.powi(-9));
    assert_eq!(without[8 * stride], 2f32.powi(-6));
}

/// Replaces a weight by codes of int8.
fn put_int8(tensors: &mut Tensors, weight: &str) {
    let shape = tensors[weight].1.clone();
    let codes = vec![1; shape.iter().product()];
    tensors.insert(weight.to_owned(), (Dtype::I8, shape, codes));
}

#[test]
fn what_is_wrong_with_eight_bits_is_named() {
    let refusal = |change: fn(&mut Tensors, &str, &str)| {
        let mut tensors = tensors();
        let layer = "transformer_blocks.0.attn.to_q.";
        change(&mut tensors, &format!("{layer}weight"), &format!("{layer}weight_scale"));
        load(&tensors, &LoadOptions::default()).unwrap_err().to_string()
    };
    let error = refusal(|tensors, weight, _| put_int8(tensors, weight));
    assert!(error.contains("to_q.weight is in int8 and has no"), "{error}");
    let error = refusal(|tensors, weight, scale| {
        put_int8(tensors, weight);
        tensors.insert(scale.to_owned(), (Dtype::F32, vec![2], vec![0; 8]));
    });
    assert!(error.contains("must be one number or"), "{error}");
    let error = refusal(|tensors, weight, scale| {
        put_int8(tensors, weight);
        tensors.insert(scale.to_owned(), (Dtype::F32, vec![], f32::NAN.to_le_bytes().into()));
    });
    assert!(error.contains("to_q.weight") && error.contains("NaN"), "{error}");
    // A scale without a weight in 8 bits is an unknown key.
    let error = refusal(|tensors, _, scale| {
        tensors.insert(scale.to_owned(), (Dtype::F32, vec![], vec![0; 4]));
    });
    assert!(error.contains("to_q.weight_scale"), "{error}");
    let error = refusal(|tensors, weight, _| {
        let shape = tensors[weight].1.clone();
        let codes = vec![0x7f; shape.iter().product()];
        tensors.insert(weight.to_owned(), (Dtype::F8_E4M3, shape, codes));
    });
    assert!(error.contains("NaN"), "{error}");
}

/// The layout of a quantized weight.
fn layout_of(weight: &StoredWeight) -> QuantLayout {
    match weight.format().numbers {
        HostNumbers::Codes(layout) => layout,
        floats @ HostNumbers::Floats { .. } => panic!("not quantized: {floats:?}"),
    }
}
