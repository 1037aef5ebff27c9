//! From selected weights to a plan: what can fail, and what takes long.

use std::collections::BTreeMap;

use rayon::prelude::*;
use soda_kernels::has_library;
use soda_linalg::{LinalgError, SvdCache};

use crate::attach::Plan;
use crate::error::AdapterError;
use crate::fold::{Weight, decompositions};
use crate::method::Method;

/// Weights that are decomposed together: enough to fill a device, and no second copy of a large model's.
const TOGETHER: usize = 64;

/// The plan of `method` for the selected weights, see [`Method::plan_with`].
pub(crate) fn prepare<M: Method>(
    method: &M,
    selected: BTreeMap<String, Weight>,
    cache: Option<&SvdCache>,
    on_progress: &mut dyn FnMut(usize, usize),
) -> Result<Plan<M::Adapter>, AdapterError> {
    let mut selected: Vec<_> = selected.into_iter().collect();
    let all = selected.len();
    let mut adapters = BTreeMap::new();
    if !method.decomposes() {
        adapters = each(method, selected)?;
    } else {
        let stacked = selected.iter().map(|(_, weight)| &weight.matrix).find(|m| has_library(m));
        let stacked = stacked.map(|matrix| matrix.device());
        // A device that decomposes in stacks takes what is of one shape together.
        selected.sort_by_key(|(_, weight)| weight.matrix.dims());
        while !selected.is_empty() {
            let rest = selected.split_off(TOGETHER.min(selected.len()));
            let window = std::mem::replace(&mut selected, rest);
            let weights: Vec<_> = window.iter().map(|(_, weight)| weight).collect();
            let found = decompositions(&weights, cache);
            let ready =
                |((path, weight), svd): ((String, Weight), Result<_, LinalgError>)| match svd {
                    Ok(svd) => Ok((path, weight.with_svd(svd))),
                    Err(source) => Err(AdapterError::Decomposition { path, source }),
                };
            let window = window.into_iter().zip(found).map(ready).collect::<Result<_, _>>()?;
            adapters.extend(each(method, window)?);
            on_progress(adapters.len(), all);
        }
        // What the stacks lay in goes back: they are far larger than anything in a step.
        if let Some(device) = stacked {
            device.memory_cleanup();
        }
    }
    Ok(Plan { adapters })
}

fn each<M: Method>(
    method: &M,
    weights: Vec<(String, Weight)>,
) -> Result<BTreeMap<String, M::Adapter>, AdapterError> {
    let adapter = |(path, weight): (String, Weight)| {
        let adapter = method.adapter(&path, &weight)?;
        Ok((path, adapter))
    };
    // Tensors belong to the queue of the thread that makes them, and a graph is recorded from one queue.
    if weights.iter().any(|(_, weight)| has_library(&weight.matrix)) {
        return weights.into_iter().map(adapter).collect();
    }
    weights.into_par_iter().map(adapter).collect()
}
