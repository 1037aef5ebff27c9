//! The networks of a pipeline that a fine-tune may change, as one module.

use burn::module::Module;

use super::Pipeline;
use crate::clip::text::{ClipTextModel, TextStates};
use crate::pipeline::prompt::{TextIds, states};
use crate::unet::Unet;

/// The denoiser and the text encoders. The fields are named as the directories of diffusers' layout, so that every path
/// in here is a directory and a key of its checkpoint. The weights are shared with the pipeline's.
#[derive(Module, Debug)]
pub struct Networks {
    /// The denoiser.
    pub unet: Unet,
    /// The text encoder; `None` where text states come ready.
    pub text_encoder: Option<ClipTextModel>,
    /// SDXL's second.
    pub text_encoder_2: Option<ClipTextModel>,
}

impl Networks {
    /// What the text encoders say of tokens; `None` without a text encoder.
    pub fn read(&self, ids: &TextIds) -> Option<TextStates> {
        let encoder = self.text_encoder.as_ref()?;
        Some(states(encoder, self.text_encoder_2.as_ref(), ids, 0))
    }
}

/// A denoiser alone.
impl From<Unet> for Networks {
    fn from(unet: Unet) -> Self {
        Self { unet, text_encoder: None, text_encoder_2: None }
    }
}

impl Pipeline {
    /// All networks that a fine-tune may change.
    pub fn networks(&self) -> Networks {
        Networks {
            unet: self.unet.clone(),
            text_encoder: Some(self.text_encoder.clone()),
            text_encoder_2: self.second.as_ref().map(|second| second.text_encoder.clone()),
        }
    }

    /// Puts networks in the place of the pipeline's own; what `networks` lacks stays.
    pub fn set_networks(&mut self, networks: Networks) {
        let Networks { unet, text_encoder, text_encoder_2 } = networks;
        self.unet = unet;
        if let Some(text_encoder) = text_encoder {
            self.text_encoder = text_encoder;
        }
        if let (Some(second), Some(text_encoder)) = (&mut self.second, text_encoder_2) {
            second.text_encoder = text_encoder;
        }
    }
}
