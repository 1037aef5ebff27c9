//! Parameters of a module without their rank: what saving, loading and batched optimizers need.
//!
//! burn's visitors are generic over the rank of each parameter, so no closure can be one. These two
//! functions do the generic part once.

use std::sync::{Arc, LazyLock};

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
    value: Arc<LazyLock<Tensor<1>, Flatten>>,
    matrix: Option<Tensor<2>>,
}

type Flatten = Box<dyn FnOnce() -> Tensor<1> + Send>;

impl Leaf {
    fn of<const D: usize>(path: &[String], param: &Param<Tensor<D>>) -> Self {
        let value = param.base();
        let shape = value.dims().to_vec();
        let elements = shape.iter().product::<usize>();
        let matrix = <[usize; 2]>::try_from(&shape[..]).ok();
        let matrix = matrix.map(|shape| value.clone().reshape(shape));
        let flatten: Flatten = Box::new(move || value.reshape([elements]));
        Self {
            path: path.join("."),
            id: param.id,
            shape,
            trainable: param.is_require_grad(),
            value: Arc::new(LazyLock::new(flatten)),
            matrix,
        }
    }

    /// Its stored value (the base, where a reparameterization is attached), `[elements]`.
    ///
    /// It is made flat when it is first asked for. For most that is a view; one that lies in another order than its shape says,
    /// as weights of convolutions and linear layers do on a GPU, is copied then, which nobody should pay for who looks for other
    /// parameters.
    pub fn value(&self) -> Tensor<1> {
        Tensor::clone(&self.value)
    }

    /// [`value`](Self::value) of a matrix in its shape, which is a view of it in whatever order it lies.
    pub fn matrix(&self) -> Option<Tensor<2>> {
        self.matrix.clone()
    }
}

/// Every floating-point parameter of `module`, in the module's order.
pub fn leaves<M: Module>(module: &M) -> Vec<Leaf> {
    let mut collect = Collect { path: Vec::new(), leaves: Vec::new() };
    module.visit(&mut collect);
    collect.leaves
}

/// Replaces values: `update` returns the new one, flat, or `None` to leave the parameter alone.
pub fn map_leaves<M: Module>(module: M, update: impl FnMut(&Leaf) -> Option<Tensor<1>>) -> M {
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
        self.leaves.push(Leaf::of(&self.path, param));
    }
}

struct Update<F> {
    path: Vec<String>,
    update: F,
}

impl<F: FnMut(&Leaf) -> Option<Tensor<1>>> ModuleMapper for Update<F> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let leaf = Leaf::of(&self.path, &param);
        match (self.update)(&leaf) {
            None => param,
            // A new value is a new leaf of the tape: it must ask for its gradient again.
            Some(flat) => param.map(|old| {
                let flat = if old.is_autodiff() {
                    Tensor::from_inner(flat.without_autodiff())
                } else {
                    flat
                };
                flat.reshape(old.dims()).set_require_grad(leaf.trainable)
            }),
        }
    }
}
