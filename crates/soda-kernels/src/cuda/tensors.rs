//! The functions on tensors that the rest of the crate calls, beside the traits [`Kernels`](crate::Kernels)
//! and [`KernelGradients`](crate::KernelGradients).
//!
//! A result of `None` means that no kernel takes the operands. The caller then computes the result
//! differently. `cuda_absent.rs` declares the same functions for builds without CUDA. All tensors are off the
//! autodiff tape.

use std::sync::mpsc::channel;

use burn::backend::tensor::FloatTensor;
use burn::tensor::{DType, Tensor};
use cudarc::driver::result;

use super::launch::kronecker::Kronecker;
use super::launch::{checksum as checksum_kernel, fp8, multi_tensor, polar};
use super::stream::{flush, submit};
use super::support::{Cube, cublas_takes, empty, kernels_take};

pub(crate) use super::handles::workspace_bytes;

/// Whether products of `x`, on or off the tape, go to cuBLAS.
pub(crate) fn has_blas<const D: usize>(x: &Tensor<D>) -> bool {
    let x = x.clone().without_autodiff();
    x.try_into_primitive::<Cube>().is_ok_and(|x| cublas_takes(&x))
}

/// Whether products of `x` with codes of 8 bits are computed in E4M3, where their sizes fit.
pub(crate) fn has_fp8_products<const D: usize>(x: &Tensor<D>) -> bool {
    let x = x.clone().without_autodiff();
    x.try_into_primitive::<Cube>().is_ok_and(|x| kernels_take(&x) && fp8::on_machine())
}

/// The bytes of the memory of the device of `x` that no program has allocated. `None` if it is no CUDA
/// device. Waits until the device's thread has submitted all earlier work.
pub(crate) fn free_bytes(x: &Tensor<1>) -> Option<u64> {
    let x = primitive(x).filter(kernels_take)?;
    let (sender, receiver) = channel();
    submit([&x], move |_, _| {
        // Nobody waits after a panic.
        let _ = sender.send(result::mem_get_info().ok());
        Ok(())
    });
    flush();
    let (free, _) = receiver.recv().ok()??;
    Some(free as u64)
}

/// The eight bytes of the checksum of `x`, as two numbers. `None` if it is elsewhere or on the tape.
pub(crate) fn checksum(x: &Tensor<1>) -> Option<Tensor<1>> {
    let x = copyable(std::slice::from_ref(x))?.remove(0);
    let sum = Tensor::<1>::from_primitive::<Cube>(empty(&x, vec![2], DType::F32)).zeros_like();
    checksum_kernel::add_to(&primitive(&sum)?, x);
    Some(sum)
}

/// [`KroneckerProduct::apply`](crate::KroneckerProduct::apply) for factors of these sizes, transposed or not.
pub(crate) fn kronecker_product(
    (sizes, transposed): (&[usize], bool),
    x: &Tensor<2>,
    factors: &[Tensor<1>],
) -> Option<Tensor<2>> {
    let (x, a) = (primitive(x)?, primitives(factors)?);
    let kernel = Kronecker::new(&[&x], &a, sizes, transposed)?;
    Some(Tensor::from_primitive::<Cube>(kernel.forward(x, a)))
}

/// The gradients by the rows and the factors, and the product, as far as they are wanted.
pub(crate) type KroneckerGradients = (Option<Tensor<2>>, Vec<Tensor<1>>, Option<Tensor<2>>);

/// [`KroneckerProduct::gradient`](crate::KroneckerProduct::gradient) for factors of these sizes, transposed
/// or not.
pub(crate) fn kronecker_gradient(
    (sizes, transposed): (&[usize], bool),
    x: &Tensor<2>,
    factors: &[Tensor<1>],
    dy: &Tensor<2>,
    with_dx: bool,
    with_product: bool,
) -> Option<KroneckerGradients> {
    let (x, a, dy) = (primitive(x)?, primitives(factors)?, primitive(dy)?);
    let kernel = Kronecker::new(&[&x, &dy], &a, sizes, transposed)?;
    let (dx, da, y) = kernel.gradient(x, a, dy, with_dx, with_product);
    let da = da.into_iter().map(Tensor::from_primitive::<Cube>).collect();
    let [dx, y] = [dx, y].map(|x| x.map(Tensor::from_primitive::<Cube>));
    Some((dx, da, y))
}

