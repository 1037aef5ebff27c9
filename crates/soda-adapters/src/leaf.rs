//! Parameters of a module without their rank: what saving, loading and batched optimizers need.
//!
//! burn's visitors are generic over the rank of each parameter, so no closure can be one. These two
//! functions do the generic part once; a flattened view is free on every backend.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

/// One floating-point parameter, seen flat.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Path in the module, dot separated, as in `attn1.to_q.weight.soda.spectrum.delta`.
    pub path: String,
    /// The parameter's identity, the key of its gradient.
    pub id: ParamId,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether training changes it.
    pub trainable: bool,
    /// Its stored value (the base, where a reparameterization is attached), `[elements]`.
    pub value: Tensor<1>,
}

/// Every floating-point parameter of `module`, in the module's order.
pub fn leaves<M: Module>(module: &M) -> Vec<Leaf> {
    let mut collect = Collect { path: Vec::new(), leaves: Vec::new() };
    module.visit(&mut collect);
    collect.leaves
}

/// Replaces values: `update` gets path, identity and flat value, and returns the new flat value, or
/// `None` to leave the parameter alone.
pub fn map_leaves<M: Module>(
    module: M,
    update: impl FnMut(&str, ParamId, Tensor<1>) -> Option<Tensor<1>>,
) -> M {
    module.map(&mut Update { path: Vec::new(), update })
}

struct Collect {
    path: Vec<String>,
    leaves: Vec<Leaf>,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.base();
        let dims = value.dims();
        self.leaves.push(Leaf {
            path: self.path.join("."),
            id: param.id,
            shape: dims.to_vec(),
            trainable: param.is_require_grad(),
            value: value.reshape([dims.iter().product::<usize>()]),
        });
    }
}

struct Update<F> {
    path: Vec<String>,
    update: F,
}

impl<F: FnMut(&str, ParamId, Tensor<1>) -> Option<Tensor<1>>> ModuleMapper for Update<F> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let value = param.base();
        let dims = value.dims();
        let trainable = param.is_require_grad();
        let flat = value.reshape([dims.iter().product::<usize>()]);
        match (self.update)(&self.path.join("."), param.id, flat) {
            None => param,
            // A new value is a new leaf of the tape: it must ask for its gradient again.
            Some(flat) => param.map(|old| {
                let flat = if old.is_autodiff() {
                    Tensor::from_inner(flat.without_autodiff())
                } else {
                    flat
                };
                flat.reshape(dims).set_require_grad(trainable)
            }),
        }
    }
}
