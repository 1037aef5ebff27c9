//! Adapters on disk: one safetensors file, its tensors named by module path, its metadata saying what
//! they mean.
//!
//! | metadata key | value |
//! |---|---|
//! | `format` | `soda-adapter` |
//! | `version` | `1` |
//! | `method` | [`Method::name`] |
//! | `config` | the method's settings, JSON |
//! | `targets` | the target patterns, JSON |
//! | `base` | name of the base model, for people |
//! | `base_hash` | [`fingerprint`](fn@crate::fingerprint) of the base's targeted weights |
//! | `trigger` | the words that call the subject up, JSON |
//! | `training` | a summary of the training, JSON |
//! | `signs` | the sign rules of the decompositions that the numbers stand against |
//! | `factors` | sizes of the rotations' Kronecker factors by the width that they turn, JSON; of SODA |
//!
//! Tensors are f32, named `<component>.<path of the weight>.<method>.<parameter>`, as in
//! `unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight.soda.rotation.factors.0`.
//! The singular basis is not stored: it follows from the base, which is why the base's hash is.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use soda_linalg::{SIGN_RULES, SvdCache};

use crate::attach::{MARKER, Plan};
use crate::error::AdapterError;
use crate::fingerprint::fingerprint;
use crate::leaf::{leaves, map_leaves};
use crate::method::{Geometry, Method};
use crate::table::MethodConfig;
use crate::target::Targets;
use crate::tensors::Tensors;

const FORMAT: &str = "soda-adapter";
const VERSION: &str = "1";
/// The one component that can be adapted so far; the prefix keeps room for the text encoders.
const COMPONENT: &str = "unet";
/// A factor further than this from orthogonal was not written by training; rounding stays below 2e-6.
const ORTHOGONALITY: f32 = 1e-4;

/// What an adapter file says about its tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Header<M = MethodConfig> {
    /// The method and its settings.
    pub method: M,
    /// The patterns that chose the adapted weights.
    pub targets: Targets,
    /// Name of the base model.
    pub base: String,
    /// [`fingerprint`](fn@crate::fingerprint) of the base's targeted weights.
    pub base_hash: String,
    /// Words that call the subject up, such as `sks mug`.
    pub trigger: Vec<String>,
    /// A summary of the training: steps, rates, loss.
    pub training: Value,
}

/// An adapter off its network.
#[derive(Clone, Debug)]
pub struct AdapterFile<M = MethodConfig> {
    /// What the tensors mean.
    pub header: Header<M>,
    /// The trained tensors by name, f32.
    pub tensors: BTreeMap<String, TensorData>,
}

impl<M: Method> AdapterFile<M> {
    /// Takes the adapter's tensors off a module with one adapter attached.
    pub fn capture<N: Module>(header: Header<M>, module: &N) -> Self {
        let marker = format!(".{MARKER}.");
        let tensors = leaves(module)
            .into_iter()
            .filter_map(|leaf| {
                let (weight, parameter) = leaf.path.split_once(&marker)?;
                let key = key(&header.method, weight, parameter);
                let values: Vec<f32> = leaf.value.cast(DType::F32).into_data().iter().collect();
                Some((key, TensorData::new(values, leaf.shape)))
            })
            .collect();
        Self { header, tensors }
    }

    /// Attaches the adapter to the base it was trained on.
    ///
    /// # Errors
    /// As [`AdapterFile::plan`].
    pub fn attach<N: Module>(&self, module: N) -> Result<N, AdapterError> {
        Ok(self.plan(&module)?.attach(module))
    }

    /// The adapter, checked against the base it was trained on: to be attached, turned down
    /// ([`Plan::at_strength`]), or merged with others.
    ///
    /// # Errors
    /// Another base; tensors missing, left over, misshapen or not orthogonal.
    pub fn plan<N: Module>(&self, module: &N) -> Result<Plan<M::Adapter>, AdapterError> {
        self.plan_with(module, None, &mut |_, _| ())
    }

