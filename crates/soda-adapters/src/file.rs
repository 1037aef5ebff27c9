//! Adapters on disk: one safetensors file, its tensors named by module path, its metadata saying what
//! they mean.
//!
//! | metadata key | value |
//! |---|---|
//! | `format` | `soda-adapter` |
//! | `version` | `1` |
//! | `method` | [`Method::NAME`] |
//! | `config` | the method's settings, JSON |
//! | `targets` | the target patterns, JSON |
//! | `base` | name of the base model, for people |
//! | `base_hash` | [`fingerprint`](fn@crate::fingerprint) of the base's targeted weights |
//! | `trigger` | the words that call the subject up, JSON |
//! | `training` | a summary of the training, JSON |
//!
//! Tensors are f32, named `<component>.<path of the weight>.<method>.<parameter>`, as in
//! `unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight.soda.rotation.factors.0`.
//! The singular basis is not stored: it follows from the base, which is why the base's hash is.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::path::Path;

use burn::module::{Module, Reparameterization};
use burn::tensor::{DType, Device, Tensor, TensorData};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use soda_linalg::rotation_power;

use crate::error::AdapterError;
use crate::fingerprint::fingerprint;
use crate::leaf::{leaves, map_leaves};
use crate::method::{Geometry, Method};
use crate::target::Targets;

const FORMAT: &str = "soda-adapter";
const VERSION: &str = "1";
/// The one component that can be adapted so far; the prefix keeps room for the text encoders.
const COMPONENT: &str = "unet";
/// A factor further than this from orthogonal was not written by training; rounding stays below 2e-6.
const ORTHOGONALITY: f32 = 1e-4;

/// What an adapter file says about its tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`Method::NAME`].
    pub method: String,
    /// The method's settings.
    pub config: Value,
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
pub struct AdapterFile {
    /// What the tensors mean.
    pub header: Header,
    /// The trained tensors by name, f32.
    pub tensors: BTreeMap<String, TensorData>,
}

impl AdapterFile {
    /// Takes the adapter's tensors off an adapted module.
    pub fn capture<M: Method, N: Module>(header: Header, module: &N) -> Self {
        let tensors = leaves(module)
            .into_iter()
            .filter(|leaf| leaf.path.contains(&marker::<M>()))
            .map(|leaf| {
                let values: Vec<f32> = leaf.value.cast(DType::F32).into_data().iter().collect();
                (format!("{COMPONENT}.{}", leaf.path), TensorData::new(values, leaf.shape))
            })
            .collect();
        Self { header, tensors }
    }

    /// Attaches the adapter to the base it was trained on.
    ///
    /// # Errors
    /// Another method, another base, tensors missing, left over, misshapen, not finite or not orthogonal.
    pub fn attach<M: Method, N: Module>(&self, module: N) -> Result<N, AdapterError>
    where
        M::Adapter: Send,
    {
        let method: M = self.config()?;
        let weights = self.header.targets.select(&module)?;
        let found = fingerprint(&weights);
        if found != self.header.base_hash {
            let short = |hash: &str| hash.chars().take(12).collect();
            return Err(AdapterError::OtherBase {
                name: self.header.base.clone(),
                expected: short(&self.header.base_hash),
                found: short(&found),
            });
        }
        let module = method.plan(&self.header.targets, &module)?.attach(module);
        self.check::<M, N>(&method, &module)?;
        Ok(map_leaves(module, |path, _, old| {
            let data = self.tensors.get(&format!("{COMPONENT}.{path}"))?;
            let values: Vec<f32> = data.iter().collect();
            Some(Tensor::<1>::from_data(TensorData::from(values.as_slice()), &old.device()))
        }))
    }

    /// The same adapter turned down (or up): rotations along their geodesics, `Rᵗ = exp(t log R)`, all
    /// else in proportion. 0 is the base, 1 changes nothing.
    ///
    /// # Errors
    /// Another method, or a factor without a logarithm.
    pub fn at_strength<M: Method>(mut self, t: f64) -> Result<Self, AdapterError> {
        if t == 1.0 {
            return Ok(self);
        }
        let method: M = self.config()?;
        for (key, data) in &mut self.tensors {
            let values: Vec<f32> = match method.geometry(key) {
                Geometry::Euclidean => data.iter::<f32>().map(|value| value * t as f32).collect(),
                Geometry::Stiefel => {
                    let q = Tensor::<2>::from_data(data.clone(), &Device::default());
                    let power = rotation_power(&q, t).map_err(|source| {
                        AdapterError::Decomposition { path: key.clone(), source }
                    })?;
                    power.into_data().iter().collect()
                }
            };
            *data = TensorData::new(values, data.shape());
        }
        Ok(self)
    }

    /// The method's settings.
    ///
    /// # Errors
    /// The file was written by another method.
    pub fn config<M: Method>(&self) -> Result<M, AdapterError> {
        let unknown =
            || AdapterError::UnknownMethod { found: self.header.method.clone(), known: M::NAME };
        if self.header.method != M::NAME {
            return Err(unknown());
        }
        serde_json::from_value(self.header.config.clone()).map_err(|_| unknown())
    }

