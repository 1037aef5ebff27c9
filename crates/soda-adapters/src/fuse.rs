//! Replacing the weights of a network by the adapted ones, each stored before the next is made.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, Param, Reparameterization as _};
use burn::tensor::Tensor;
use soda_kernels::{StoredWeight, take_stored, with_stored};

use crate::adapter::Adapter;
use crate::attached::{Attached, attached_to};
use crate::plan::Plan;

/// Replaces adapted weights by their sum with several plans, `W0 + Σ λᵢ (Wᵢ - W0)`, one after the other, and
/// freezes `module`. What [`attach_all`](crate::attach_all) says of the module is true here.
///
/// `store` gets the path and the new matrix `[in, out]` of a linear layer, and returns it as it is stored in
/// a format or a place of its own; `None` keeps the floats. The device has one of them in floats at a time.
pub fn fuse_all<A: Adapter, M: Module>(
    plans: impl IntoIterator<Item = (Plan<A>, f64)>,
    module: M,
    store: impl FnMut(&str, &Tensor<2>) -> Option<StoredWeight>,
) -> M {
    let (module, mut stored) = take_stored(module);
    let attached = attached_to(plans, &mut stored);
    let module = module.no_grad().map(&mut Fuse { path: Vec::new(), attached, store });
    with_stored(module, stored)
}

struct Fuse<A, F> {
    path: Vec<String>,
    attached: BTreeMap<String, Attached<A>>,
    store: F,
}

impl<A, F> ModuleMapper for Fuse<A, F>
where
    A: Adapter,
    F: FnMut(&str, &Tensor<2>) -> Option<StoredWeight>,
{
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let Some(attached) = self.attached.remove(&path) else { return param };
        let value = attached.apply(param.base());
        if D == 2 {
            let dims = value.dims();
            let matrix = value.clone().reshape([dims[0], dims[1]]);
            if let Some(stored) = (self.store)(&path, &matrix) {
                return stored.replace(param, value.dtype());
            }
        }
        param.map(|_| value).set_require_grad(false)
    }
}