    /// [`AdapterFile::plan`] with the base's decompositions from `cache`, and progress, see [`Method::plan_with`].
    ///
    /// # Errors
    /// Those of [`AdapterFile::plan`], and a cache that can be neither read nor written.
    pub fn plan_with<N: Module>(
        &self,
        module: &N,
        cache: Option<&SvdCache>,
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Plan<M::Adapter>, AdapterError> {
        let weights = self.header.targets.select(module)?;
        let found = fingerprint(&weights);
        if found != self.header.base_hash {
            let short = |hash: &str| hash.chars().take(12).collect();
            return Err(AdapterError::OtherBase {
                name: self.header.base.clone(),
                expected: short(&self.header.base_hash),
                found: short(&found),
            });
        }
        let method = &self.header.method;
        let mut plan = method.plan_with(&self.header.targets, module, cache, on_progress)?;
        self.check(&plan)?;
        for (weight, adapter) in &mut plan.adapters {
            *adapter = map_leaves(adapter.clone(), |parameter, _, old| {
                let data = self.tensors.get(&key(method, weight, parameter))?;
                let values: Vec<f32> = data.iter().collect();
                let data = TensorData::from(values.as_slice()).convert_dtype(old.dtype());
                Some(Tensor::from_data(data, (&old.device(), old.dtype())))
            });
        }
        Ok(plan)
    }

    /// Number of trained values.
    pub fn num_params(&self) -> usize {
        self.tensors.values().map(TensorData::num_elements).sum()
    }

    /// Sizes of the rotations' Kronecker factors by their product, the width that they turn.
    pub fn factor_sizes(&self) -> BTreeMap<usize, Vec<usize>> {
        let mut rotations: BTreeMap<&str, BTreeMap<usize, usize>> = BTreeMap::new();
        for (key, data) in &self.tensors {
            let Some((rotation, index)) = key.rsplit_once(".factors.") else { continue };
            let (Ok(index), Some(size)) = (index.parse(), data.shape().as_slice().first()) else {
                continue;
            };
            rotations.entry(rotation).or_default().insert(index, *size);
        }
        let sizes = rotations.into_values().map(|sizes| sizes.into_values().collect::<Vec<_>>());
        sizes.map(|sizes| (sizes.iter().product(), sizes)).collect()
    }

    /// Reads an adapter file.
    ///
    /// # Errors
    /// A file that cannot be read, is no safetensors file, or was not written by [`AdapterFile::write`]
    /// with this version and a method that `M` knows.
    pub fn read(path: &Path) -> Result<Self, AdapterError> {
        let Tensors { tensors, metadata } = Tensors::read(path)?;
        Ok(Self { header: Header::parse(path, metadata)?, tensors })
    }

    /// Writes the adapter; `path` never holds half of one.
    ///
    /// # Errors
    /// What the operating system says (no such folder, no room, no permission).
    pub fn write(&self, path: &Path) -> Result<(), AdapterError> {
        let mut metadata = self.header.metadata();
        let factors = self.factor_sizes();
        if !factors.is_empty() {
            metadata.insert("factors".to_owned(), json!(factors).to_string());
        }
        Tensors { tensors: self.tensors.clone(), metadata }.write(path)
    }

    /// Refuses tensors that do not fit the planned adapters.
    fn check(&self, plan: &Plan<M::Adapter>) -> Result<(), AdapterError> {
        let method = &self.header.method;
        let named = |(weight, adapter): (&String, &M::Adapter)| -> Vec<_> {
            let name = |leaf: crate::Leaf| (key(method, weight, &leaf.path), leaf.shape);
            leaves(adapter).into_iter().map(name).collect()
        };
        let mut expected: BTreeMap<_, _> = plan.adapters.iter().flat_map(named).collect();
        let mut unknown = Vec::new();
        for (key, data) in &self.tensors {
            let Some(shape) = expected.remove(key) else {
                unknown.push(key);
                continue;
            };
            if data.shape().as_slice() != shape {
                return Err(AdapterError::Shape {
                    key: key.clone(),
                    found: data.shape().as_slice().to_vec(),
                    expected: shape,
                });
            }
            if method.geometry(key) == Geometry::Stiefel {
                let deviation = deviation(data);
                if deviation > ORTHOGONALITY {
                    return Err(AdapterError::NotOrthogonal { key: key.clone(), deviation });
                }
            }
        }
        if expected.is_empty() && unknown.is_empty() {
            return Ok(());
        }
        let example =
            |key: Option<&String>| key.map(|key| format!(" (such as {key})")).unwrap_or_default();
        Err(AdapterError::Keys {
            missing: expected.len(),
            missing_example: example(expected.keys().next()),
            unknown: unknown.len(),
            unknown_example: example(unknown.first().copied()),
        })
    }
}

/// The name of an adapter's tensor in a file.
pub(crate) fn key<M: Method>(method: &M, weight: &str, parameter: &str) -> String {
    format!("{COMPONENT}.{weight}.{}.{parameter}", method.name())
}

/// `max |QᵀQ - I|` of a square matrix, on the host.
fn deviation(data: &TensorData) -> f32 {
    let n = data.shape().as_slice().first().copied().unwrap_or_default();
    let q: Vec<f32> = data.iter::<f32>().collect();
    let mut worst = 0f32;
    for i in 0..n {
        for j in 0..n {
            let dot: f32 = (0..n).map(|row| q[row * n + i] * q[row * n + j]).sum();
            worst = worst.max((dot - if i == j { 1.0 } else { 0.0 }).abs());
        }
    }
    worst
}

impl<M: Method> Header<M> {
    fn metadata(&self) -> HashMap<String, String> {
        [
            ("format", FORMAT.to_owned()),
            ("version", VERSION.to_owned()),
            ("method", self.method.name().to_owned()),
            ("config", json!(self.method).to_string()),
            ("targets", json!(self.targets).to_string()),
            ("base", self.base.clone()),
            ("base_hash", self.base_hash.clone()),
            ("trigger", json!(self.trigger).to_string()),
            ("training", self.training.to_string()),
            ("signs", SIGN_RULES.to_owned()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }

    fn parse(path: &Path, mut metadata: HashMap<String, String>) -> Result<Self, AdapterError> {
        let no = |field| AdapterError::NotAnAdapter { path: path.to_owned(), field };
        let mut field = |name| metadata.remove(name).ok_or_else(|| no(name));
        if field("format")? != FORMAT {
            return Err(no("format"));
        }
        let version = field("version")?;
        if version != VERSION {
            return Err(AdapterError::Version {
                path: path.to_owned(),
                found: version,
                supported: VERSION,
            });
        }
        // Files of before this field have these rules too.
        if let Ok(found) = field("signs")
            && found != SIGN_RULES
        {
            let path = path.to_owned();
            return Err(AdapterError::Signs { path, found, supported: SIGN_RULES });
        }
        let name = field("method")?;
        let method: M =
            serde_json::from_str(&field("config")?).map_err(|error| AdapterError::Settings {
                path: path.to_owned(),
                method: name.clone(),
                reason: error.to_string(),
            })?;
        Ok(Self {
            method,
            targets: parse(&field("targets")?).ok_or_else(|| no("targets"))?,
            base: field("base")?,
            base_hash: field("base_hash")?,
            trigger: parse(&field("trigger")?).ok_or_else(|| no("trigger"))?,
            training: parse(&field("training")?).ok_or_else(|| no("training"))?,
        })
    }
}

fn parse<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}
