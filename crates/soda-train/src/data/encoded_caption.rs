//! The text encoders' output for one caption.

use burn::tensor::{Device, Tensor};

use crate::divided::Sent;
use crate::output::tensor_file::{Tensors, tensor};

/// The text encoders' output for one caption.
#[derive(Clone, Debug)]
pub(crate) struct EncodedCaption {
    /// The hidden states, `[1, m, width]`.
    pub(crate) hidden: Tensor<3>,
    /// SDXL's pooled embedding, `[1, p]`.
    pub(crate) pooled: Option<Tensor<2>>,
}

impl EncodedCaption {
    /// Whether this caption can be in one tensor with `other`.
    pub(crate) fn can_join(&self, other: &Self) -> bool {
        let form = |caption: &Self| {
            let [count, _, width] = caption.hidden.dims();
            (count, width, caption.pooled.as_ref().map(Tensor::dims))
        };
        form(self) == form(other)
    }
}

impl Sent for EncodedCaption {
    fn to_tensors(&self) -> Tensors {
        let pooled = self.pooled.as_ref().map(|pooled| ("pooled".to_owned(), pooled.to_data()));
        [("states".to_owned(), self.hidden.to_data())].into_iter().chain(pooled).collect()
    }

    fn from_tensors(tensors: &Tensors, device: &Device) -> Option<Self> {
        let pooled = match tensors.contains_key("pooled") {
            true => Some(tensor(tensors, "pooled", device)?),
            false => None,
        };
        Some(Self { hidden: tensor(tensors, "states", device)?, pooled })
    }
}
