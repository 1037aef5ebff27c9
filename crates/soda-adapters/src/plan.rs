//! Plans: adapters that were made for the weights of a network, ready to be attached.
//!
//! Planning is the step that can fail and that takes long, since it decomposes weights. Attaching a plan
//! cannot fail.

use std::collections::BTreeMap;
use std::error::Error;

use burn::tensor::{Device, FloatDType};
use rayon::prelude::*;
use soda_linalg::{LinalgError, Svd, SvdCache};

use crate::adapter::Adapter;
use crate::directions::Calibration;
use crate::error::AdapterError;
use crate::rotation_merge::MergeRule;
use crate::targets::TargetPreset;
use crate::weight::{Weight, WeightSvd, decompose_batch, is_exact};

/// Number of weights that are decomposed together: enough to fill a GPU, and far below a copy of a large
/// model.
const SVD_BATCH: usize = 64;

/// Options of planning.
///
/// ```
/// use soda_adapters::PlanOptions;
///
/// let mut show = |done, total| assert!(done <= total);
/// let options = PlanOptions { on_progress: Some(&mut show), ..PlanOptions::default() };
/// assert_eq!(options.prefix, "");
/// ```
pub struct PlanOptions<'a> {
    /// Prefix of the parameter paths to plan for, such as `unet.`. Targets and plans have paths without it.
    pub prefix: &'a str,
    /// Presets that targets may name.
    pub presets: &'a [TargetPreset],
    /// Cache of decompositions, for methods with [`needs_svd`](crate::Method::needs_svd).
    pub cache: Option<&'a SvdCache>,
    /// The float type in which the network will compute, if its weights are in another until their adapters
    /// are made.
    pub network_dtype: Option<FloatDType>,
    /// The directions of the weights, for methods with a [`calibration`](crate::Method::calibration).
    pub calibration: Option<&'a Calibration>,
    /// Other processes that make the same plan, and decompose a part of the weights. A GPU with a vendor's
    /// library decomposes all of them itself, which is faster than sending the factors.
    pub division: Option<&'a dyn DivideDecompositions>,
    /// Called with the number of decomposed weights and of all weights, by a method that decomposes.
    pub on_progress: Option<&'a mut dyn FnMut(usize, usize)>,
    /// Called if the base is another than that of a trained state. The plan is then made all the same.
    ///
    /// A method that [needs its base](crate::Method::needs_its_base) is an error in any case, and any method
    /// is without this function.
    pub on_other_base: Option<&'a mut dyn FnMut()>,
}

impl Default for PlanOptions<'_> {
    fn default() -> Self {
        Self {
            prefix: "",
            presets: TargetPreset::GENERIC,
            cache: None,
            network_dtype: None,
            calibration: None,
            division: None,
            on_progress: None,
            on_other_base: None,
        }
    }
}

/// Processes that make one plan and divide its decompositions.
pub trait DivideDecompositions {
    /// Whether this process decomposes the matrix with this number in a list.
    fn owns(&self, item: usize) -> bool;

    /// The decompositions of all matrices of a list, on `device`. `shapes` are those of all matrices, and
    /// `own` the decompositions of the matrices that this process [owns](Self::owns), in their order.
    ///
    /// # Errors
    /// A process that has gone, or that sent something else.
    fn exchange(
        &self,
        shapes: &[[usize; 2]],
        device: &Device,
        own: Vec<Svd>,
    ) -> Result<Vec<Svd>, Box<dyn Error + Send + Sync>>;
}

/// Adapters by the path of their weight, checked against a network.
///
/// [`Method::plan`](crate::Method::plan) makes initial adapters,
/// [`AdapterState::plan`](crate::AdapterState::plan) makes trained ones, and [`Plan::attach`] puts them on
/// the network.
#[derive(Clone, Debug)]
pub struct Plan<A> {
    /// Adapters by path of the weight.
    pub(crate) adapters: BTreeMap<String, A>,
}

