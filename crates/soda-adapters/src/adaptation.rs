//! An adapter of one network, off it: what was trained, and what it means.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};
use soda_linalg::SvdCache;

use crate::attach::{MARKER, Plan};
use crate::error::AdapterError;
use crate::fingerprint::fingerprint;
use crate::leaf::{leaves, map_leaves};
use crate::method::{Geometry, Method};
use crate::prepare::prepare;
use crate::table::MethodConfig;
use crate::target::Targets;

/// A factor further than this from orthogonal was not written by training; rounding stays below 2e-6.
const ORTHOGONALITY: f32 = 1e-4;

/// How a network is adapted: what a plan is made of, besides the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe<M = MethodConfig> {
    /// The method and its settings.
    pub method: M,
    /// The patterns that choose the adapted weights.
    pub targets: Targets,
    /// [`fingerprint`](fn@crate::fingerprint) of the base's targeted weights.
    pub base_hash: String,
}

impl<M: Method> Recipe<M> {
    /// This method on these weights of `base`.
    ///
    /// # Errors
    /// See [`Targets::select`].
    pub fn new<N: Module>(method: M, targets: Targets, base: &N) -> Result<Self, AdapterError> {
        let base_hash = fingerprint(&targets.select(base)?);
        Ok(Self { method, targets, base_hash })
    }
}

/// The adapter of one network.
#[derive(Clone, Debug)]
pub struct Adaptation<M = MethodConfig> {
    /// What the tensors mean.
    pub recipe: Recipe<M>,
    /// The trained tensors, f32, by `<path of the weight>.<method>.<parameter>`.
    pub tensors: BTreeMap<String, TensorData>,
}

impl<M: Method> Adaptation<M> {
    /// Takes the adapter's tensors off a network with one adapter attached.
    pub fn capture<N: Module>(recipe: Recipe<M>, network: &N) -> Self {
        let marker = format!(".{MARKER}.");
        let tensors = leaves(network)
            .into_iter()
            .filter_map(|leaf| {
                let (weight, parameter) = leaf.path.split_once(&marker)?;
                let key = key(&recipe.method, weight, parameter);
                let values: Vec<f32> = leaf.value().cast(DType::F32).into_data().iter().collect();
                Some((key, TensorData::new(values, leaf.shape)))
            })
            .collect();
        Self { recipe, tensors }
    }

    /// Attaches the adapter to the base it was trained on.
    ///
    /// # Errors
    /// As [`Adaptation::plan`].
    pub fn attach<N: Module>(&self, network: N) -> Result<N, AdapterError> {
        Ok(self.plan(&network)?.attach(network))
    }

    /// The adapter, checked against the base it was trained on: to be attached, turned down
    /// ([`Plan::at_strength`]), or merged with others.
    ///
    /// # Errors
    /// Another base; tensors missing, left over, misshapen or not orthogonal.
    pub fn plan<N: Module>(&self, network: &N) -> Result<Plan<M::Adapter>, AdapterError> {
        self.plan_under("", network, None, &mut |_, _| ())
    }

    /// [`Adaptation::plan`] for the part of `module` whose paths begin with `prefix`. The plan's paths are those inside it.
    pub(crate) fn plan_under<N: Module>(
        &self,
        prefix: &str,
        module: &N,
        cache: Option<&SvdCache>,
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Plan<M::Adapter>, AdapterError> {
        let Recipe { method, targets, base_hash } = &self.recipe;
        let weights = targets.select_under(prefix, module)?;
        let found = fingerprint(&weights);
        if found != *base_hash {
            let short = |hash: &str| hash.chars().take(12).collect();
            return Err(AdapterError::OtherBase {
                expected: short(base_hash),
                found: short(&found),
            });
        }
        let mut plan = prepare(method, weights, cache, on_progress)?;
        self.check(&plan)?;
        for (weight, adapter) in &mut plan.adapters {
            *adapter = map_leaves(adapter.clone(), |leaf| {
                let data = self.tensors.get(&key(method, weight, &leaf.path))?;
                let values: Vec<f32> = data.iter().collect();
                let old = leaf.value();
                let data = TensorData::from(values.as_slice()).convert_dtype(old.dtype());
                Some(Tensor::from_data(data, (&old.device(), old.dtype())))
            });
        }
        Ok(plan)
    }

    /// Number of adapted weights.
    pub fn num_weights(&self) -> usize {
        let marker = format!(".{}.", self.recipe.method.name());
        let weights = self.tensors.keys().filter_map(|key| Some(key.split_once(&marker)?.0));
        weights.collect::<BTreeSet<_>>().len()
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

    /// Refuses tensors that do not fit the planned adapters.
    fn check(&self, plan: &Plan<M::Adapter>) -> Result<(), AdapterError> {
        let method = &self.recipe.method;
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

/// The name of an adapter's tensor.
pub(crate) fn key<M: Method>(method: &M, weight: &str, parameter: &str) -> String {
    format!("{weight}.{}.{parameter}", method.name())
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