    /// Number of trained values.
    pub fn num_params(&self) -> usize {
        self.tensors.values().map(TensorData::num_elements).sum()
    }

    /// Reads an adapter file.
    ///
    /// # Errors
    /// A file that cannot be read, is no safetensors file, or was not written by [`AdapterFile::write`].
    pub fn read(path: &Path) -> Result<Self, AdapterError> {
        let bytes = std::fs::read(path).map_err(|source| AdapterError::Io {
            action: "read",
            path: path.to_owned(),
            source,
        })?;
        let malformed = |reason: String| AdapterError::Malformed { path: path.to_owned(), reason };
        let (_, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|error| malformed(error.to_string()))?;
        let header = parse_header(path, metadata.metadata().clone().unwrap_or_default())?;
        let file =
            SafeTensors::deserialize(&bytes).map_err(|error| malformed(error.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (key, view) in file.tensors() {
            if view.dtype() != Dtype::F32 {
                return Err(AdapterError::DType { key, found: view.dtype().to_string() });
            }
            let values: Vec<f32> = view
                .data()
                .as_chunks::<4>()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes))
                .collect();
            if values.iter().any(|value| !value.is_finite()) {
                return Err(AdapterError::NonFinite { key });
            }
            tensors.insert(key, TensorData::new(values, view.shape().to_vec()));
        }
        Ok(Self { header, tensors })
    }

    /// Writes the adapter: to a temporary file beside `path`, synced, then renamed, so that `path` never
    /// holds half an adapter.
    ///
    /// # Errors
    /// What the operating system says (no such folder, no room, no permission).
    pub fn write(&self, path: &Path) -> Result<(), AdapterError> {
        let bytes = self.to_bytes(path)?;
        let folder =
            path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(&bytes)?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(|source| AdapterError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        })
    }

    fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, AdapterError> {
        let values: Vec<(&String, Vec<u8>, Vec<usize>)> = self
            .tensors
            .iter()
            .map(|(key, data)| {
                let bytes = data.iter::<f32>().flat_map(f32::to_le_bytes).collect();
                (key, bytes, data.shape().as_slice().to_vec())
            })
            .collect();
        let malformed = |error: safetensors::SafeTensorError| AdapterError::Malformed {
            path: path.to_owned(),
            reason: error.to_string(),
        };
        let views = values
            .iter()
            .map(|(key, bytes, shape)| {
                Ok((key, TensorView::new(Dtype::F32, shape.clone(), bytes)?))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(malformed)?;
        safetensors::serialize(views, Some(self.metadata())).map_err(malformed)
    }

    fn metadata(&self) -> HashMap<String, String> {
        let header = &self.header;
        [
            ("format", FORMAT.to_owned()),
            ("version", VERSION.to_owned()),
            ("method", header.method.clone()),
            ("config", header.config.to_string()),
            ("targets", Value::from(header.targets.0.clone()).to_string()),
            ("base", header.base.clone()),
            ("base_hash", header.base_hash.clone()),
            ("trigger", Value::from(header.trigger.clone()).to_string()),
            ("training", header.training.to_string()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }

    /// Refuses tensors that do not fit the attached adapter.
    fn check<M: Method, N: Module>(&self, method: &M, module: &N) -> Result<(), AdapterError> {
        let mut expected: BTreeMap<String, Vec<usize>> = leaves(module)
            .into_iter()
            .filter(|leaf| leaf.path.contains(&marker::<M>()))
            .map(|leaf| (format!("{COMPONENT}.{}", leaf.path), leaf.shape))
            .collect();
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

/// What tells an adapter's parameters from the network's.
fn marker<M: Method>() -> String {
    format!(".{}.", M::Adapter::NAME)
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

fn parse_header(
    path: &Path,
    mut metadata: HashMap<String, String>,
) -> Result<Header, AdapterError> {
    let mut field = |name: &'static str| {
        metadata
            .remove(name)
            .ok_or(AdapterError::NotAnAdapter { path: path.to_owned(), field: name })
    };
    if field("format")? != FORMAT {
        return Err(AdapterError::NotAnAdapter { path: path.to_owned(), field: "format" });
    }
    let version = field("version")?;
    if version != VERSION {
        return Err(AdapterError::Version {
            path: path.to_owned(),
            found: version,
            supported: VERSION,
        });
    }
    let mut json = |name: &'static str| {
        serde_json::from_str::<Value>(&field(name)?)
            .map_err(|_| AdapterError::NotAnAdapter { path: path.to_owned(), field: name })
    };
    let words = |value: Value, name| {
        serde_json::from_value(value)
            .map_err(|_| AdapterError::NotAnAdapter { path: path.to_owned(), field: name })
    };
    let config = json("config")?;
    let training = json("training")?;
    let targets = Targets(words(json("targets")?, "targets")?);
    let trigger = words(json("trigger")?, "trigger")?;
    Ok(Header {
        method: field("method")?,
        config,
        targets,
        base: field("base")?,
        base_hash: field("base_hash")?,
        trigger,
        training,
    })
}
