//! Many matrices as stacks of one shape each, decomposed in matrix products.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor, TensorReadError};

use crate::host;
use crate::products::{self, Factors};
use crate::svd::Svd;

/// Entries of a stack: some twenty tensors of its size live at once.
const STACK: usize = 1 << 26;

/// What factors may be off, in `eps √m` and `eps √k`: those of the host are off by about one.
const EXACT: f64 = 16.0;

/// None where there is nothing to decompose, an entry is not finite, the device fails, or the factors are
/// not exact.
pub(crate) fn decompose(matrices: &[&Tensor<2>]) -> Vec<Option<Svd>> {
    let mut found: Vec<Option<Svd>> = matrices.iter().map(|_| None).collect();
    let mut stacks = BTreeMap::<(bool, [usize; 2]), Vec<usize>>::new();
    for (i, a) in matrices.iter().enumerate() {
        stacks.entry((host::is_double(a), a.dims())).or_default().push(i);
    }
    for ((double, [rows, cols]), members) in stacks {
        if rows * cols == 0 {
            continue;
        }
        let dtype = if double { DType::F64 } else { DType::F32 };
        let chunks = members.len().div_ceil((STACK / (rows * cols)).max(1));
        // Stacks of about one size: a small one takes nearly as many launches as a large one.
        for members in members.chunks(members.len().div_ceil(chunks)) {
            let plain = |&i: &usize| matrices[i].clone().without_autodiff().cast(dtype);
            let stack = Tensor::stack(members.iter().map(plain).collect(), 0);
            for (&i, svd) in members.iter().zip(of_stack(stack).unwrap_or_default()) {
                found[i] = svd;
            }
        }
    }
    found
}

fn of_stack(stack: Tensor<3>) -> Result<Vec<Option<Svd>>, TensorReadError> {
    // Zero times what is not finite is NaN, which would end the iterations of all.
    let finite = products::total(stack.clone().mul_scalar(0)).equal_scalar(0);
    let zeros = stack.zeros_like();
    let finite = finite.expand(stack.dims());
    let Factors { u, s, vt, error } = products::thin(zeros.mask_where(finite.clone(), stack))?;
    let finite = finite.narrow(1, 0, 1).narrow(2, 0, 1).try_to_vec_as::<bool>()?;
    let part = |x: &Tensor<3>, i: usize| x.clone().narrow(0, i, 1).squeeze_dim::<2>(0);
    let one = |(i, (error, finite)): (usize, (f64, bool))| {
        (finite && error <= EXACT).then(|| Svd {
            u: part(&u, i),
            s: part(&s, i).squeeze_dim(0),
            vt: part(&vt, i),
        })
    };
    Ok(error.into_iter().zip(finite).enumerate().map(one).collect())
}
