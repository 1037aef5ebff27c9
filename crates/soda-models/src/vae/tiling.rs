//! Tiled encoding and decoding: the memory depends on the tile, not on the image.
//!
//! Each tile is computed alone. Where two tiles overlap, the later one fades in linearly over the earlier
//! one. The group norms see a tile instead of the image, so that the result differs a little from the whole.
//!
//! Mirrors the tiling of diffusers' `AutoencoderKL`.

use burn::tensor::{Device, Tensor, TensorData};

use crate::vae::config::VaeConfig;
use crate::vae::model::{LatentDistribution, Vae};

/// The overlap of two neighbouring tiles, as a share of their side.
const OVERLAP: f64 = 0.25;

/// The size of the tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Side of a tile in pixels.
    pub pixels: usize,
    /// Side of a tile in latents.
    pub latents: usize,
}

impl VaeConfig {
    /// Tiles of the size that the autoencoder was trained on, at least one latent wide.
    pub fn tiling(&self) -> Tiling {
        self.tiles(self.sample_size)
    }

    /// Tiles of at most `side` pixels, at least one latent wide.
    pub fn tiles(&self, side: usize) -> Tiling {
        let latents = (side / self.downscale_factor()).max(1);
        Tiling { pixels: latents * self.downscale_factor(), latents }
    }
}

impl Tiling {
    /// Whether a tensor of this shape is larger than a tile of side `side`.
    fn cuts(side: usize, [_, _, height, width]: [usize; 4]) -> bool {
        height > side || width > side
    }
}

impl Vae {
    /// Encodes images as [`Vae::encode`], in tiles. An image that fits into one tile is not divided.
    pub fn encode_tiled(&self, images: Tensor<4>, tiling: &Tiling) -> LatentDistribution {
        if !Tiling::cuts(tiling.pixels, images.dims()) {
            return self.encode(images);
        }
        let moments = |tile| self.moments(tile);
        LatentDistribution::from_moments(tiled(images, tiling.pixels, tiling.latents, moments))
    }

    /// Decodes latents as [`Vae::decode`], in tiles. Latents that fit into one tile are not divided.
    pub fn decode_tiled(&self, latents: Tensor<4>, tiling: &Tiling) -> Tensor<4> {
        if !Tiling::cuts(tiling.latents, latents.dims()) {
            return self.decode(latents);
        }
        tiled(latents, tiling.latents, tiling.pixels, |tile| self.decode(tile))
    }
}

/// Applies `code` to tiles of side `from`, which gives tiles of side `to`, and blends them.
fn tiled(x: Tensor<4>, from: usize, to: usize, code: impl Fn(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
    let [_, _, height, width] = x.dims();
    let part = |side: usize, share: f64| (side as f64 * share) as usize;
    let stride = part(from, 1.0 - OVERLAP).max(1);
    let blend = part(to, OVERLAP);
    let keep = to - blend;

    let mut rows = Vec::new();
    let mut above: Vec<Tensor<4>> = Vec::new();
    for top in (0..height).step_by(stride) {
        let mut row: Vec<Tensor<4>> = Vec::new();
        for (j, left) in (0..width).step_by(stride).enumerate() {
            let tile = x.clone().narrow(2, top, from.min(height - top));
            let mut tile = code(tile.narrow(3, left, from.min(width - left)));
            if let Some(above) = above.get(j) {
                tile = fade_in(above, tile, 2, blend);
            }
            if let Some(left) = row.last() {
                tile = fade_in(left, tile, 3, blend);
            }
            row.push(tile);
        }
        let cut = |tile: &Tensor<4>| {
            let [_, _, height, width] = tile.dims();
            tile.clone().narrow(2, 0, keep.min(height)).narrow(3, 0, keep.min(width))
        };
        rows.push(Tensor::cat(row.iter().map(cut).collect(), 3));
        above = row;
    }
    Tensor::cat(rows, 2)
}

/// Fades the first `extent` lines of `tile` along `axis` in over the last lines of `before`.
fn fade_in(before: &Tensor<4>, tile: Tensor<4>, axis: usize, extent: usize) -> Tensor<4> {
    let (length, earlier) = (tile.dims()[axis], before.dims()[axis]);
    let extent = extent.min(length).min(earlier);
    if extent == 0 {
        return tile;
    }
    let ramp = ramp(axis, extent, &tile.device()).cast(tile.dtype());
    let old = before.clone().narrow(axis, earlier - extent, extent);
    let new = tile.clone().narrow(axis, 0, extent);
    let mixed = old * ramp.clone().neg().add_scalar(1.0) + new * ramp;
    if extent == length {
        return mixed;
    }
    Tensor::cat(vec![mixed, tile.narrow(axis, extent, length - extent)], axis)
}

/// The weights `0, 1/n, ..., (n - 1)/n` along `axis`.
fn ramp(axis: usize, n: usize, device: &Device) -> Tensor<4> {
    let values: Vec<f32> = (0..n).map(|i| i as f32 / n as f32).collect();
    let mut shape = [1; 4];
    shape[axis] = n;
    Tensor::from_data(TensorData::new(values, shape), device)
}
