//! burn's optimizer interface for the update rules of this module.

use burn::config::Config;
use burn::optim::{LearningRate, Optimizer, RecordState};
use burn::tensor::{Device, Tensor};

use crate::batched::BatchLayout;

/// The settings of an optimizer on the Stiefel manifold, and its update of a batch `[b, n, m]`, `n >= m`.
///
/// The trait is sealed: its argument types are not public, and the optimizers of this module implement it.
pub trait UpdateRule: Config + Clone + Send + Sync + 'static {
    /// The state of a parameter of rank `D`, between steps.
    type State<const D: usize>: RecordState + Clone;

    /// Returns the next points and state, from the points `x` and the Euclidean gradients `g`.
    fn update<const D: usize>(
        &self,
        lr: f64,
        layout: &BatchLayout<D>,
        x: Tensor<3>,
        g: Tensor<3>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<3>, Self::State<D>);

    /// Moves a state to `device`.
    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D>;
}

/// A burn `Optimizer` of parameters with orthonormal columns (rows, if wide), with the update rule `C`.
///
/// `ModuleOptimizer::from` applies it to all parameters of a module. A parameter without entries does not
/// change.
#[derive(Clone, Debug)]
pub struct StiefelOptimizer<C> {
    config: C,
}

impl<C: UpdateRule> StiefelOptimizer<C> {
    /// Returns the optimizer with the settings `config`.
    pub fn new(config: &C) -> Self {
        Self { config: config.clone() }
    }
}

impl<C: UpdateRule> Optimizer for StiefelOptimizer<C> {
    type State<const D: usize> = C::State<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let layout = BatchLayout::from_tensor(&tensor);
        if layout.is_empty() {
            return (tensor, state);
        }
        let (x, g) = (layout.flatten(tensor), layout.flatten(grad));
        let (x, state) = self.config.update(lr, &layout, x, g, state);
        (layout.unflatten(x), Some(state))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        C::to_device(state, device)
    }
}
