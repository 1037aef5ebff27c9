//! The trained state of an adapter, apart from its network: the tensors and their meaning.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::Module;
use burn::tensor::{DType, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::adapter::Adapter as _;
use crate::directions::Directions;
use crate::error::{AdapterError, StateError};
use crate::fingerprint::{fingerprint, fingerprint_like};
use crate::method::{Geometry, Method};
use crate::methods::MethodConfig;
use crate::named_params::{ADAPTER_SEGMENT, NamedParam, map_params, named_params};
use crate::plan::{Plan, PlanOptions, plan_weights};
use crate::targets::{TargetPreset, Targets};
use crate::weight::Weight;

/// The largest `max |QᵀQ - I|` of a rotation factor. Rounding stays below 2e-6, and training below this.
const ORTHOGONALITY_TOLERANCE: f32 = 1e-4;

/// The settings from which a plan is made for a network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe<M = MethodConfig> {
    /// The method and its settings.
    pub method: M,
    /// The patterns that select the adapted weights.
    pub targets: Targets,
    /// [`fingerprint`](fn@crate::fingerprint) of the targeted weights of the base.
    pub base_hash: String,
}

impl<M: Method> Recipe<M> {
    /// Makes the recipe of `method` on the targeted weights of `base`, with [`TargetPreset::GENERIC`].
    ///
    /// # Errors
    /// As [`Targets::select`].
    pub fn new<N: Module>(method: M, targets: Targets, base: &N) -> Result<Self, AdapterError> {
        Self::with_presets(method, targets, base, TargetPreset::GENERIC)
    }

    /// [`Recipe::new`] with other target presets.
    ///
    /// # Errors
    /// As [`Targets::select`].
    pub fn with_presets<N: Module>(
        method: M,
        targets: Targets,
        base: &N,
        presets: &[TargetPreset],
    ) -> Result<Self, AdapterError> {
        let weights = targets.select_within(base, "", presets)?;
        Ok(Self::from_weights(method, targets, &weights))
    }

    /// Makes the recipe of `method` on selected weights of the base.
    pub fn from_weights(method: M, targets: Targets, weights: &BTreeMap<String, Weight>) -> Self {
        Self { method, targets, base_hash: fingerprint(weights) }
    }
}

/// The trained tensors of one network's adapters, with the recipe that gives them their meaning.
///
/// The tensors are independent of the network and of its device. [`AdapterState::plan`] puts them back into
/// adapters.
///
/// ```
/// use burn::{module::Module, nn::LinearConfig, tensor::Device};
/// use soda_adapters::{AdapterState, Method, Recipe, Targets, lora::LoraConfig};
///
/// let layer = LinearConfig::new(12, 8).init(&Device::default());
/// let (method, targets) = (LoraConfig::default(), Targets(vec!["^weight$".into()]));
/// let adapted = method.plan(&targets, &layer)?.attach(layer.clone());
///
/// let state = AdapterState::capture(Recipe::new(method, targets, &layer)?, &adapted);
/// assert_eq!(state.tensors.keys().collect::<Vec<_>>(), ["weight.lora.a", "weight.lora.b"]);
/// let half = state.plan(&layer)?.at_strength(0.5)?.attach(layer);
/// # let _ = half;
/// # Ok::<(), soda_adapters::AdapterError>(())
/// ```
#[derive(Clone, Debug)]
pub struct AdapterState<M = MethodConfig> {
    /// The settings that the tensors belong to.
    pub recipe: Recipe<M>,
    /// The trained tensors in f32, by `<path of the weight>.<method>.<parameter>`.
    pub tensors: BTreeMap<String, TensorData>,
}

impl<M: Method> AdapterState<M> {
    /// Copies the tensors of the adapters on `network`, which has one plan attached.
    pub fn capture<N: Module>(recipe: Recipe<M>, network: &N) -> Self {
        let separator = format!(".{ADAPTER_SEGMENT}.");
        let tensors = named_params(network)
            .into_iter()
            .filter_map(|param| {
                let (weight, parameter) = param.path.split_once(&separator)?;
                let key = recipe.method.tensor_name(weight, parameter);
                let values: Vec<f32> = param.value().cast(DType::F32).into_data().iter().collect();
                Some((key, TensorData::new(values, param.shape)))
            })
            .collect();
        Self { recipe, tensors }
    }

