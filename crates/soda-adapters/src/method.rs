//! The seam between a method and a network: settings in, a checked plan out, then an attachment that
//! cannot fail.

use std::collections::BTreeMap;

use burn::module::{Module, Param, Reparameterization, Reparameterizer};
use burn::tensor::Tensor;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::AdapterError;
use crate::target::Targets;

/// Where a trainable tensor lives, which decides how an optimizer may move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Geometry {
    /// A flat space: any optimizer.
    Euclidean,
    /// Matrices with orthonormal columns, `QᵀQ = I`: a Riemannian optimizer.
    Stiefel,
}

/// A parameter-efficient method: how one weight becomes a base plus a few trainable numbers.
pub trait Method: Clone + Serialize + DeserializeOwned + Sync {
    /// Name in adapter files and configurations.
    const NAME: &'static str;

    /// What it attaches to a weight.
    type Adapter: Reparameterization;

    /// The adapter of one weight `[in, out]` (plain device), which changes nothing yet.
    ///
    /// # Errors
    /// Unusable settings, or a weight that cannot be decomposed; `path` names it.
    fn adapter(&self, path: &str, weight: &Tensor<2>) -> Result<Self::Adapter, AdapterError>;

    /// Where the trainable tensor with this path lives.
    fn geometry(&self, path: &str) -> Geometry;

    /// Decomposes every targeted weight of `module`, several at once.
    ///
    /// # Errors
    /// See [`Targets::select`] and [`Method::adapter`].
    fn plan<M: Module>(
        &self,
        targets: &Targets,
        module: &M,
    ) -> Result<Plan<Self::Adapter>, AdapterError>
    where
        Self::Adapter: Send,
    {
        use rayon::prelude::*;
        let selected: Vec<_> = targets.select(module)?.into_iter().collect();
        let adapters = selected
            .into_par_iter()
            .map(|(path, weight)| {
                let adapter = self.adapter(&path, &weight)?;
                Ok((path, adapter))
            })
            .collect::<Result<_, AdapterError>>()?;
        Ok(Plan { adapters })
    }
}

/// Adapters that were checked against a network, ready to be attached to it.
#[derive(Debug)]
pub struct Plan<A> {
    adapters: BTreeMap<String, A>,
}

impl<A: Reparameterization> Plan<A> {
    /// Freezes `module` and attaches the adapters. Nothing of the base is copied: a clone of the
    /// module taken before still shares its weights.
    pub fn attach<M: Module>(self, module: M) -> M {
        module.apply_reparameterization(Attach(self.adapters))
    }

    /// Paths of the adapted weights.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &str> {
        self.adapters.keys().map(String::as_str)
    }
}

struct Attach<A>(BTreeMap<String, A>);

impl<A: Reparameterization> Reparameterizer for Attach<A> {
    type Reparam = A;

    fn reparameterize<const D: usize>(
        &mut self,
        path: &str,
        param: Param<Tensor<D>>,
    ) -> (Param<Tensor<D>>, Option<A>) {
        (param.set_require_grad(false), self.0.remove(path))
    }
}
