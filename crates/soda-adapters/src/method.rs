//! The trait of a method: settings that make an adapter for each weight.

use std::fmt::Debug;

use burn::module::Module;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::adapter::Adapter;
use crate::directions::{Calibration, CalibrationRequest};
use crate::error::AdapterError;
use crate::plan::{Plan, PlanOptions, plan_weights};
use crate::probe::Probe;
use crate::targets::Targets;
use crate::weight::Weight;

/// The set that a trainable tensor lives in, which decides how an optimizer may move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Geometry {
    /// Euclidean space: any optimizer.
    Euclidean,
    /// The Stiefel manifold of matrices with `QᵀQ = I`: a Riemannian optimizer.
    Stiefel,
}

/// A parameter-efficient method: the settings by which a weight gets an adapter.
///
/// A new method consists of its settings (this trait), its adapter ([`Method::Adapter`]), and a row of a
/// table made with [`methods!`](crate::methods) if it is chosen by name. The example `new_method` adds one.
pub trait Method: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The adapter of one weight.
    type Adapter: Adapter;

    /// Name of the method in adapter files and configurations.
    fn name(&self) -> &'static str;

    /// Makes the initial adapter of one weight; `path` seeds its random values.
    ///
    /// The initial adapter leaves the weight as it is. `weight` is on a plain device.
    ///
    /// # Errors
    /// [`AdapterError::Config`] for unusable settings, [`AdapterError::Decomposition`] for a weight that
    /// cannot be decomposed.
    fn init(&self, path: &str, weight: &Weight) -> Result<Self::Adapter, AdapterError>;

    /// Whether [`init`](Self::init) uses the singular value decomposition of the weight.
    ///
    /// A plan decomposes such weights many at a time, which is faster than one by one.
    fn needs_svd(&self) -> bool {
        false
    }

    /// Whether a plan of a trained state uses the decomposition too. The state may have what `init` takes
    /// from it.
    fn needs_svd_to_restore(&self) -> bool {
        self.needs_svd()
    }

    /// What has to be measured on training data before [`init`](Self::init); `None` if the weight suffices.
    fn calibration(&self) -> Option<CalibrationRequest> {
        None
    }

    /// The settings with what they leave to the calibration of a network, such as the rank of each weight.
    ///
    /// # Errors
    /// Settings that cannot be met.
    fn calibrated(&self, calibration: &Calibration) -> Result<Self, AdapterError> {
        let _ = calibration;
        Ok(self.clone())
    }

    /// Makes the probe of one weight; `None` for a method without [`calibration`](Self::calibration).
    ///
    /// # Errors
    /// As [`Method::init`].
    fn probe(&self, path: &str, weight: &Weight) -> Result<Option<Probe>, AdapterError> {
        let _ = (path, weight);
        Ok(None)
    }

    /// Whether a parameter of an adapter is trained. The others are stored beside the trained ones.
    fn is_trained(&self, parameter: &str) -> bool {
        let _ = parameter;
        true
    }

    /// Whether a trained adapter has its meaning on the base that it was trained on alone.
    ///
    /// A change that is added to a weight, as LoRA's, can be added to the weight of a fine-tuned base too.
    /// The default is `true`.
    fn needs_its_base(&self) -> bool {
        true
    }

    /// Whether the adapters [depend on the timestep](crate::Adapter::depends_on_timestep), so that no weight
    /// can stand for them.
    fn depends_on_timestep(&self) -> bool {
        false
    }

    /// The geometry of the trainable tensor at this path of a network or of an adapter.
    fn geometry(&self, path: &str) -> Geometry {
        let _ = path;
        Geometry::Euclidean
    }

    /// The name of an adapter's tensor in a state: `<weight>.<method>.<parameter>`.
    fn tensor_name(&self, weight: &str, parameter: &str) -> String {
        format!("{weight}.{}.{parameter}", self.name())
    }

    /// Makes the initial adapters of all targeted weights of `module`.
    ///
    /// # Errors
    /// As [`Targets::select`] and [`Method::init`].
    fn plan<M: Module>(
        &self,
        targets: &Targets,
        module: &M,
    ) -> Result<Plan<Self::Adapter>, AdapterError> {
        self.plan_with(targets, module, &mut PlanOptions::default())
    }

    /// [`Method::plan`] with a part of the module, target presets, a cache of decompositions and progress.
    ///
    /// # Errors
    /// As [`Method::plan`], and a cache that cannot be read or written.
    fn plan_with<M: Module>(
        &self,
        targets: &Targets,
        module: &M,
        options: &mut PlanOptions<'_>,
    ) -> Result<Plan<Self::Adapter>, AdapterError> {
        let weights = targets.select_within(module, options.prefix, options.presets)?;
        plan_weights(self.needs_svd(), weights, options, |path, weight| self.init(path, weight))
    }

    /// Makes the probes of all targeted weights of `module`; none for a method without
    /// [`calibration`](Self::calibration).
    ///
    /// # Errors
    /// As [`Method::plan_with`].
    fn plan_probes<M: Module>(
        &self,
        targets: &Targets,
        module: &M,
        options: &mut PlanOptions<'_>,
    ) -> Result<Plan<Probe>, AdapterError> {
        let Some(request) = self.calibration() else { return Ok(Plan::default()) };
        let weights = targets.select_within(module, options.prefix, options.presets)?;
        plan_weights(request.needs_svd, weights, options, |path, weight| {
            let none = AdapterError::Config {
                method: self.name(),
                reason: "a method with a calibration makes a probe of every weight",
            };
            self.probe(path, weight)?.ok_or(none)
        })
    }
}
