//! What the header of a safetensors file tells of a tensor.

use safetensors::Dtype;

/// Name, type and shape of a tensor.
pub(super) type Tensor<'a> = (&'a str, Dtype, &'a [usize]);
