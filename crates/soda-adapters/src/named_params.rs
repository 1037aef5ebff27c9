//! The parameters of a module by name, as `named_parameters` of PyTorch, whatever their rank.
//!
//! A visitor of burn is generic over the rank of each parameter, and a closure cannot be. [`named_params`]
//! and [`map_params`] visit the parameters once and give each as a flat tensor.

use std::sync::{Arc, LazyLock};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use rayon::prelude::*;
use soda_kernels::has_vendor_blas;

/// The path segment between a weight and the tensors of its adapter, as in `to_q.weight.adapter.a`.
pub(crate) const ADAPTER_SEGMENT: &str = "adapter";

/// One floating-point parameter of a module.
#[derive(Clone, Debug)]
pub struct NamedParam {
    /// Path in the module, separated by dots, such as `attn1.to_q.weight.adapter.spectrum.delta`.
    pub path: String,
    /// The identity of the parameter, which is the key of its gradient.
    pub id: ParamId,
    /// Shape of the parameter.
    pub shape: Vec<usize>,
    /// Whether the parameter requires a gradient. burn says so for modules on an autodiff device only.
    pub trainable: bool,
    flat: Arc<LazyLock<Tensor<1>, Flatten>>,
    matrix: Option<Tensor<2>>,
}

type Flatten = Box<dyn FnOnce() -> Tensor<1> + Send>;

impl NamedParam {
    fn from_param<const D: usize>(path: &[String], param: &Param<Tensor<D>>) -> Self {
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
            flat: Arc::new(LazyLock::new(flatten)),
            matrix,
        }
    }

    /// The stored value, `[elements]`. Where a reparameterization is attached, the stored value is that of
    /// the base.
    ///
    /// The first call reshapes the value. The reshape copies a value whose memory order is not that of its
    /// shape, as of the weights of linear layers and convolutions on a GPU.
    pub fn value(&self) -> Tensor<1> {
        Tensor::clone(&self.flat)
    }

    /// The stored value of a parameter of rank 2 in its own shape and memory order; `None` for another rank.
    pub fn matrix(&self) -> Option<Tensor<2>> {
        self.matrix.clone()
    }
}

/// Returns every floating-point parameter of `module`, in the order of the module's fields.
///
/// ```
/// use burn::{nn::LinearConfig, tensor::Device};
///
/// let layer = LinearConfig::new(12, 8).init(&Device::default());
/// let params = soda_adapters::named_params(&layer);
/// assert_eq!(params[0].path, "weight");
/// assert_eq!(params[0].shape, [12, 8]);
/// ```
pub fn named_params<M: Module>(module: &M) -> Vec<NamedParam> {
    let mut collect = Collect { path: Vec::new(), params: Vec::new() };
    module.visit(&mut collect);
    collect.params
}

/// Applies `read` to every floating-point parameter of `module`, in parallel on a CPU. The results are in the
/// order of [`named_params`].
///
/// On a GPU one thread reads: each has a queue of its own with its own memory pools.
pub fn read_params<M: Module, T: Send>(
    module: &M,
    read: impl Fn(NamedParam) -> T + Sync + Send,
) -> Vec<T> {
    let params = named_params(module);
    match params.first().is_some_and(|param| has_vendor_blas(&param.value())) {
        true => params.into_iter().map(read).collect(),
        false => params.into_par_iter().map(read).collect(),
    }
}

/// Replaces values of parameters. `update` returns the new value, `[elements]`, or `None` to keep the
/// parameter.
///
/// A replaced parameter keeps its identity, and requires a gradient if it did before.
pub fn map_params<M: Module>(module: M, update: impl FnMut(&NamedParam) -> Option<Tensor<1>>) -> M {
    module.map(&mut Update { path: Vec::new(), update })
}

struct Collect {
    path: Vec<String>,
    params: Vec<NamedParam>,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.params.push(NamedParam::from_param(&self.path, param));
    }
}

struct Update<F> {
    path: Vec<String>,
    update: F,
}

impl<F: FnMut(&NamedParam) -> Option<Tensor<1>>> ModuleMapper for Update<F> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let named = NamedParam::from_param(&self.path, &param);
        match (self.update)(&named) {
            None => param,
            // A new value starts a new autodiff graph, so it has to require its gradient again.
            Some(flat) => param.map(|old| {
                let flat = if old.is_autodiff() {
                    Tensor::from_inner(flat.without_autodiff())
                } else {
                    flat
                };
                flat.reshape(old.dims()).set_require_grad(named.trainable)
            }),
        }
    }
}
