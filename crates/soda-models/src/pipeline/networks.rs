//! The networks of a pipeline that a fine-tune may change, as one module.

use burn::module::Module;

use super::model::Pipeline;
use super::prompt::{TokenIds, states};
use crate::clip::{ClipTextModel, PromptEmbeds};
use crate::unet::Unet;

/// The denoiser and the text encoders, as one burn module.
///
/// The fields are named as the directories of diffusers' layout. A parameter's path is therefore a directory
/// and a key of its checkpoint, and adapter files contain these paths. The weights are shared with the
/// pipeline's.
#[derive(Module, Debug)]
pub struct Networks {
    /// The denoiser. The name of this field is the name of its directory.
    pub unet: Unet,
    /// The text encoder. `None` if prompts are encoded in advance.
    pub text_encoder: Option<ClipTextModel>,
    /// The second text encoder of SDXL.
    pub text_encoder_2: Option<ClipTextModel>,
}

impl Networks {
    /// Encodes token ids. `None` without a text encoder.
    pub fn encode_text(&self, ids: &TokenIds) -> Option<PromptEmbeds> {
        let encoder = self.text_encoder.as_ref()?;
        Some(states(encoder, self.text_encoder_2.as_ref(), ids, 0))
    }
}

/// Makes networks of a denoiser without text encoders.
impl From<Unet> for Networks {
    fn from(unet: Unet) -> Self {
        Self { unet, text_encoder: None, text_encoder_2: None }
    }
}

impl Pipeline {
    /// The networks of the pipeline that a fine-tune may change.
    pub fn networks(&self) -> Networks {
        Networks {
            unet: self.denoiser.clone(),
            text_encoder: Some(self.text_encoder.clone()),
            text_encoder_2: self
                .second_text_encoder
                .as_ref()
                .map(|second| second.text_encoder.clone()),
        }
    }

    /// Replaces the pipeline's networks. Text encoders that `networks` lacks are kept.
    pub fn set_networks(&mut self, networks: Networks) {
        let Networks { unet, text_encoder, text_encoder_2 } = networks;
        self.denoiser = unet;
        if let Some(text_encoder) = text_encoder {
            self.text_encoder = text_encoder;
        }
        if let (Some(second), Some(text_encoder)) = (&mut self.second_text_encoder, text_encoder_2)
        {
            second.text_encoder = text_encoder;
        }
    }
}