    /// Attaches the trained adapters to the base that they were trained on.
    ///
    /// # Errors
    /// As [`AdapterState::plan`].
    pub fn attach<N: Module>(&self, network: N) -> Result<N, AdapterError> {
        Ok(self.plan(&network)?.attach(network))
    }

    /// Makes a plan of the trained adapters for the base that they were trained on.
    ///
    /// # Errors
    /// [`StateError`] for another base, and for tensors that are missing, unknown, of the wrong shape or not
    /// orthogonal. Also the errors of [`Method::plan`].
    pub fn plan<N: Module>(&self, network: &N) -> Result<Plan<M::Adapter>, AdapterError> {
        self.plan_with(network, &mut PlanOptions::default())
    }

    /// [`AdapterState::plan`] with a part of a module, target presets, a cache of decompositions and
    /// progress.
    ///
    /// # Errors
    /// As [`AdapterState::plan`], and a cache that cannot be read or written.
    pub fn plan_with<N: Module>(
        &self,
        module: &N,
        options: &mut PlanOptions<'_>,
    ) -> Result<Plan<M::Adapter>, AdapterError> {
        let Recipe { method, targets, base_hash } = &self.recipe;
        let weights = targets.select_within(module, options.prefix, options.presets)?;
        let found = fingerprint_like(base_hash, &weights);
        if found != *base_hash {
            match &mut options.on_other_base {
                Some(on_other_base) if !method.needs_its_base() => on_other_base(),
                _ => {
                    let short = |hash: &str| hash.chars().take(12).collect();
                    let (expected, found) = (short(base_hash), short(&found));
                    return Err(StateError::OtherBase { expected, found }.into());
                }
            }
        }
        self.plan_selected(weights, options)
    }

    /// Makes a plan of the trained adapters for weights that the caller has selected, of whatever base.
    ///
    /// Prefix, presets and calibration of the options are not used.
    ///
    /// # Errors
    /// As [`AdapterState::plan_with`], except for another base.
    pub fn plan_selected(
        &self,
        weights: BTreeMap<String, Weight>,
        options: &mut PlanOptions<'_>,
    ) -> Result<Plan<M::Adapter>, AdapterError> {
        let method = &self.recipe.method;
        // A state has the directions of its weights.
        let in_state =
            |(path, weight): (String, Weight)| (path, weight.with_directions(Directions::InState));
        let weights: BTreeMap<_, _> = weights.into_iter().map(in_state).collect();
        options.calibration = None;
        let bases = weights.clone();
        let needs_svd = method.needs_svd_to_restore();
        let mut plan = plan_weights(needs_svd, weights, options, |path, weight| {
            let adapter = method.init(path, weight)?;
            // Before the next weight's, so that the memory of a wrong description is that of one adapter.
            self.check_shapes(path, &adapter)?;
            Ok(adapter)
        })?;
        self.check(&plan)?;
        for (weight, adapter) in &mut plan.adapters {
            *adapter = map_params(adapter.clone(), |param| {
                let data = self.tensors.get(&method.tensor_name(weight, &param.path))?;
                let values: Vec<f32> = data.iter().collect();
                let old = param.value();
                let data = TensorData::from(values.as_slice()).convert_dtype(old.dtype());
                Some(Tensor::from_data(data, (&old.device(), old.dtype())))
            });
            if let Some(base) = bases.get(weight) {
                *adapter = adapter.clone().rebased(&base.matrix());
            }
        }
        Ok(plan)
    }

    /// Number of adapted weights.
    pub fn num_weights(&self) -> usize {
        self.paths().len()
    }

    /// Paths of the adapted weights.
    pub fn paths(&self) -> BTreeSet<&str> {
        let separator = format!(".{}.", self.recipe.method.name());
        self.tensors.keys().filter_map(|key| Some(key.split_once(&separator)?.0)).collect()
    }

    /// Number of trained values.
    pub fn num_params(&self) -> usize {
        let trained = self.tensors.iter().filter(|(key, _)| self.recipe.method.is_trained(key));
        trained.map(|(_, data)| data.num_elements()).sum()
    }

