//! Putting adapters on a network and taking them off again.
//!
//! An adapter hangs on the parameter it adapts, as a reparameterization of burn: the layer asks for its
//! weight and gets the adapted one, so that no layer's code changes. The base stays where it is, frozen
//! and shared with every clone; taking an adapter off gives it back to the bit.

use std::cell::Cell;
use std::collections::BTreeMap;

use burn::module::{
    Devices, Module, ModuleMapper, ModuleVisitor, Param, Reparameterization, Reparameterizer,
};
use burn::tensor::{Device, Tensor};
use soda_kernels::answer;

use crate::component::Component;
use crate::error::AdapterError;
use crate::fold::{fold, unfold};
use crate::method::Adapter;

/// Adapters that were checked against a network, ready to be attached to it.
#[derive(Clone, Debug)]
pub struct Plan<A> {
    /// By path of the weight.
    pub(crate) adapters: BTreeMap<String, A>,
}

impl<A> Default for Plan<A> {
    fn default() -> Self {
        Self { adapters: BTreeMap::new() }
    }
}

impl<A: Adapter> Plan<A> {
    /// Freezes `module` and attaches the adapters. Nothing of the base is copied: a clone of the
    /// module taken before still shares its weights.
    pub fn attach<M: Module>(self, module: M) -> M {
        attach_all([(self, 1.0)], module)
    }

    /// Every adapter at strength `t`, see [`Adapter::at_strength`].
    ///
    /// # Errors
    /// A rotation without a logarithm, named by its weight.
    pub fn at_strength(self, t: f64) -> Result<Self, AdapterError> {
        if t == 1.0 {
            return Ok(self);
        }
        let turn = |(path, adapter): (String, A)| match adapter.at_strength(t) {
            Ok(adapter) => Ok((path, adapter)),
            Err(source) => Err(AdapterError::Decomposition { path, source }),
        };
        Ok(Self { adapters: self.adapters.into_iter().map(turn).collect::<Result<_, _>>()? })
    }

    /// The same for a module that has the network as its field `component`.
    #[must_use]
    pub fn within(self, component: Component) -> Self {
        let into = |(path, adapter): (String, A)| (component.path(&path), adapter);
        Self { adapters: self.adapters.into_iter().map(into).collect() }
    }

    /// Both plans as one. A weight that both adapt gets the adapter of `other`.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.adapters.extend(other.adapters);
        self
    }

    /// Paths of the adapted weights.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &str> {
        self.adapters.keys().map(String::as_str)
    }

    /// The adapters by path of their weight.
    pub fn adapters(&self) -> &BTreeMap<String, A> {
        &self.adapters
    }
}

/// Freezes `module` and attaches several plans at once, each with a weight:
/// `W = W0 + Σ λᵢ (Wᵢ - W0)`.
///
/// A module that already carries adapters keeps them and takes no others; [`detach`] it first.
pub fn attach_all<A: Adapter, M: Module>(
    plans: impl IntoIterator<Item = (Plan<A>, f64)>,
    module: M,
) -> M {
    let mut parts: BTreeMap<String, Attached<A>> = BTreeMap::new();
    for (plan, weight) in plans {
        for (path, adapter) in plan.adapters {
            parts.entry(path).or_default().parts.push((weight, adapter));
        }
    }
    module.apply_reparameterization(Attach(parts))
}

/// Takes all adapters off. The weights are the base's own, to the bit; they stay frozen.
pub fn detach<M: Module>(module: M) -> M {
    // Folding in a switched-off adapter folds in nothing.
    without_adapters(|| module.materialize())
}

/// Runs `f` with every adapter of the calling thread switched off: the base model from the same weights,
/// as classifier-free guidance and consistency losses ask for it.
///
/// Threads that `f` starts do not inherit the switch.
pub fn without_adapters<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            OFF.set(self.0);
        }
    }
    // Restored on unwinding too, or a caught panic would leave the thread without its adapters.
    let _restore = Restore(OFF.replace(true));
    f()
}

thread_local! {
    static OFF: Cell<bool> = const { Cell::new(false) };
}

/// What hangs on a parameter: one adapter or several, each with its weight.
#[derive(Clone, Debug)]
pub struct Attached<A> {
    parts: Vec<(f64, A)>,
}

impl<A> Attached<A> {
    /// The adapters and their weights.
    pub fn parts(&self) -> &[(f64, A)] {
        &self.parts
    }
}

impl<A> Default for Attached<A> {
    fn default() -> Self {
        Self { parts: Vec::new() }
    }
}

impl<A: Adapter> Reparameterization for Attached<A> {
    const NAME: &'static str = MARKER;

    fn apply<const D: usize>(&self, base: Tensor<D>) -> Tensor<D> {
        if OFF.get() {
            return base;
        }
        let (dims, dtype) = (base.dims(), base.dtype());
        if let [(1.0, adapter)] = self.parts.as_slice()
            && D == 2
            // The rows that a linear layer of soda-kernels is about to multiply with this weight.
            && answer(|x| adapter.product(&x, &base.clone().reshape([dims[0], dims[1]])))
        {
            return base;
        }
        // Adapters compute in f32 whatever the network computes in; a fresh one survives the two casts
        // exactly, since it gives back the base's own bits.
        let w = fold(base);
        let adapted = match self.parts.as_slice() {
            [(1.0, adapter)] => adapter.apply(w),
            parts => parts.iter().fold(w.clone(), |sum, (weight, adapter)| {
                sum + (adapter.apply(w.clone()) - w.clone()).mul_scalar(*weight)
            }),
        };
        unfold(adapted, dims, dtype)
    }
}

/// The path component between a weight and its adapter's tensors.
pub(crate) const MARKER: &str = "adapter";

/// A lone adapter's tensors follow the marker directly, those of several their number.
impl<A: Adapter> Module for Attached<A> {
    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        if let [(_, adapter)] = self.parts.as_slice() {
            return adapter.visit(visitor);
        }
        for (index, (_, adapter)) in self.parts.iter().enumerate() {
            visitor.enter_module(&index.to_string(), MARKER);
            adapter.visit(visitor);
            visitor.exit_module(&index.to_string(), MARKER);
        }
    }

    fn map<V: ModuleMapper>(self, mapper: &mut V) -> Self {
        let several = self.parts.len() > 1;
        let map = |(index, (weight, adapter)): (usize, (f64, A))| {
            if several {
                mapper.enter_module(&index.to_string(), MARKER);
            }
            let adapter = adapter.map(mapper);
            if several {
                mapper.exit_module(&index.to_string(), MARKER);
            }
            (weight, adapter)
        };
        Self { parts: self.parts.into_iter().enumerate().map(map).collect() }
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        self.parts.iter().fold(devices, |devices, (_, adapter)| adapter.collect_devices(devices))
    }

    fn to_device(self, device: &Device) -> Self {
        self.each(|adapter| adapter.to_device(device))
    }

    fn fork(self, device: &Device) -> Self {
        self.each(|adapter| adapter.fork(device))
    }

    fn train(self) -> Self {
        self.each(Module::train)
    }

    fn valid(&self) -> Self {
        self.clone().each(|adapter| adapter.valid())
    }

    fn materialize(self) -> Self {
        self.each(Module::materialize)
    }
}

impl<A> Attached<A> {
    fn each(self, f: impl Fn(A) -> A) -> Self {
        Self { parts: self.parts.into_iter().map(|(weight, part)| (weight, f(part))).collect() }
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
