//! Attaching adapters to a network, and removing them.
//!
//! An adapter is attached to the parameter that it adapts as a reparameterization of burn. The layer reads
//! its weight and gets the adapted one, so that no layer changes. The base weight stays in place, frozen and
//! shared with every clone of the module. Removing the adapters restores the base to the bit.

use std::cell::Cell;
use std::collections::BTreeMap;

use burn::module::{
    Devices, Module, ModuleMapper, ModuleVisitor, Param, Reparameterization, Reparameterizer,
};
use burn::tensor::{Device, Tensor};
use soda_kernels::{StoredWeight, matmul, offer_product, stored_weights, take_stored, with_stored};

use crate::adapter::Adapter;
use crate::base_weight::BaseWeight;
use crate::method::Method;
use crate::named_params::ADAPTER_SEGMENT;
use crate::plan::Plan;
use crate::weight::{from_matrix, to_matrix};

impl<A: Adapter> Plan<A> {
    /// Freezes `module` and attaches the adapters.
    ///
    /// The base is not copied: a clone of the module taken before still shares its weights.
    /// `Module::materialize` of burn replaces the adapted weights by plain ones.
    pub fn attach<M: Module>(self, module: M) -> M {
        attach_all([(self, 1.0)], module)
    }
}

/// Freezes `module` and attaches several plans, each with a weight: `W = W0 + Σ λᵢ (Wᵢ - W0)`.
///
/// A parameter that already has adapters keeps them and gets no others; call [`detach`] first. An
/// adapter on a stored weight computes with it. A module with stored weights has no adapters yet.
pub fn attach_all<A: Adapter, M: Module>(
    plans: impl IntoIterator<Item = (Plan<A>, f64)>,
    module: M,
) -> M {
    let (module, mut stored) = take_stored(module);
    let attached = attached_to(plans, &mut stored);
    with_stored(module.apply_reparameterization(Attach(attached)), stored)
}

/// The adapters of several plans by path, on the stored weights, which they take.
pub(crate) fn attached_to<A>(
    plans: impl IntoIterator<Item = (Plan<A>, f64)>,
    stored: &mut BTreeMap<String, StoredWeight>,
) -> BTreeMap<String, Attached<A>> {
    let mut by_path: BTreeMap<String, Attached<A>> = BTreeMap::new();
    for (plan, weight) in plans {
        for (path, adapter) in plan.adapters {
            by_path.entry(path).or_default().weighted.push((weight, adapter));
        }
    }
    for (path, adapted) in &mut by_path {
        adapted.stored = stored.remove(path);
    }
    by_path
}

/// Removes all adapters. The weights are those of the base, to the bit; they stay frozen.
pub fn detach<M: Module>(module: M) -> M {
    let of_adapters = format!(".{ADAPTER_SEGMENT}");
    let stored = stored_weights(&module).into_iter().map(|(path, weight)| {
        (path.strip_suffix(&of_adapters).unwrap_or(&path).to_owned(), weight)
    });
    let stored = stored.collect();
    // Materializing a disabled adapter gives the base weight, which of a stored weight is its placeholder.
    let module = without_adapters(|| take_stored(module).0.materialize());
    with_stored(module, stored)
}

/// Replaces the adapted weights by plain ones, for calls without further training.
///
/// Adapters of a `method` that [depends on the timestep](Method::depends_on_timestep) stay attached,
/// and so do those of a network with stored weights, which would become floats.
pub fn for_inference<M: Module>(module: M, method: &impl Method) -> M {
    if method.depends_on_timestep() || !stored_weights(&module).is_empty() {
        module
    } else {
        module.materialize()
    }
}

/// Runs `f` with every adapter disabled on the calling thread: the base model from the same weights.
///
/// Classifier-free guidance and consistency losses compare with the base this way. Threads that `f` starts
/// are not affected.
pub fn without_adapters<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            DISABLED.set(self.0);
        }
    }
    // Also restored on unwinding, or a caught panic would leave the adapters of the thread disabled.
    let _restore = Restore(DISABLED.replace(true));
    f()
}

thread_local! {
    static DISABLED: Cell<bool> = const { Cell::new(false) };
}

/// The adapters on one parameter, each with a weight.
#[derive(Clone, Debug)]
pub struct Attached<A> {
    weighted: Vec<(f64, A)>,
    /// The weight under the adapters, if it is quantized or in host memory. Then the parameter is its
    /// placeholder.
    stored: Option<StoredWeight>,
}

impl<A> Attached<A> {
    /// The weights and adapters.
    pub fn weighted_adapters(&self) -> &[(f64, A)] {
        &self.weighted
    }

    fn map_each(
        self,
        f: impl Fn(A) -> A,
        of_base: impl FnOnce(StoredWeight) -> StoredWeight,
    ) -> Self {
        let map = |(weight, adapter)| (weight, f(adapter));
        Self {
            weighted: self.weighted.into_iter().map(map).collect(),
            stored: self.stored.map(of_base),
        }
    }
}

