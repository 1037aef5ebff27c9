//! Gradients of an adapted module's parameters, off the tape and apart from the module.
//!
//! burn's own container belongs to one backward pass. Batches that are computed in parts, on several
//! threads or one after the other, need gradients that can be added.

use std::collections::BTreeMap;
use std::ops::Add;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};
use soda_adapters::Component;

/// One gradient for each parameter that a loss reached, by path, flat.
#[derive(Clone, Debug, Default)]
pub struct AdapterGradients(pub(crate) BTreeMap<String, Tensor<1>>);

impl AdapterGradients {
    /// Takes the gradients of `module`'s parameters out of a backward pass through it.
    pub fn collect<N: Module>(module: &N, grads: &Gradients) -> Self {
        Self::visited(grads, |collect| module.visit(collect))
    }

    /// Those of a module that has the network as its field `component`.
    #[must_use]
    pub fn within(self, component: Component) -> Self {
        Self(self.0.into_iter().map(|(path, grad)| (component.path(&path), grad)).collect())
    }

    /// Takes the gradients of what `visit` shows out of a backward pass.
    pub(crate) fn visited(grads: &Gradients, visit: impl FnOnce(&mut Collect<'_>)) -> Self {
        let mut collect = Collect { path: Vec::new(), grads, found: BTreeMap::new() };
        visit(&mut collect);
        Self(collect.found)
    }
}

/// Gradients of the sum of two losses.
impl Add for AdapterGradients {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        for (path, grad) in other.0 {
            let sum = match self.0.remove(&path) {
                Some(own) => own + grad,
                None => grad,
            };
            self.0.insert(path, sum);
        }
        self
    }
}

/// Looks parameters' gradients up.
pub(crate) struct Collect<'a> {
    path: Vec<String>,
    grads: &'a Gradients,
    found: BTreeMap<String, Tensor<1>>,
}

impl ModuleVisitor for Collect<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // No gradient: a frozen weight, or one the loss did not reach.
        if let Some(grad) = param.base().grad(self.grads) {
            let elements = grad.shape().num_elements();
            self.found.insert(self.path.join("."), grad.reshape([elements]));
        }
    }
}
