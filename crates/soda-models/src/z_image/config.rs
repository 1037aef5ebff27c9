//! The transformer's `config.json`.

use serde::Deserialize;

use crate::config::bounds::{LAYERS, POSITIONS, WIDTH, check_epsilon};
use crate::config::{ConfigFile, InvalidField};

/// Axes of a token's position: place in the text or image after it, row, and column.
pub(super) const AXES: usize = 3;

/// The number of latents along one side of a patch, which is a token.
pub(super) const PATCH: usize = 2;

/// Sequences of tokens are padded to multiples of this.
pub(super) const MULTIPLE: usize = 32;

/// The largest width of the embedded timestep.
const MOST_TIME_WIDTH: usize = 256;

/// The largest base of the rotary frequencies. Published models have 256.
const MOST_THETA: f64 = 1e9;

/// The largest scale of the timestep. Published models have 1000.
const MOST_SCALE: f64 = 1e6;

/// The fields of a `ZImageTransformer2DModel` that are honoured. The defaults are diffusers', which are those
/// of the published models.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ZImageConfig {
    /// Channels of the latents.
    pub in_channels: usize,
    /// Width of the tokens.
    pub dim: usize,
    /// Number of blocks on image and text together.
    pub n_layers: usize,
    /// Number of blocks on the image alone, and of those on the text alone.
    pub n_refiner_layers: usize,
    /// Number of attention heads.
    pub n_heads: usize,
    /// Number of heads of the keys and values, which is `n_heads`.
    pub n_kv_heads: usize,
    /// Epsilon of the norms of the tokens.
    pub norm_eps: f64,
    /// Width of the text's hidden states.
    pub cap_feat_dim: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Factor of the timestep, which is from 0 (noise) to 1 (an image) before.
    pub t_scale: f64,
    /// Channels of a head that each axis of the position rotates.
    pub axes_dims: Vec<usize>,
    /// Number of positions along each axis.
    pub axes_lens: Vec<usize>,
}

impl Default for ZImageConfig {
    fn default() -> Self {
        Self {
            in_channels: 16,
            dim: 3840,
            n_layers: 30,
            n_refiner_layers: 2,
            n_heads: 30,
            n_kv_heads: 30,
            norm_eps: 1e-5,
            cap_feat_dim: 2560,
            rope_theta: 256.0,
            t_scale: 1000.0,
            axes_dims: vec![32, 48, 48],
            axes_lens: vec![1024, 512, 512],
        }
    }
}

impl ZImageConfig {
    /// The number of latents along one side of a token.
    pub const PATCH: usize = PATCH;

    /// The number of positions that a text of `tokens` tokens takes: with padding, and those of the image and
    /// of padding, which are single.
    pub fn positions(tokens: usize) -> usize {
        tokens.next_multiple_of(MULTIPLE) + 2
    }

    /// Width inside the MLPs.
    pub fn mlp_width(&self) -> usize {
        // Truncated, as in Python.
        (self.dim as f64 / 3.0 * 8.0) as usize
    }

    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.dim / self.n_heads
    }

    /// Width of the embedded timestep.
    pub fn time_width(&self) -> usize {
        self.dim.min(MOST_TIME_WIDTH)
    }

    /// Numbers of a token: the channels of its latents.
    pub fn patch_channels(&self) -> usize {
        self.in_channels * PATCH * PATCH
    }
}

impl ConfigFile for ZImageConfig {
    const DESCRIPTION: &'static str = "the transformer's config.json";

    const NO_EFFECT: &'static [(&'static str, &'static str)] = &[
        ("all_f_patch_size", "[1]"),
        ("all_patch_size", "[2]"),
        ("qk_norm", "true"),
        ("siglip_feat_dim", "null"),
    ];

    fn validate(&self) -> Result<(), InvalidField> {
        let refuse =
            |field, value: String, supported| Err(InvalidField { field, value, supported });
        LAYERS.check("n_layers", self.n_layers)?;
        LAYERS.check("n_refiner_layers", self.n_refiner_layers)?;
        for (field, value) in [
            ("in_channels", self.in_channels),
            ("dim", self.dim),
            ("n_heads", self.n_heads),
            ("cap_feat_dim", self.cap_feat_dim),
            ("n_layers", self.n_layers),
        ] {
            WIDTH.check(field, value)?;
            if value == 0 {
                return refuse(field, "0".into(), "a positive number");
            }
        }
        WIDTH.check("in_channels", self.patch_channels())?;
        WIDTH.check("dim", self.mlp_width())?;
        if !self.dim.is_multiple_of(self.n_heads) {
            return refuse("n_heads", self.n_heads.to_string(), "a number that divides `dim`");
        }
        if self.n_kv_heads != self.n_heads {
            let supported = "as many as `n_heads`, since diffusers shares no heads";
            return refuse("n_kv_heads", self.n_kv_heads.to_string(), supported);
        }
        let axes = &self.axes_dims;
        WIDTH.check_all("axes_dims", axes)?;
        let even = axes.iter().all(|channels| channels.is_multiple_of(2));
        if axes.len() != AXES || !even || axes.iter().sum::<usize>() != self.head_dim() {
            let supported = "three even numbers with the sum `dim / n_heads`";
            return refuse("axes_dims", format!("{axes:?}"), supported);
        }
        POSITIONS.check_all("axes_lens", &self.axes_lens)?;
        if self.axes_lens.len() != AXES || self.axes_lens.contains(&0) {
            let supported = "three positive numbers of positions";
            return refuse("axes_lens", format!("{:?}", self.axes_lens), supported);
        }
        if !(1.0..=MOST_THETA).contains(&self.rope_theta) {
            return refuse("rope_theta", self.rope_theta.to_string(), "a number from 1 to 1e9");
        }
        if !(self.t_scale > 0.0 && self.t_scale <= MOST_SCALE) {
            let supported = "a number above 0 and up to 1e6";
            return refuse("t_scale", self.t_scale.to_string(), supported);
        }
        check_epsilon("norm_eps", self.norm_eps)
    }
}
