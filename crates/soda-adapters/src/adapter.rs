//! The trait of what a method attaches to one weight.

use burn::module::Module;
use burn::tensor::Tensor;
use soda_linalg::LinalgError;

use crate::base_weight::BaseWeight;
use crate::rotation_merge::MergeRule;

/// The adapter of one weight: a burn module of trainable tensors, and the formula of the adapted weight.
///
/// Only [`apply`](Self::apply) and [`at_strength`](Self::at_strength) are required. The other methods offer
/// shorter ways to the same result, where a method has one.
pub trait Adapter: Module + Sync + 'static {
    /// Returns the adapted weight `[in, out]` for the weight `w` `[in, out]` of the base.
    ///
    /// `w` is in f32, or in f64 if the network is. The result is on the autodiff graph if `w` or the
    /// parameters are.
    fn apply(&self, w: Tensor<2>) -> Tensor<2>;

    /// Scales the adapter: `t = 0` is the base, `t = 1` is the adapter.
    ///
    /// A rotation moves along its geodesic, `Rᵗ = exp(t log R)`. Everything else is scaled in proportion. The
    /// result can be applied, but not trained further.
    ///
    /// # Errors
    /// A rotation by half a turn has no unique geodesic to the identity.
    fn at_strength(self, t: f64) -> Result<Self, LinalgError>;

    /// Computes `x apply(w)` for rows `x` `[rows, in]` without forming `apply(w)`: `[rows, out]`.
    ///
    /// Returns `None` where the method has no such form, or where the form costs more for so many rows. `x`
    /// and `w` are in the float type of the network.
    fn product(&self, x: &Tensor<2>, w: &BaseWeight) -> Option<Tensor<2>> {
        let _ = (x, w);
        None
    }

    /// Whether the change of the weight depends on the timestep of the sample.
    ///
    /// Only [`product`](Self::product) knows the timestep then, and it never returns `None`.
    /// [`apply`](Self::apply) is the weight at the timestep 0.
    fn depends_on_timestep(&self) -> bool {
        false
    }

    /// Returns factors `a` `[in, r]` and `b` `[r, out]` with `apply(w) = w + a b`, if the adapter has that
    /// form.
    fn low_rank(&self) -> Option<(Tensor<2>, Tensor<2>)> {
        None
    }

    /// Computes again what follows from the base weight `w` `[in, out]` and the parameters, after a state has
    /// replaced the parameters.
    #[must_use]
    fn rebased(self, w: &Tensor<2>) -> Self {
        let _ = w;
        self
    }

    /// Merges weighted adapters of one weight into one adapter, or returns `None` if they have no common
    /// form.
    ///
    /// # Errors
    /// A rotation by half a turn has no logarithm.
    fn merge(weighted: Vec<(f64, Self)>, rule: MergeRule) -> Result<Option<Self>, LinalgError> {
        let _ = (weighted, rule);
        Ok(None)
    }
}
