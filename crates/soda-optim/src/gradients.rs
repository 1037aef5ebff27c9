//! Gradients of an adapted module's parameters, off the tape and by path.
//!
//! burn's [`Gradients`] belong to one backward pass. A batch that is computed in several parts, one after the
//! other or on several threads, needs gradients that can be added.

use std::collections::BTreeMap;
use std::ops::Add;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};

/// One flat gradient `[elements]` for each parameter that a loss reached, by parameter path.
#[derive(Clone, Debug, Default)]
pub struct AdapterGradients(BTreeMap<String, Tensor<1>>);

impl AdapterGradients {
    /// Reads the gradients of `module`'s parameters from a backward pass through the module.
    pub fn collect<N: Module>(module: &N, grads: &Gradients) -> Self {
        Self::collect_with(grads, |collector| module.visit(collector))
    }

    /// Reads the gradients of the parameters that `visit` shows to the collector.
    pub fn collect_with(grads: &Gradients, visit: impl FnOnce(&mut GradientCollector<'_>)) -> Self {
        let mut collector = GradientCollector { path: Vec::new(), grads, found: BTreeMap::new() };
        visit(&mut collector);
        Self(collector.found)
    }

    /// Prepends `prefix` and a dot to every path, for a module that holds this one in the field `prefix`.
    #[must_use]
    pub fn with_prefix(self, prefix: &str) -> Self {
        let prefixed = self.0.into_iter().map(|(path, grad)| (format!("{prefix}.{path}"), grad));
        Self(prefixed.collect())
    }

    /// The gradient of the parameter at `path`, `[elements]`, if the loss reached it.
    pub fn get(&self, path: &str) -> Option<&Tensor<1>> {
        self.0.get(path)
    }

    /// Paths and gradients, in the order of the paths.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<1>)> {
        self.0.iter().map(|(path, grad)| (path.as_str(), grad))
    }

    /// Whether the loss reached no parameter.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes and returns the gradient of the parameter at `path`.
    pub(crate) fn take(&mut self, path: &str) -> Option<Tensor<1>> {
        self.0.remove(path)
    }
}

/// The gradients of the sum of two losses.
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

/// A module visitor that looks up the gradient of each parameter.
pub struct GradientCollector<'a> {
    path: Vec<String>,
    grads: &'a Gradients,
    found: BTreeMap<String, Tensor<1>>,
}

impl ModuleVisitor for GradientCollector<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // A frozen weight and a parameter that the loss did not reach have no gradient.
        if let Some(grad) = param.base().grad(self.grads) {
            let elements = grad.shape().num_elements();
            self.found.insert(self.path.join("."), grad.reshape([elements]));
        }
    }
}
