//! The seam between a method and a network: settings in, a checked plan out, then an attachment that
//! cannot fail.

use std::fmt::Debug;

use burn::module::Module;
use burn::tensor::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;
use soda_linalg::{LinalgError, SvdCache};

use crate::attach::Plan;
use crate::error::AdapterError;
use crate::fold::Weight;
use crate::merge::Combine;
use crate::prepare::prepare;
use crate::target::Targets;

/// Where a trainable tensor lives, which decides how an optimizer may move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Geometry {
    /// A flat space: any optimizer.
    Euclidean,
    /// Matrices with orthonormal columns, `QᵀQ = I`: a Riemannian optimizer.
    Stiefel,
}

/// A parameter-efficient method: how one weight becomes a base plus a few trainable numbers.
///
/// Three parts are a method: its settings (this), what it attaches ([`Method::Adapter`]), and a row of a
/// table ([`methods!`](crate::methods)) if it is to be chosen by name.
pub trait Method: Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static {
    /// What it attaches to a weight.
    type Adapter: Adapter;

    /// Name in adapter files and configurations.
    fn name(&self) -> &'static str;

    /// The adapter of one weight (plain device), which changes nothing yet.
    ///
    /// # Errors
    /// Unusable settings, or a weight that cannot be decomposed; `path` names it.
    fn adapter(&self, path: &str, weight: &Weight) -> Result<Self::Adapter, AdapterError>;

    /// Whether an adapter begins with the weight's singular value decomposition. A plan has those ready, many at a
    /// time, which is faster than one by one.
    fn decomposes(&self) -> bool {
        false
    }

    /// Where the trainable tensor with this path lives.
    fn geometry(&self, path: &str) -> Geometry {
        let _ = path;
        Geometry::Euclidean
    }

    /// Prepares an adapter for every targeted weight of `module`, several at once.
    ///
    /// # Errors
    /// See [`Targets::select`] and [`Method::adapter`].
    fn plan<M: Module>(
        &self,
        targets: &Targets,
        module: &M,
    ) -> Result<Plan<Self::Adapter>, AdapterError> {
        self.plan_with(targets, module, None, &mut |_, _| ())
    }

    /// [`Method::plan`] with decompositions from `cache`, where they are there, and into it, where not.
    /// `on_progress` hears how many weights of how many are decomposed, by a method that does that.
    ///
    /// # Errors
    /// Those of [`Method::plan`], and a cache that can be neither read nor written.
    fn plan_with<M: Module>(
        &self,
        targets: &Targets,
        module: &M,
        cache: Option<&SvdCache>,
        on_progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Plan<Self::Adapter>, AdapterError> {
        prepare(self, targets.select(module)?, cache, on_progress)
    }
}

/// What a method attaches to one weight: a burn module of trainable tensors, and a formula.
pub trait Adapter: Module + Sync + 'static {
    /// The adapted weight of the base `w` `[in, out]`, in f32 (f64 where the network is); on the tape
    /// where `w` is.
    fn apply(&self, w: Tensor<2>) -> Tensor<2>;

    /// The same adapter turned down or up: 0 is the base, 1 is itself. Rotations turn along their
    /// geodesic, `Rᵗ = exp(t log R)`; all else goes in proportion. The result is to be applied, not
    /// trained further.
    ///
    /// # Errors
    /// A rotation by half a turn, which has no shortest way back.
    fn at_strength(self, t: f64) -> Result<Self, LinalgError>;

    /// `x apply(w)` for rows `x` `[rows, in]` without forming `apply(w)`, where the method can and that is the
    /// shorter way for so many rows; both in the network's float type.
    fn product(&self, x: &Tensor<2>, w: &Tensor<2>) -> Option<Tensor<2>> {
        let _ = (x, w);
        None
    }

    /// Factors `a` `[in, r]` and `b` `[r, out]` with `apply(w) = w + a b`, where the method is of that form.
    fn low_rank(&self) -> Option<(Tensor<2>, Tensor<2>)> {
        None
    }

    /// One adapter of several with their weights, or `None` where they have no common form; see
    /// [`merge`](crate::merge).
    ///
    /// # Errors
    /// A rotation by half a turn.
    fn combine(parts: Vec<(f64, Self)>, how: Combine) -> Result<Option<Self>, LinalgError> {
        let _ = (parts, how);
        Ok(None)
    }
}