impl<A> Default for Plan<A> {
    fn default() -> Self {
        Self { adapters: BTreeMap::new() }
    }
}

impl<A: Adapter> Plan<A> {
    /// Scales every adapter to strength `t`, see [`Adapter::at_strength`].
    ///
    /// # Errors
    /// [`AdapterError::Decomposition`] for a rotation without a logarithm.
    pub fn at_strength(self, t: f64) -> Result<Self, AdapterError> {
        if t == 1.0 {
            return Ok(self);
        }
        let scale = |(path, adapter): (String, A)| match adapter.at_strength(t) {
            Ok(adapter) => Ok((path, adapter)),
            Err(source) => Err(AdapterError::Decomposition { path, source }),
        };
        Ok(Self { adapters: self.adapters.into_iter().map(scale).collect::<Result<_, _>>()? })
    }

    /// Prepends `prefix` to every path, for a module that has the planned network as a field: `unet.`.
    #[must_use]
    pub fn with_prefix(self, prefix: &str) -> Self {
        let rename = |(path, adapter): (String, A)| (format!("{prefix}{path}"), adapter);
        Self { adapters: self.adapters.into_iter().map(rename).collect() }
    }

    /// Adds the adapters of `other`. On a weight that both adapt, the adapter of `other` replaces the one
    /// here.
    pub fn extend(&mut self, other: Self) {
        self.adapters.extend(other.adapters);
    }

    /// Merges weighted plans of one method on one base into a plan, weight by weight.
    ///
    /// A weight that only some plans adapt is merged from these.
    ///
    /// # Errors
    /// [`AdapterError::NoCommonForm`] for adapters of different methods, factor sizes or spectral bases, and
    /// for a method that has no merged form. [`AdapterError::Decomposition`] for a rotation by half a turn.
    pub fn merge(
        plans: impl IntoIterator<Item = (Self, f64)>,
        rule: MergeRule,
    ) -> Result<Self, AdapterError> {
        let mut by_path: BTreeMap<String, Vec<(f64, A)>> = BTreeMap::new();
        for (plan, weight) in plans {
            for (path, adapter) in plan.adapters {
                by_path.entry(path).or_default().push((weight, adapter));
            }
        }
        let merge = |(path, weighted)| match A::merge(weighted, rule) {
            Ok(Some(adapter)) => Ok((path, adapter)),
            Ok(None) => Err(AdapterError::NoCommonForm { path }),
            Err(source) => Err(AdapterError::Decomposition { path, source }),
        };
        Ok(Self { adapters: by_path.into_iter().map(merge).collect::<Result<_, _>>()? })
    }

    /// Paths of the adapted weights, in ascending order.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &str> {
        self.adapters.keys().map(String::as_str)
    }

    /// The adapters by path of their weight.
    pub fn adapters(&self) -> &BTreeMap<String, A> {
        &self.adapters
    }
}

/// Makes an adapter with `init` for each selected weight, with decompositions ready where `needs_svd`.
pub(crate) fn plan_weights<A: Adapter>(
    needs_svd: bool,
    selected: BTreeMap<String, Weight>,
    options: &mut PlanOptions<'_>,
    init: impl Fn(&str, &Weight) -> Result<A, AdapterError> + Sync,
) -> Result<Plan<A>, AdapterError> {
    let described = |(path, mut weight): (String, Weight)| {
        if let Some(calibration) = options.calibration {
            weight = weight.with_directions(calibration.get(&path));
        }
        if let Some(dtype) = options.network_dtype {
            weight = weight.in_network_of(dtype.into());
        }
        (path, weight)
    };
    let mut selected: Vec<_> = selected.into_iter().map(described).collect();
    if !needs_svd {
        return Ok(Plan { adapters: init_all(selected, &init)? });
    }
    let total = selected.len();
    let mut adapters = BTreeMap::new();
    let on_device = selected.iter().find(|(_, weight)| weight.has_vendor_blas());
    let on_device = on_device.map(|(_, weight)| weight.device());
    // A GPU decomposes matrices of one shape as a batch.
    selected.sort_by_key(|(_, weight)| weight.dims());
    while !selected.is_empty() {
        let later = selected.split_off(SVD_BATCH.min(selected.len()));
        let batch = std::mem::replace(&mut selected, later);
        adapters.extend(init_all(with_decompositions(batch, options)?, &init)?);
        if let Some(on_progress) = &mut options.on_progress {
            on_progress(adapters.len(), total);
        }
    }
    // The batches of decompositions are far larger than anything in a training step: return their memory.
    if let Some(device) = on_device {
        device.memory_cleanup();
    }
    Ok(Plan { adapters })
}

