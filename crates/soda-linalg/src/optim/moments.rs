//! Adam's moments with one second moment for each matrix, so that the direction rotates with the gradient.

use burn::optim::RecordState;
use burn::tensor::{Device, Tensor};

use crate::batched::BatchLayout;

#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    pub(super) beta_1: f64,
    pub(super) beta_2: f64,
    pub(super) epsilon: f64,
}

/// The state of [`RiemannianAdam`](super::RiemannianAdam) and [`Pogo`](super::Pogo) for a parameter
/// `[..., n, m]`.
///
/// The names of the fields are keys of burn's records.
#[derive(Clone, Debug, RecordState)]
pub struct MomentsState<const D: usize> {
    /// The number of steps taken.
    pub time: usize,
    /// The running mean of the gradient, in the shape of the parameter.
    pub moment: Tensor<D>,
    /// The running mean of the gradient's squared norm, `[..., 1, 1]`.
    pub square: Tensor<D>,
}

impl Moments {
    /// The direction `M̂ / (√p̂ + ε)`, `[b, n, m]`, for the gradient `g`, and the next state.
    pub(super) fn step<const D: usize>(
        self,
        layout: &BatchLayout<D>,
        g: Tensor<3>,
        state: Option<MomentsState<D>>,
    ) -> (Tensor<3>, MomentsState<D>) {
        let norm = g.clone().square().sum_dim(2).sum_dim(1).mul_scalar(1.0 - self.beta_2);
        let g = g.mul_scalar(1.0 - self.beta_1);
        let (time, moment, square) = match state {
            None => (1, g, norm),
            Some(state) => {
                let moment = layout.flatten(state.moment).mul_scalar(self.beta_1) + g;
                let square = state.square.reshape([layout.batch, 1, 1]);
                (state.time + 1, moment, square.mul_scalar(self.beta_2) + norm)
            }
        };
        let correction_1 = 1.0 - self.beta_1.powf(time as f64);
        let correction_2 = 1.0 - self.beta_2.powf(time as f64);
        let root = square.clone().div_scalar(correction_2).sqrt().add_scalar(self.epsilon);
        let direction = moment.clone().div_scalar(correction_1) / root;
        let state = MomentsState {
            time,
            moment: layout.unflatten(moment),
            square: layout.unflatten_scalar(square),
        };
        (direction, state)
    }
}

impl<const D: usize> MomentsState<D> {
    pub(super) fn moved_to(mut self, device: &Device) -> Self {
        self.moment = self.moment.to_device(device);
        self.square = self.square.to_device(device);
        self
    }
}
