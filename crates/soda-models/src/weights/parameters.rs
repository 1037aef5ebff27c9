//! The float parameters of a network as they are in memory.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// A float parameter that is initialized.
pub(super) struct StoredParameter {
    pub(super) path: String,
    pub(super) shape: Vec<usize>,
    /// The bytes of an element.
    pub(super) width: usize,
}

impl StoredParameter {
    /// The number of elements.
    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The float parameters of `module` in the order of a traversal.
pub(super) fn stored_parameters<M: Module>(module: &M) -> Vec<StoredParameter> {
    let mut visit = Visit::default();
    module.visit(&mut visit);
    visit.found
}

/// Whether a matrix of this shape is the placeholder of a [`StoredWeight`](soda_kernels::StoredWeight).
pub(super) fn is_placeholder(shape: &[usize]) -> bool {
    shape == [1, 1]
}

#[derive(Default)]
struct Visit {
    path: Vec<String>,
    found: Vec<StoredParameter>,
}

impl ModuleVisitor for Visit {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.base();
        let (shape, width) = (value.dims().to_vec(), value.dtype().size());
        self.found.push(StoredParameter { path: self.path.join("."), shape, width });
    }
}
