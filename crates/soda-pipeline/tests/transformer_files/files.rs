//! What the tests of all families share: changes of weights, and files in the names of other tools.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::Module as _;
use burn::tensor::{Device, FloatDType, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use soda_adapters::{Method as _, named_params};
use soda_kernels::has_vendor_blas;
use soda_models::pipeline::{Networks, Pipeline};
use soda_pipeline::interop::{
    CompressionBudget, ExportSettings, Imported, compress_to_lora, import, write_diff,
    write_diffusers, write_kohya, write_peft,
};
use soda_pipeline::{Component, PipelineError};
use soda_testing::relative_error;

use super::common::{Fixture, uniform};

/// Relative to the largest change of a weight times the probe. The change is a difference of weights in f32,
/// some ten times larger than itself; a part in the wrong place gives about 1.
const TOLERANCE: f64 = 2e-5;

/// For PiSSA. PEFT decomposes in f32, and the change is a small difference of two parts of the weight. A
/// vendor's library rounds their products otherwise, by which the difference is up to 1.1e-4.
fn pissa_tolerance(device: &Device) -> f64 {
    if has_vendor_blas(&Tensor::<1>::zeros([1], device)) { 2e-4 } else { 1e-4 }
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
pub(crate) fn changes(
    networks: &Networks,
    imported: &Imported,
) -> BTreeMap<String, (usize, Vec<f32>)> {
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

/// The folder of a family's fixtures.
pub(crate) struct Fixtures(pub(crate) &'static str);

impl Fixtures {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        let fixtures = soda_testing::workspace_path("crates/soda-pipeline/tests/fixtures");
        fixtures.join(self.0).join(name)
    }

    /// Checks files, each by its path, its name, and the method that it becomes.
    #[track_caller]
    pub(crate) fn check_all(
        &self,
        networks: &Networks,
        path: impl Fn(&str) -> String,
        cases: &[(&str, &str)],
    ) {
        for (name, method) in cases {
            let file = path(name);
            let imported = self.check(networks, file.trim_end_matches(".safetensors"), &file);
            let state = &imported.file.adapters[&Component::Transformer];
            assert_eq!(state.recipe.method.name(), *method, "{name}");
        }
    }

    /// Imports a file. Its changes must be those that another tool made of it.
    #[track_caller]
    pub(crate) fn check(&self, networks: &Networks, name: &str, file: &str) -> Imported {
        let imported = import(&self.path(file), networks, "base").unwrap();
        let left_out = [&imported.unmatched, &imported.unread];
        assert!(left_out.iter().all(|names| names.is_empty()), "{name}: {left_out:?}");
        assert!(imported.absent.is_empty(), "{name}: {:?}", imported.absent);
        let found = changes(networks, &imported);
        let expected = Fixture::open(&self.path(&format!("{name}.expected.safetensors")));
        assert_eq!(found.keys().cloned().collect::<Vec<_>>(), expected.names(""), "{name}");
        for (module, (input, change)) in &found {
            let error = relative_error(&probed(*input, change), &expected.floats(module).1);
            let tolerance = if name.contains("pissa") {
                pissa_tolerance(&Device::default())
            } else {
                TOLERANCE
            };
            assert!(error < tolerance, "{name} {module}: {error:.1e}");
        }
        imported
    }
}

/// A file with tensors of these names and shapes.
pub(crate) fn write(path: &Path, tensors: &[(String, Vec<usize>)], metadata: &[(&str, &str)]) {
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
pub(crate) fn lora(
    module: &str,
    [outputs, inputs]: [usize; 2],
    rank: usize,
) -> [(String, Vec<usize>); 2] {
    let name = |part| format!("{module}.lora_{part}.weight");
    [(name("A"), vec![rank, inputs]), (name("B"), vec![outputs, rank])]
}

pub(crate) fn read(
    tensors: &[(String, Vec<usize>)],
    networks: &Networks,
) -> Result<Imported, PipelineError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    write(&path, tensors, &[]);
    import(&path, networks, "base")
}

#[track_caller]
pub(crate) fn refusal(tensors: &[(String, Vec<usize>)], networks: &Networks) -> String {
    read(tensors, networks).unwrap_err().to_string()
}

pub(crate) fn full_precision(pipeline: &Pipeline) -> ExportSettings {
    let mut settings = ExportSettings::new(pipeline);
    settings.dtype = FloatDType::F32;
    settings
}

pub(crate) fn keys(path: &Path) -> BTreeMap<String, Vec<usize>> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(key, view)| (key.to_owned(), view.shape().to_vec())).collect()
}

pub(crate) fn metadata(path: &Path) -> BTreeMap<String, String> {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    header.metadata().clone().unwrap().into_iter().collect()
}

/// A LoRA in all formats.
pub(crate) struct Exported {
    _dir: tempfile::TempDir,
    /// The files of kohya's names, of diffusers' names and of whole deltas.
    pub(crate) files: [PathBuf; 3],
    /// The number of changed weights.
    pub(crate) changed: usize,
}

impl Exported {
    /// Imports a LoRA of these names and shapes, and writes it in all formats. Each file must make the same
    /// changes again.
    #[track_caller]
    pub(crate) fn new(pipeline: &Pipeline, tensors: &[(String, Vec<usize>)]) -> Self {
        let networks = pipeline.networks();
        let ours = read(tensors, &networks).unwrap();
        let expected = changes(&networks, &ours);
        let plan = ours.file.plan(&networks).unwrap();
        let lora = compress_to_lora(&plan, &networks, CompressionBudget::default()).unwrap();
        let settings = full_precision(pipeline);
        let dir = tempfile::tempdir().unwrap();
        let files =
            ["kohya", "diffusers", "diff"].map(|name| dir.path().join(format!("{name}.st")));
        let peft = dir.path().join("peft");
        write_kohya(&lora, &settings, &files[0]).unwrap();
        write_diffusers(&lora, &settings, &files[1]).unwrap();
        assert_eq!(write_diff(&plan, &networks, &settings, &files[2]).unwrap(), 0.0);
        let adapter = &ours.file.adapters[&Component::Transformer];
        let methods = BTreeMap::from([(Component::Transformer, &adapter.recipe.method)]);
        write_peft(&methods, &plan, &lora, FloatDType::F32, &peft).unwrap();
        assert!(peft.join("adapter_config.json").is_file(), "a transformer is one directory");

        for path in files.iter().chain([&peft]) {
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
        Self { _dir: dir, files, changed: expected.len() }
    }

    /// Compares fields of the metadata. The modules of kohya's names are those of the code `original`.
    #[track_caller]
    pub(crate) fn check_metadata(&self, original: &str, fields: &[(&str, &str)]) {
        for (path, implementation) in self.files.iter().zip([original, "diffusers", original]) {
            let metadata = metadata(path);
            let implementation = [("modelspec.implementation", implementation)];
            for (key, value) in fields.iter().chain(&implementation) {
                assert_eq!(metadata[*key], *value, "{} {key}", path.display());
            }
        }
    }
}
