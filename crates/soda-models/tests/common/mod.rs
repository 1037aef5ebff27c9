//! Reference files, and weights that a formula computes from their keys.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "every test uses a part of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Tensor, TensorData};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::Value;

/// A file of `tests/fixtures`, in memory.
pub(crate) struct Fixture(Vec<u8>);

impl Fixture {
    /// Reads a fixture of soda-models. Tests of other crates use it too.
    pub(crate) fn read(name: &str) -> Self {
        let fixtures = soda_testing::workspace_path("crates/soda-models/tests/fixtures");
        Self::open(&fixtures.join(format!("{name}.safetensors")))
    }

    pub(crate) fn open(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap())
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    /// The names of the tensors that start with `prefix`, without the prefix.
    pub(crate) fn names(&self, prefix: &str) -> Vec<String> {
        let file = self.file();
        let mut names: Vec<String> =
            file.names().iter().filter_map(|n| n.strip_prefix(prefix)).map(String::from).collect();
        names.sort();
        names
    }

    pub(crate) fn metadata(&self, key: &str) -> String {
        let (_, metadata) = SafeTensors::read_metadata(&self.0).unwrap();
        metadata.metadata().as_ref().unwrap()[key].clone()
    }

    pub(crate) fn floats(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let view = self.file().tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::F32, "{name}");
        let values = view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        (view.shape().to_vec(), values.collect())
    }

    pub(crate) fn ints(&self, name: &str) -> Vec<i64> {
        let view = self.file().tensor(name).unwrap();
        assert_eq!(view.dtype(), Dtype::I64, "{name}");
        view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub(crate) fn tensor<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let (shape, values) = self.floats(name);
        Tensor::from_data(TensorData::new(values, shape), device)
    }

    /// Key and shape of every weight of the model.
    pub(crate) fn keys(&self) -> BTreeMap<String, Vec<usize>> {
        serde_json::from_str(&self.metadata("keys")).unwrap()
    }

    /// Writes `config.json` and `model.safetensors` of the model into `dir`.
    pub(crate) fn write_model(&self, dir: &Path) -> (PathBuf, PathBuf) {
        let (config, weights) = (dir.join("config.json"), dir.join("model.safetensors"));
        std::fs::write(&config, self.metadata("config")).unwrap();
        write_weights(&weights, &self.keys());
        (config, weights)
    }
}

/// Writes the pipeline of Stable Diffusion in a fixture in diffusers' layout, with toybox's tokenizer.
pub(crate) fn write_pipeline(fixture: &Fixture, dir: &Path) {
    write_networks(fixture, dir);
    let toybox = soda_testing::workspace_path("examples/toybox/base/tokenizer");
    for (part, pad) in [("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")] {
        write_tokenizer(&toybox, &dir.join(part), "pad_token", pad.into());
    }
}

/// Writes the pipeline of Z-Image in a fixture in diffusers' layout, with toyflux's tokenizer.
pub(crate) fn write_z_image(fixture: &Fixture, dir: &Path) {
    write_networks(fixture, dir);
    let toyflux = soda_testing::workspace_path("examples/toyflux/base/tokenizer");
    let request: Value = serde_json::from_str(&fixture.metadata("request")).unwrap();
    let (field, length) = ("model_max_length", request["model_max_length"].clone());
    write_tokenizer(&toyflux, &dir.join("tokenizer"), field, length);
}

/// Writes the networks of a fixture's pipeline and their configs.
fn write_networks(fixture: &Fixture, dir: &Path) {
    let configs: BTreeMap<String, Value> =
        serde_json::from_str(&fixture.metadata("configs")).unwrap();
    let keys: BTreeMap<String, BTreeMap<String, Vec<usize>>> =
        serde_json::from_str(&fixture.metadata("keys")).unwrap();
    std::fs::write(dir.join("model_index.json"), fixture.metadata("index")).unwrap();
    for (part, config) in &configs {
        let dir = dir.join(part);
        std::fs::create_dir_all(&dir).unwrap();
        let name = if part == "scheduler" { "scheduler_config.json" } else { "config.json" };
        std::fs::write(dir.join(name), config.to_string()).unwrap();
        if let Some(keys) = keys.get(part) {
            let stem = if part.starts_with("text") { "model" } else { "diffusion_pytorch_model" };
            write_weights(&dir.join(format!("{stem}.safetensors")), keys);
        }
    }
}