    /// Sizes of the rotations' Kronecker factors, by the rotated width, which is their product. Rotations in
    /// subspaces have none.
    pub fn factor_sizes(&self) -> BTreeMap<usize, Vec<usize>> {
        let mut rotations: BTreeMap<&str, BTreeMap<usize, usize>> = BTreeMap::new();
        for (key, data) in &self.tensors {
            let Some((rotation, index)) = key.rsplit_once(".factors.") else { continue };
            let (Ok(index), Some(size)) = (index.parse(), data.shape().as_slice().first()) else {
                continue;
            };
            if !self.tensors.contains_key(&format!("{rotation}.basis")) {
                rotations.entry(rotation).or_default().insert(index, *size);
            }
        }
        let sizes = rotations.into_values().map(|sizes| sizes.into_values().collect::<Vec<_>>());
        // The shapes are those of a file, and may be of no width at all.
        let width = |sizes: &[usize]| {
            sizes.iter().try_fold(1, |width: usize, size| width.checked_mul(*size))
        };
        sizes.filter_map(|sizes| Some((width(&sizes)?, sizes))).collect()
    }

    /// Checks the shapes of the tensors that an adapter has.
    fn check_shapes(&self, weight: &str, adapter: &M::Adapter) -> Result<(), StateError> {
        for NamedParam { path, shape, .. } in named_params(adapter) {
            let key = self.recipe.method.tensor_name(weight, &path);
            let Some(data) = self.tensors.get(&key) else {
                return Err(StateError::Keys {
                    missing: 1,
                    missing_example: format!(" (such as {key})"),
                    unknown: 0,
                    unknown_example: String::new(),
                });
            };
            let found = data.shape().as_slice().to_vec();
            if found != shape {
                return Err(StateError::Shape { key, found, expected: shape });
            }
        }
        Ok(())
    }

    /// Checks that the tensors are those of the planned adapters, in name, shape and orthogonality.
    fn check(&self, plan: &Plan<M::Adapter>) -> Result<(), StateError> {
        let method = &self.recipe.method;
        let named = |(weight, adapter): (&String, &M::Adapter)| -> Vec<_> {
            let name = |param: NamedParam| (method.tensor_name(weight, &param.path), param.shape);
            named_params(adapter).into_iter().map(name).collect()
        };
        let mut expected: BTreeMap<_, _> = plan.adapters.iter().flat_map(named).collect();
        let mut unknown = Vec::new();
        for (key, data) in &self.tensors {
            let Some(shape) = expected.remove(key) else {
                unknown.push(key);
                continue;
            };
            if data.shape().as_slice() != shape {
                return Err(StateError::Shape {
                    key: key.clone(),
                    found: data.shape().as_slice().to_vec(),
                    expected: shape,
                });
            }
            if method.geometry(key) == Geometry::Stiefel {
                let deviation = orthogonality_error(data);
                if deviation.is_nan() || deviation > ORTHOGONALITY_TOLERANCE {
                    return Err(StateError::NotOrthogonal { key: key.clone(), deviation });
                }
            }
        }
        if expected.is_empty() && unknown.is_empty() {
            return Ok(());
        }
        let example =
            |key: Option<&String>| key.map(|key| format!(" (such as {key})")).unwrap_or_default();
        Err(StateError::Keys {
            missing: expected.len(),
            missing_example: example(expected.keys().next()),
            unknown: unknown.len(),
            unknown_example: example(unknown.first().copied()),
        })
    }
}

/// `max |QᵀQ - I|` of a matrix `[n, r]` or a stack of them, computed on the host. NaN if an entry is NaN.
fn orthogonality_error(data: &TensorData) -> f32 {
    let axes = data.shape();
    let &[.., n, r] = axes.as_slice() else { return f32::NAN };
    let stack: Vec<f32> = data.iter::<f32>().collect();
    let mut largest = 0f32;
    for q in stack.chunks_exact((n * r).max(1)) {
        for i in 0..r {
            for j in i..r {
                let dot: f32 = q.chunks_exact(r).map(|row| row[i] * row[j]).sum();
                let error = (dot - if i == j { 1.0 } else { 0.0 }).abs();
                // `f32::max` would drop NaN.
                largest = if error.is_nan() { return error } else { largest.max(error) };
            }
        }
    }
    largest
}
