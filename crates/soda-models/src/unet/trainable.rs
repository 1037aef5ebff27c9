//! A visitor that finds trainable parameters.

use burn::module::{ModuleVisitor, Param};
use burn::tensor::Tensor;

/// Whether a visited parameter requires a gradient.
pub(crate) struct Trainable(pub(crate) bool);

impl ModuleVisitor for Trainable {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0 |= param.is_require_grad();
    }
}
