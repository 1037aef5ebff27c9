//! The networks of a diffusion pipeline that adapters are trained for.

use std::fmt;

use serde::{Deserialize, Serialize};
use soda_models::pipeline::Denoiser;

/// A network of a pipeline, by the name of its folder in diffusers' layout.
///
/// A module with several networks has a field of this name for each. The paths of its weights begin with the
/// name, as do the names of tensors in files.
///
/// ```
/// use soda_pipeline::Component;
///
/// assert_eq!(Component::TextEncoder.path("a.weight"), "text_encoder.a.weight");
/// assert_eq!(Component::split_path("unet.a.weight"), Some((Component::Unet, "a.weight")));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// The denoiser of Stable Diffusion.
    Unet,
    /// The text encoder, the first one of SDXL.
    TextEncoder,
    /// The second text encoder of SDXL.
    #[serde(rename = "text_encoder_2")]
    TextEncoder2,
    /// The denoiser of FLUX.2 and of Z-Image.
    Transformer,
}

/// The component of a pipeline's denoiser.
impl From<&Denoiser> for Component {
    fn from(denoiser: &Denoiser) -> Self {
        match denoiser {
            Denoiser::Unet(_) => Self::Unet,
            Denoiser::Flux2(_) | Denoiser::ZImage(_) => Self::Transformer,
        }
    }
}

impl Component {
    /// All components, in ascending order.
    pub const ALL: [Self; 4] =
        [Self::Unet, Self::TextEncoder, Self::TextEncoder2, Self::Transformer];

    /// The name in files and paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
            Self::Transformer => "transformer",
        }
    }

    /// The prefix of the component's paths, such as `unet.`.
    pub fn prefix(self) -> String {
        format!("{}.", self.name())
    }

    /// Prepends the prefix to a path inside the component.
    pub fn path(self, inside: &str) -> String {
        format!("{}.{inside}", self.name())
    }

    /// Splits a path into the component and the path inside it; `None` if the path begins with no component.
    pub fn split_path(path: &str) -> Option<(Self, &str)> {
        let (name, inside) = path.split_once('.')?;
        let found = Self::ALL.into_iter().find(|component| component.name() == name)?;
        Some((found, inside))
    }
}

/// The name in messages.
impl fmt::Display for Component {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Unet => "UNet",
            Self::TextEncoder => "text encoder",
            Self::TextEncoder2 => "second text encoder",
            Self::Transformer => "transformer",
        })
    }
}