/// Copies a tokenizer and changes a field of its config.
fn write_tokenizer(from: &Path, to: &Path, field: &str, value: Value) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::copy(from.join("tokenizer.json"), to.join("tokenizer.json")).unwrap();
    let config = std::fs::read_to_string(from.join("tokenizer_config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config[field] = value;
    std::fs::write(to.join("tokenizer_config.json"), config.to_string()).unwrap();
}

/// Writes the weights that the formula gives for these keys and shapes.
pub(crate) fn write_weights(path: &Path, keys: &BTreeMap<String, Vec<usize>>) {
    let bytes: Vec<(&String, &Vec<usize>, Vec<u8>)> = keys
        .iter()
        .map(|(key, shape)| {
            (key, shape, weight(key, shape).iter().flat_map(|x| x.to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(key, shape, bytes)| {
        (*key, TensorView::new(Dtype::F32, (*shape).clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// `count` numbers in [-1, 1): SplitMix64 from the FNV-1a hash of `name`, as in `docs/parity`.
pub(crate) fn uniform(name: &str, count: usize) -> Vec<f32> {
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    (1..=count as u64)
        .map(|i| {
            let z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 * 2f32.powi(-23) - 1.0
        })
        .collect()
}

/// The weight of the formula for a key and a shape.
pub(crate) fn weight(name: &str, shape: &[usize]) -> Vec<f32> {
    let u = uniform(name, shape.iter().product());
    let matrix = (3.0 / shape.iter().skip(1).product::<usize>() as f64).sqrt() as f32;
    let norm = name.ends_with("weight");
    u.into_iter()
        .map(|u| match shape.len() {
            0 | 1 if norm => 1.0 + 0.2 * u,
            0 | 1 => 0.2 * u,
            _ => u * matrix,
        })
        .collect()
}

/// An input of unit variance from the formula.
pub(crate) fn value<const D: usize>(name: &str, shape: [usize; D], device: &Device) -> Tensor<D> {
    let scale = 3f64.sqrt() as f32;
    let values: Vec<f32> =
        uniform(name, shape.iter().product()).into_iter().map(|u| u * scale).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// Asserts that `max |ours - theirs| <= tolerance * max |theirs|`. Fails on NaN.
#[track_caller]
pub(crate) fn check(what: &str, ours: &[f32], theirs: &[f32], tolerance: f32) {
    soda_testing::assert_close(what, ours, theirs, tolerance.into());
}

/// Asserts that tensor and reference agree in shape and values. See [`check`].
#[track_caller]
pub(crate) fn check_tensor<const D: usize>(
    what: &str,
    ours: Tensor<D>,
    fixture: &Fixture,
    tolerance: f32,
) {
    let (shape, theirs) = fixture.floats(what);
    assert_eq!(ours.dims().to_vec(), shape, "{what}");
    check(what, &ours.into_data().iter::<f32>().collect::<Vec<_>>(), &theirs, tolerance);
}

/// Compares the gradients of `module` with every `grad.*` of the fixture.
#[track_caller]
pub(crate) fn check_gradients<M: Module>(
    module: &M,
    grads: &Gradients,
    fixture: &Fixture,
    key: impl Fn(&str) -> String,
    tolerance: f32,
) {
    let mut visitor =
        Collect { path: Vec::new(), types: Vec::new(), grads, found: BTreeMap::new() };
    module.visit(&mut visitor);
    let names = fixture.names("grad.");
    assert!(names.len() >= 3);
    for name in names {
        let (shape, theirs) = fixture.floats(&format!("grad.{name}"));
        let Some((dims, ours)) = visitor.found.get(&key(&name)) else {
            panic!("{name} has no gradient")
        };
        assert_eq!(*dims, shape, "{name}");
        check(&format!("gradient of {name}"), ours, &theirs, tolerance);
    }
}

/// The numbers of a module in all, and those of its largest parameter. Makes no parameter.
pub(crate) fn count_lazily<M: Module>(module: &M) -> [usize; 2] {
    struct Count([usize; 2]);
    impl ModuleVisitor for Count {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let numbers = param.lazy_shape().num_elements();
            let [all, largest] = self.0;
            self.0 = [all + numbers, largest.max(numbers)];
        }
    }
    let mut count = Count([0, 0]);
    module.visit(&mut count);
    count.0
}

/// Gradients by checkpoint key, in PyTorch's layout.
struct Collect<'a> {
    path: Vec<String>,
    types: Vec<String>,
    grads: &'a Gradients,
    found: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl ModuleVisitor for Collect<'_> {
    fn enter_module(&mut self, name: &str, kind: &str) {
        self.path.push(name.to_owned());
        self.types.push(kind.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _kind: &str) {
        self.path.pop();
        self.types.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(grad) = param.val().grad(self.grads) else { return };
        let kind = self.types.last().unwrap();
        let grad = if kind == "Struct:Linear" && D == 2 { grad.swap_dims(0, 1) } else { grad };
        let mut path = self.path.clone();
        let last = path.last_mut().unwrap();
        match last.as_str() {
            "gamma" => *last = "weight".to_owned(),
            "beta" => *last = "bias".to_owned(),
            _ => {}
        }
        let values = (grad.dims().to_vec(), grad.into_data().iter::<f32>().collect());
        self.found.insert(path.join("."), values);
    }
}
