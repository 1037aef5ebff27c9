//! Adam's moments with one second moment a matrix, so that a rotation of the gradient rotates the
//! direction with it.

use burn::optim::RecordState;
use burn::tensor::{Device, Tensor};

use crate::stack::Stack;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments {
    pub(crate) beta_1: f64,
    pub(crate) beta_2: f64,
    pub(crate) epsilon: f64,
}

/// The moments of [`super::RiemannianAdam`] and [`super::Pogo`] for a parameter `[..., n, m]`.
#[derive(Clone, Debug, RecordState)]
pub struct MomentsState<const D: usize> {
    /// Steps taken.
    pub time: usize,
    /// The mean gradient, shaped as the parameter.
    pub moment: Tensor<D>,
    /// The mean of its squared norm, `[..., 1, 1]`.
    pub square: Tensor<D>,
}

impl Moments {
    /// The direction `M̂ / (√p̂ + ε)`, `[b, n, m]`, for the gradient `g`.
    pub(crate) fn step<const D: usize>(
        self,
        stack: &Stack<D>,
        g: Tensor<3>,
        state: Option<MomentsState<D>>,
    ) -> (Tensor<3>, MomentsState<D>) {
        let norm = g.clone().square().sum_dim(2).sum_dim(1).mul_scalar(1.0 - self.beta_2);
        let g = g.mul_scalar(1.0 - self.beta_1);
        let (time, moment, square) = match state {
            None => (1, g, norm),
            Some(state) => {
                let moment = stack.fold(state.moment).mul_scalar(self.beta_1) + g;
                let square = state.square.reshape([stack.batch, 1, 1]);
                (state.time + 1, moment, square.mul_scalar(self.beta_2) + norm)
            }
        };
        let correction_1 = 1.0 - self.beta_1.powf(time as f64);
        let correction_2 = 1.0 - self.beta_2.powf(time as f64);
        let root = square.clone().div_scalar(correction_2).sqrt().add_scalar(self.epsilon);
        let direction = moment.clone().div_scalar(correction_1) / root;
        let state = MomentsState {
            time,
            moment: stack.unfold(moment),
            square: stack.unfold_scalar(square),
        };
        (direction, state)
    }
}

impl<const D: usize> MomentsState<D> {
    pub(crate) fn moved_to(mut self, device: &Device) -> Self {
        self.moment = self.moment.to_device(device);
        self.square = self.square.to_device(device);
        self
    }
}
