//! The networks of a pipeline that adapters are made for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A network, by the name that diffusers has for it. A module that holds several of them has a field of
/// this name for each, so that the paths of its weights begin with it, as the names in files do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// The denoiser.
    Unet,
    /// The text encoder; SDXL's first.
    TextEncoder,
    /// SDXL's second.
    #[serde(rename = "text_encoder_2")]
    TextEncoder2,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Unet, Self::TextEncoder, Self::TextEncoder2];

    /// The name in files and paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unet => "unet",
            Self::TextEncoder => "text_encoder",
            Self::TextEncoder2 => "text_encoder_2",
        }
    }

    /// The network that a path begins with, and the path inside it.
    pub fn split(path: &str) -> Option<(Self, &str)> {
        let (name, rest) = path.split_once('.')?;
        let found = Self::ALL.into_iter().find(|component| component.name() == name)?;
        Some((found, rest))
    }

    /// A path inside the network as one that begins with its name.
    pub fn path(self, inside: &str) -> String {
        format!("{}.{inside}", self.name())
    }
}

/// For people.
impl fmt::Display for Component {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Unet => "UNet",
            Self::TextEncoder => "text encoder",
            Self::TextEncoder2 => "second text encoder",
        })
    }
}
