//! The text encoders' output for one caption.

use burn::tensor::Tensor;

/// The text encoders' output for one caption.
#[derive(Clone, Debug)]
pub(crate) struct EncodedCaption {
    /// The hidden states, `[1, m, width]`.
    pub(crate) hidden: Tensor<3>,
    /// SDXL's pooled embedding, `[1, p]`.
    pub(crate) pooled: Option<Tensor<2>>,
}