/// Concatenates vectors of one dtype. `None` for no tensors, and if one of them is elsewhere or on the tape.
pub(crate) fn multi_tensor_cat(tensors: &[Tensor<1>]) -> Option<Tensor<1>> {
    let tensors = copyable(tensors).filter(|all| all.iter().all(|x| x.dtype == all[0].dtype))?;
    Some(Tensor::from_primitive::<Cube>(multi_tensor::cat(tensors)))
}

/// Splits a vector into vectors of these lengths. `None` if it is elsewhere or on the tape.
pub(crate) fn multi_tensor_split(x: &Tensor<1>, lengths: &[usize]) -> Option<Vec<Tensor<1>>> {
    let mut whole = copyable(std::slice::from_ref(x))?;
    let parts = multi_tensor::split(whole.remove(0), lengths);
    Some(parts.into_iter().map(Tensor::from_primitive::<Cube>).collect())
}

/// Copies each second vector into the memory of the first. Every tensor that shares that memory changes.
///
/// # Panics
/// If a tensor is not on a CUDA device, and if length, dtype or device of a pair differ.
pub(super) fn overwrite(pairs: Vec<(Tensor<1>, Tensor<1>)>) {
    let (to, from): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let alike = |(to, from): (&Tensor<1>, &Tensor<1>)| {
        to.dims() == from.dims() && to.dtype() == from.dtype()
    };
    assert!(
        to.iter().zip(&from).all(alike),
        "a captured graph is replayed on inputs of the captured lengths and dtypes"
    );
    match (copyable(&to), copyable(&from)) {
        (Some(to), Some(from)) => multi_tensor::overwrite(to.into_iter().zip(from).collect()),
        _ => panic!("a captured graph is replayed on inputs of its own CUDA device"),
    }
}

/// A matrix as the sum of two TF32 matrices.
pub(crate) struct Tf32Split(polar::Split);

/// Splits the iterate `x` `[b, m, n]` of a polar iteration. `None` if the kernels do not take it.
pub(crate) fn tf32_split(x: &Tensor<3>) -> Option<Tf32Split> {
    let x = x.clone().try_into_primitive::<Cube>().ok().filter(polar::takes)?;
    Some(Tf32Split(polar::split(x, 0.0)))
}

/// The next iterate of a polar iteration from the current one and its Gram matrices: split, whole, and its
/// Gram matrices.
pub(crate) fn polar_step(
    Tf32Split(split): Tf32Split,
    gram: &Tensor<3>,
    coefficients: [f64; 3],
) -> Option<(Tf32Split, Tensor<3>, Tensor<3>)> {
    let gram = gram.clone().try_into_primitive::<Cube>().ok()?;
    let (split, x, gram) = polar::step(split, gram, coefficients);
    let [x, gram] = [x, gram].map(Tensor::from_primitive::<Cube>);
    Some((Tf32Split(split), x, gram))
}

/// The backend's tensor, if `x` is on a CubeCL device.
fn primitive<const D: usize>(x: &Tensor<D>) -> Option<FloatTensor<Cube>> {
    x.clone().try_into_primitive::<Cube>().ok()
}

fn primitives(a: &[Tensor<1>]) -> Option<Vec<FloatTensor<Cube>>> {
    a.iter().map(primitive).collect()
}

/// The backend's tensors, if there is at least one and the copy kernel takes all of them.
fn copyable(tensors: &[Tensor<1>]) -> Option<Vec<FloatTensor<Cube>>> {
    let copyable = |x: &Tensor<1>| {
        let plain = (!x.is_autodiff()).then(|| x.clone())?;
        plain.try_into_primitive::<Cube>().ok().filter(kernels_take)
    };
    (!tensors.is_empty()).then(|| tensors.iter().map(copyable).collect())?
}
