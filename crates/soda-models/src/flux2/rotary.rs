//! Rotary position embeddings over four axes: queries and keys are rotated by angles that depend on where
//! their token is.
//!
//! ```text
//! (x_2i, x_2i+1) -> rotated by p θ^(-2i/d)      for each axis with position p and d channels of a head
//! ```
//!
//! "RoFormer" (arXiv 2104.09864), with the axes of FLUX.2. Mirrors diffusers' `Flux2PosEmbed` and
//! `apply_rotary_emb`.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::config::{AXES, Flux2Config};

/// The channels of each axis and the base of the frequencies.
#[derive(Debug, Clone)]
pub struct RotaryAxes {
    /// Channels of a head that each axis rotates.
    pub channels: [usize; AXES],
    /// Base of the frequencies.
    pub theta: f64,
}

impl RotaryAxes {
    pub(super) fn new(config: &Flux2Config) -> Self {
        let mut channels = [0; AXES];
        channels.iter_mut().zip(&config.axes_dims_rope).for_each(|(to, from)| *to = *from);
        Self { channels, theta: config.rope_theta }
    }

    /// The rotations of `text` tokens and of an image of `height` x `width` tokens after them.
    ///
    /// Token `l` of the text is at `(0, 0, 0, l)`, and the token of an image at `(0, row, column, 0)`.
    pub fn rotation(
        &self,
        text: usize,
        [height, width]: [usize; 2],
        device: &Device,
    ) -> RotaryEmbedding {
        let lengths = [1, height, width, text];
        let tables: Vec<AxisTable> = (0..AXES)
            .map(|axis| AxisTable::new(self.channels[axis], lengths[axis], self.theta))
            .collect();
        let text = (0..text).map(|place| [0, 0, 0, place]);
        let image = (0..height).flat_map(|row| (0..width).map(move |column| [0, row, column, 0]));
        let positions: Vec<[usize; AXES]> = text.chain(image).collect();
        let angles = self.channels.iter().sum::<usize>() / 2;
        let tensor = |of_table: fn(&AxisTable) -> &[f32]| {
            let mut values = Vec::with_capacity(positions.len() * angles);
            for position in &positions {
                for (table, place) in tables.iter().zip(position) {
                    let row = place * table.pairs..(place + 1) * table.pairs;
                    values.extend_from_slice(&of_table(table)[row]);
                }
            }
            let shape = [1, positions.len(), 1, angles, 1];
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        RotaryEmbedding { cos: tensor(|table| &table.cos), sin: tensor(|table| &table.sin) }
    }
}

/// Cosines and sines of the positions `0, 1, ...` along one axis, `[positions, pairs]`.
struct AxisTable {
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl AxisTable {
    /// The angles are in double precision, as in diffusers.
    fn new(channels: usize, positions: usize, theta: f64) -> Self {
        let pairs = channels / 2;
        let frequency = |i: usize| theta.powf(-((2 * i) as f64) / channels as f64);
        let frequencies: Vec<f64> = (0..pairs).map(frequency).collect();
        let angles = (0..positions)
            .flat_map(|place| frequencies.iter().map(move |frequency| place as f64 * frequency));
        let (sin, cos) = angles.map(|angle| (angle.sin() as f32, angle.cos() as f32)).unzip();
        Self { pairs, cos, sin }
    }
}

/// The rotations of a sequence of tokens.
#[derive(Debug, Clone)]
pub struct RotaryEmbedding {
    /// Cosines, `[1, n, 1, d / 2, 1]`.
    cos: Tensor<5>,
    /// Sines, of the same shape.
    sin: Tensor<5>,
}

impl RotaryEmbedding {
    /// Rotates queries or keys `[b, n, heads, d]`, in f32 whatever their dtype is. Returns the same shape.
    pub fn apply(&self, x: Tensor<4>) -> Tensor<4> {
        let ([batch, tokens, heads, width], dtype) = (x.dims(), x.dtype());
        let pairs = x.cast(DType::F32).reshape([batch, tokens, heads, width / 2, 2]);
        let (even, odd) = (pairs.clone().narrow(4, 0, 1), pairs.narrow(4, 1, 1));
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        let first = even.clone() * cos.clone() - odd.clone() * sin.clone();
        let second = odd * cos + even * sin;
        Tensor::cat(vec![first, second], 4).reshape([batch, tokens, heads, width]).cast(dtype)
    }
}
