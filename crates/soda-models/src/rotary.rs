//! Rotary position embeddings over several axes: queries and keys are rotated by angles that depend on where
//! their token is.
//!
//! ```text
//! (x_2i, x_2i+1) -> rotated by p θ^(-2i/d)      for each axis with position p and d channels of a head
//! ```
//!
//! "RoFormer" (arXiv 2104.09864), with the axes of image transformers. Mirrors diffusers' `apply_rotary_emb`
//! of adjacent channels, the `Flux2PosEmbed` of FLUX.2 and the `RopeEmbedder` of Z-Image.

use burn::tensor::{Device, Tensor, TensorData};
pub use soda_kernels::RotaryEmbedding;

/// The channels of each of `N` axes and the base of the frequencies.
#[derive(Debug, Clone)]
pub struct RotaryAxes<const N: usize> {
    /// Channels of a head that each axis rotates.
    pub channels: [usize; N],
    /// Base of the frequencies.
    pub theta: f64,
}

impl<const N: usize> RotaryAxes<N> {
    /// Takes the channels of a config, which has checked that there are `N`.
    pub(crate) fn new(channels_of: &[usize], theta: f64) -> Self {
        let mut channels = [0; N];
        channels.iter_mut().zip(channels_of).for_each(|(to, from)| *to = *from);
        Self { channels, theta }
    }

    /// The rotations of tokens at `positions`, one list for each sample or one for all of them. All lists
    /// have one length.
    ///
    /// The angles are in double precision, as for FLUX.2 in diffusers. For Z-Image diffusers rounds them to
    /// f32, which is 3e-5 at most.
    pub fn rotation(&self, positions: &[Vec<[usize; N]>], device: &Device) -> RotaryEmbedding {
        let last = |axis: usize| positions.iter().flatten().map(|place| place[axis]).max();
        let tables: Vec<AxisTable> = (0..N)
            .map(|axis| {
                let places = last(axis).map_or(0, |place| place + 1);
                AxisTable::new(self.channels[axis], places, self.theta)
            })
            .collect();
        let width = self.channels.iter().sum::<usize>();
        let tokens = positions.first().map_or(0, Vec::len);
        let tensor = |of_table: fn(&AxisTable) -> &[f32], of_even: f32| {
            let mut values = Vec::with_capacity(positions.len() * tokens * width);
            for position in positions.iter().flatten() {
                for (table, place) in tables.iter().zip(position) {
                    let row = &of_table(table)[place * table.pairs..(place + 1) * table.pairs];
                    values.extend(row.iter().flat_map(|value| [of_even * value, *value]));
                }
            }
            Tensor::from_data(TensorData::new(values, [positions.len(), tokens, 1, width]), device)
        };
        RotaryEmbedding {
            cos: tensor(|table| &table.cos, 1.0),
            sin: tensor(|table| &table.sin, -1.0),
        }
    }
}

/// Cosines and sines of the positions `0, 1, ...` along one axis, `[positions, pairs]`.
struct AxisTable {
    pairs: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl AxisTable {
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
