//! Many vectors put together or taken apart at once: a launch for a hundred of them on CUDA, one each elsewhere.

use burn::tensor::Tensor;

/// `Tensor::cat(tensors, 0)`, off the tape in one go.
///
/// # Panics
/// Of no tensors.
pub fn multi_tensor_cat(tensors: Vec<Tensor<1>>) -> Tensor<1> {
    #[cfg(feature = "cuda")]
    if let Some(tensors) =
        primitives(&tensors).filter(|all| all.iter().all(|x| x.dtype == all[0].dtype))
    {
        return Tensor::from_primitive::<Cube>(crate::cuda::cat(tensors));
    }
    Tensor::cat(tensors, 0)
}

/// Vectors of these lengths, one after the other, out of `x`; off the tape in one go.
pub fn multi_tensor_split(x: Tensor<1>, lengths: &[usize]) -> Vec<Tensor<1>> {
    #[cfg(feature = "cuda")]
    if let Some(mut whole) = primitives(std::slice::from_ref(&x)) {
        let parts = crate::cuda::split(whole.remove(0), lengths);
        return parts.into_iter().map(Tensor::from_primitive::<Cube>).collect();
    }
    x.split_with_sizes(lengths.to_vec(), 0)
}

/// Writes each second vector into the memory of the first: every tensor that shares it changes.
///
/// For the inputs of a [`CapturedGraph`](crate::CapturedGraph), which no other tensor should share.
///
/// # Panics
/// On a device that records nothing, and where length, type or device of a pair differ.
#[cfg(feature = "cuda")]
pub(crate) fn overwrite(pairs: Vec<(Tensor<1>, Tensor<1>)>) {
    let (to, from): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let alike = |(to, from): (&Tensor<1>, &Tensor<1>)| {
        to.dims() == from.dims() && to.dtype() == from.dtype()
    };
    assert!(to.iter().zip(&from).all(alike), "a recording is refilled with what it was made for");
    match (primitives(&to), primitives(&from)) {
        (Some(to), Some(from)) => crate::cuda::overwrite(to.into_iter().zip(from).collect()),
        _ => panic!("only a CUDA device refills recordings"),
    }
}

#[cfg(feature = "cuda")]
type Cube = burn::backend::Cube;

/// Off the tape, on a device with the kernel; at least one.
#[cfg(feature = "cuda")]
fn primitives(tensors: &[Tensor<1>]) -> Option<Vec<burn::backend::tensor::FloatTensor<Cube>>> {
    let primitive = |x: &Tensor<1>| {
        let plain = (!x.is_autodiff()).then(|| x.clone())?;
        plain.try_into_primitive::<Cube>().ok().filter(crate::cuda::ours)
    };
    (!tensors.is_empty()).then(|| tensors.iter().map(primitive).collect())?
}
