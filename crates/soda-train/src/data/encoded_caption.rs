//! What the text encoders say of a caption.

use burn::tensor::Tensor;

/// What the text encoders say of a caption.
#[derive(Clone, Debug)]
pub(crate) struct EncodedCaption {
    /// `[1, 77, width]`.
    pub(crate) states: Tensor<3>,
    /// SDXL's summary, `[1, p]`.
    pub(crate) pooled: Option<Tensor<2>>,
}
