//! What the optimizers have in common: any parameter as a stack of tall matrices, and burn's interface.

use burn::config::Config;
use burn::optim::{LearningRate, Optimizer, RecordState};
use burn::tensor::{Device, Tensor};

use crate::stack::Stack;

/// The settings of one optimizer, and how a stack `[b, n, m]`, `n >= m`, steps under them: what tells the
/// optimizers of this module apart.
pub trait Rule: Config + Clone + Send + Sync + 'static {
    /// What it remembers of a parameter of rank `D`.
    type State<const D: usize>: RecordState + Clone;

    /// From the points `x` under the gradients `g` of the whole space to the next points.
    fn advance<const D: usize>(
        &self,
        lr: f64,
        stack: &Stack<D>,
        x: Tensor<3>,
        g: Tensor<3>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<3>, Self::State<D>);

    /// Moves a state.
    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D>;
}

/// A burn `Optimizer` of parameters with orthonormal columns (rows, if wide), with the settings `C`;
/// `ModuleOptimizer::from` makes it one for all of a module's parameters.
#[derive(Clone, Debug)]
pub struct OnStiefel<C> {
    config: C,
}

impl<C: Rule> OnStiefel<C> {
    /// The optimizer with these settings.
    pub fn new(config: &C) -> Self {
        Self { config: config.clone() }
    }
}

impl<C: Rule> Optimizer for OnStiefel<C> {
    type State<const D: usize> = C::State<D>;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        tensor: Tensor<D>,
        grad: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let stack = Stack::of(&tensor);
        if stack.is_empty() {
            return (tensor, state);
        }
        let (x, g) = (stack.fold(tensor), stack.fold(grad));
        let (x, state) = self.config.advance(lr, &stack, x, g, state);
        (stack.unfold(x), Some(state))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        C::to_device(state, device)
    }
}
