//! The transformer's `config.json`.

use serde::Deserialize;

use crate::config::bounds::{LAYERS, WIDTH, check_epsilon};
use crate::config::{ConfigFile, InvalidField, json_text};

/// Axes of a token's position: time of a reference image, row, column, and place in the text.
pub(crate) const AXES: usize = 4;

/// The largest base of the rotary frequencies. Published models have 2000.
const MOST_THETA: f64 = 1e9;

/// The fields of a `Flux2Transformer2DModel` that are honoured. The defaults are diffusers', which are those
/// of FLUX.2 dev.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flux2Config {
    /// Channels of the packed latents.
    pub in_channels: usize,
    /// Channels of the prediction. `None` for those of the latents.
    pub out_channels: Option<usize>,
    /// Number of blocks in which image and text have weights of their own.
    pub num_layers: usize,
    /// Number of blocks in which image and text share their weights.
    pub num_single_layers: usize,
    /// Width of an attention head.
    pub attention_head_dim: usize,
    /// Number of attention heads.
    pub num_attention_heads: usize,
    /// Width of the text's hidden states.
    pub joint_attention_dim: usize,
    /// Number of sinusoids of the timestep.
    pub timestep_guidance_channels: usize,
    /// Width inside the MLPs, as a multiple of the width of the tokens.
    pub mlp_ratio: f64,
    /// Channels of a head that each axis of the position rotates.
    pub axes_dims_rope: Vec<usize>,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Epsilon of all norms.
    pub eps: f64,
    /// Whether the guidance scale is an input of the network. FLUX.2 dev has it, klein does not.
    pub guidance_embeds: bool,
}

impl Default for Flux2Config {
    fn default() -> Self {
        Self {
            in_channels: 128,
            out_channels: None,
            num_layers: 8,
            num_single_layers: 48,
            attention_head_dim: 128,
            num_attention_heads: 48,
            joint_attention_dim: 15_360,
            timestep_guidance_channels: 256,
            mlp_ratio: 3.0,
            axes_dims_rope: vec![32; AXES],
            rope_theta: 2000.0,
            eps: 1e-6,
            guidance_embeds: true,
        }
    }
}

impl Flux2Config {
    /// The config of FLUX.2 klein 4B.
    pub fn klein_4b() -> Self {
        Self {
            num_layers: 5,
            num_single_layers: 20,
            num_attention_heads: 24,
            joint_attention_dim: 7680,
            guidance_embeds: false,
            ..Self::default()
        }
    }

    /// The config of FLUX.2 klein 9B.
    pub fn klein_9b() -> Self {
        Self {
            num_layers: 8,
            num_single_layers: 24,
            num_attention_heads: 32,
            joint_attention_dim: 12_288,
            guidance_embeds: false,
            ..Self::default()
        }
    }

    /// Width of the tokens.
    pub fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    /// Width inside the MLPs.
    pub fn mlp_width(&self) -> usize {
        // Truncated, as in Python.
        (self.width() as f64 * self.mlp_ratio) as usize
    }
}

impl ConfigFile for Flux2Config {
    const DESCRIPTION: &'static str = "the transformer's config.json";

    const NO_EFFECT: &'static [(&'static str, &'static str)] = &[("patch_size", "1")];

    fn validate(&self) -> Result<(), InvalidField> {
        let refuse =
            |field, value: String, supported| Err(InvalidField { field, value, supported });
        WIDTH.check_fields(&[
            ("in_channels", self.in_channels),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
            ("timestep_guidance_channels", self.timestep_guidance_channels),
        ])?;
        WIDTH.check_all("axes_dims_rope", &self.axes_dims_rope)?;
        LAYERS.check("num_layers", self.num_layers)?;
        LAYERS.check("num_single_layers", self.num_single_layers)?;
        for (field, value) in [
            ("in_channels", self.in_channels),
            ("attention_head_dim", self.attention_head_dim),
            ("num_attention_heads", self.num_attention_heads),
            ("joint_attention_dim", self.joint_attention_dim),
            ("num_layers", self.num_layers),
        ] {
            if value == 0 {
                return refuse(field, "0".into(), "a positive number");
            }
        }
        WIDTH.check("num_attention_heads", self.width())?;
        if self.out_channels.is_some_and(|channels| channels != self.in_channels) {
            let value = json_text(&self.out_channels);
            return refuse("out_channels", value, "null, or as many channels as `in_channels`");
        }
        let sinusoids = self.timestep_guidance_channels;
        if sinusoids == 0 || !sinusoids.is_multiple_of(2) {
            let supported = "an even number of sinusoids";
            return refuse("timestep_guidance_channels", sinusoids.to_string(), supported);
        }
        if self.mlp_ratio <= 0.0 || self.mlp_width() == 0 || self.mlp_width() > WIDTH.most() {
            let supported = "a ratio that gives MLPs a width between 1 and 65536";
            return refuse("mlp_ratio", self.mlp_ratio.to_string(), supported);
        }
        let axes = &self.axes_dims_rope;
        let even = axes.iter().all(|channels| channels.is_multiple_of(2));
        if axes.len() != AXES || !even || axes.iter().sum::<usize>() != self.attention_head_dim {
            let supported = "four even numbers with the sum `attention_head_dim`";
            return refuse("axes_dims_rope", format!("{axes:?}"), supported);
        }
        if !(1.0..=MOST_THETA).contains(&self.rope_theta) {
            return refuse("rope_theta", self.rope_theta.to_string(), "a number from 1 to 1e9");
        }
        check_epsilon("eps", self.eps)?;
        if self.guidance_embeds {
            let supported = "false, as in FLUX.2 klein: a guidance scale as an input of the network, \
                             as in FLUX.2 dev, is not implemented";
            return refuse("guidance_embeds", "true".into(), supported);
        }
        Ok(())
    }
}