impl<A: Adapter> Attached<A> {
    /// The adapted product of the rows `x` `[rows, in]` with the base weight `w` `[in, out]`, where it can do
    /// without the adapted weight.
    fn product(&self, x: &Tensor<2>, w: &BaseWeight) -> Option<Tensor<2>> {
        if let [(1.0, adapter)] = self.weighted.as_slice() {
            return adapter.product(x, w);
        }
        if !self.weighted.iter().any(|(_, adapter)| adapter.depends_on_timestep()) {
            return None;
        }
        let plain = w.product(x.clone());
        Some(self.weighted.iter().fold(plain.clone(), |sum, (weight, adapter)| {
            let adapted = adapter.product(x, w).unwrap_or_else(|| {
                let adapted = adapter.apply(to_matrix(w.to_float()));
                matmul(x.clone(), from_matrix(adapted, w.dims(), w.dtype()))
            });
            sum + (adapted - plain.clone()).mul_scalar(*weight)
        }))
    }
}

impl<A> Default for Attached<A> {
    fn default() -> Self {
        Self { weighted: Vec::new(), stored: None }
    }
}

impl<A: Adapter> Reparameterization for Attached<A> {
    const NAME: &'static str = ADAPTER_SEGMENT;

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        if DISABLED.get() {
            return match &self.stored {
                Some(stored) => stored.apply(base),
                None => base,
            };
        }
        let dtype = base.dtype();
        let weight = || match &self.stored {
            Some(stored) => BaseWeight::Stored(stored.clone(), dtype),
            None => {
                let dims = base.dims();
                BaseWeight::Float(base.clone().reshape([dims[0], dims[1]]))
            }
        };
        // A layer of soda-kernels that is about to multiply with this weight takes the product instead.
        if D == 2 && offer_product(|x| self.product(&x, &weight())) {
            return base;
        }
        // Adapters compute in f32 for a network in any float type. An initial adapter returns the bits of the
        // base, which both casts keep.
        let (w, dims) = match &self.stored {
            None => (to_matrix(base.clone()), base.dims()),
            Some(stored) => {
                let dims = stored.dims();
                // Only matrices are stored.
                (to_matrix(stored.to_float(dtype)), std::array::from_fn(|axis| dims[axis]))
            }
        };
        let adapted = match self.weighted.as_slice() {
            [(1.0, adapter)] => adapter.apply(w),
            weighted => weighted.iter().fold(w.clone(), |sum, (weight, adapter)| {
                sum + (adapter.apply(w.clone()) - w.clone()).mul_scalar(*weight)
            }),
        };
        from_matrix(adapted, dims, dtype)
    }
}

/// The tensors of a single adapter follow the path segment `adapter`; those of several follow their number.
impl<A: Adapter> Module for Attached<A> {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        if let Some(stored) = &self.stored {
            visitor.enter_module(StoredWeight::NAME, ADAPTER_SEGMENT);
            stored.visit(visitor);
            visitor.exit_module(StoredWeight::NAME, ADAPTER_SEGMENT);
        }
        if let [(_, adapter)] = self.weighted.as_slice() {
            return adapter.visit(visitor);
        }
        for (index, (_, adapter)) in self.weighted.iter().enumerate() {
            visitor.enter_module(&index.to_string(), ADAPTER_SEGMENT);
            adapter.visit(visitor);
            visitor.exit_module(&index.to_string(), ADAPTER_SEGMENT);
        }
    }

    fn map<V: ModuleMapper>(self, mapper: &mut V) -> Self {
        let several = self.weighted.len() > 1;
        let map = |(index, (weight, adapter)): (usize, (f64, A))| {
            if several {
                mapper.enter_module(&index.to_string(), ADAPTER_SEGMENT);
            }
            let adapter = adapter.map(mapper);
            if several {
                mapper.exit_module(&index.to_string(), ADAPTER_SEGMENT);
            }
            (weight, adapter)
        };
        Self { weighted: self.weighted.into_iter().enumerate().map(map).collect(), ..self }
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        let devices = self.stored.collect_devices(devices);
        self.weighted.iter().fold(devices, |devices, (_, adapter)| adapter.collect_devices(devices))
    }

    fn to_device(self, device: &Device) -> Self {
        self.map_each(|adapter| adapter.to_device(device), |weight| weight.to_device(device))
    }

    fn fork(self, device: &Device) -> Self {
        self.map_each(|adapter| adapter.fork(device), |weight| weight.fork(device))
    }

    fn train(self) -> Self {
        self.map_each(Module::train, Module::train)
    }

    fn valid(&self) -> Self {
        self.clone().map_each(|adapter| adapter.valid(), |weight| weight.valid())
    }

    fn materialize(self) -> Self {
        self.map_each(Module::materialize, Module::materialize)
    }
}

struct Attach<A>(BTreeMap<String, Attached<A>>);

impl<A: Adapter> Reparameterizer for Attach<A> {
    type Reparam = Attached<A>;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<Attached<A>>) {
        (param.set_require_grad(false), self.0.remove(path))
    }
}