/// Decomposes the weights of a batch and stores each decomposition in its weight.
fn with_decompositions(
    batch: Vec<(String, Weight)>,
    options: &PlanOptions<'_>,
) -> Result<Vec<(String, Weight)>, AdapterError> {
    let weights: Vec<_> = batch.iter().map(|(_, weight)| weight).collect();
    let on_host = !weights.iter().any(|weight| weight.has_vendor_blas());
    if let Some(division) = options.division.filter(|_| on_host) {
        return with_divided_decompositions(batch, options.cache, division);
    }
    let found = decompose_batch(&weights, options.cache);
    let store = |((path, weight), svd): ((String, Weight), Result<_, LinalgError>)| match svd {
        Ok(svd) => Ok((path, weight.with_svd(svd))),
        Err(source) => Err(AdapterError::Decomposition { path, source }),
    };
    batch.into_iter().zip(found).map(store).collect()
}

/// Decomposes this process's weights of a batch, and stores the decompositions of all in their weights.
fn with_divided_decompositions(
    batch: Vec<(String, Weight)>,
    cache: Option<&SvdCache>,
    division: &dyn DivideDecompositions,
) -> Result<Vec<(String, Weight)>, AdapterError> {
    let Some((_, first)) = batch.first() else { return Ok(batch) };
    let device = first.device();
    let own: Vec<_> = batch
        .iter()
        .enumerate()
        .filter(|(item, _)| division.owns(*item))
        .map(|(_, own)| own)
        .collect();
    let weights: Vec<_> = own.iter().map(|(_, weight)| weight).collect();
    let found = decompose_batch(&weights, cache).into_iter().zip(&own);
    let found = found.map(|(found, (path, _))| {
        let found = found.map(|found| found.svd);
        found.map_err(|source| AdapterError::Decomposition { path: path.clone(), source })
    });
    let found = found.collect::<Result<_, _>>()?;
    let shapes: Vec<_> = batch.iter().map(|(_, weight)| weight.dims()).collect();
    let all = division.exchange(&shapes, &device, found).map_err(AdapterError::Divided)?;
    let exact = is_exact(&batch.iter().map(|(_, weight)| weight).collect::<Vec<_>>());
    let store = |((path, weight), svd): ((String, Weight), Svd)| {
        (path, weight.with_svd(WeightSvd { svd, exact }))
    };
    Ok(batch.into_iter().zip(all).map(store).collect())
}

/// Makes the adapters of `weights`, in parallel on a CPU.
fn init_all<A: Adapter>(
    weights: Vec<(String, Weight)>,
    init: &(impl Fn(&str, &Weight) -> Result<A, AdapterError> + Sync),
) -> Result<BTreeMap<String, A>, AdapterError> {
    let init = |(path, weight): (String, Weight)| {
        let adapter = init(&path, &weight)?;
        Ok((path, adapter))
    };
    // A tensor belongs to the queue of the thread that makes it, and a CUDA graph is captured from one queue.
    if weights.iter().any(|(_, weight)| weight.has_vendor_blas()) {
        return weights.into_iter().map(init).collect();
    }
    weights.into_par_iter().map(init).collect()
}
