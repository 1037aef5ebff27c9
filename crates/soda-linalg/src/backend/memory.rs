//! Whether a tensor is in host memory, and its bytes.

use burn::tensor::{DType, Tensor, TensorReadError};

use crate::error::LinalgError;

/// Whether `x` is in the memory of this process, so that CPU caches matter.
pub(crate) fn is_in_host_memory(x: &Tensor<3>) -> bool {
    #[cfg(feature = "flex")]
    return x.clone().without_autodiff().try_into_primitive::<burn::backend::Flex>().is_ok();
    #[cfg(not(feature = "flex"))]
    return x.dims().is_empty();
}

/// Calls `f` with the dtype of `a` and its row-major bytes; a contiguous tensor in host memory is not copied.
pub(crate) fn with_bytes<T>(
    a: &Tensor<2>,
    f: impl FnOnce(DType, &[u8]) -> T,
) -> Result<T, LinalgError> {
    let a = a.clone().without_autodiff();
    #[cfg(feature = "flex")]
    if let Ok(flex) = a.clone().try_into_primitive::<burn::backend::Flex>() {
        let flex = flex.to_contiguous();
        let length = flex.layout().num_elements() * flex.dtype().size();
        if flex.layout().start_offset() == 0 && length <= flex.bytes().len() {
            return Ok(f(flex.dtype(), &flex.bytes()[..length]));
        }
    }
    let data = a.try_into_data().map_err(TensorReadError::from)?;
    Ok(f(data.dtype(), data.as_bytes()))
}
