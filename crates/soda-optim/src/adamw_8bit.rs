//! AdamW with 8-bit moments (Dettmers et al., arXiv 2110.02861).
//!
//! Each block of 256 values of a moment is divided by its largest magnitude and rounded to the dynamic map of
//! bitsandbytes, one byte for each value.
//!
//! The map has seven decades below 1. Decade `i` is `(10^(i-7), 10^(i-6)]`. It is divided into `2^i` equal
//! intervals for signed values and into twice as many for unsigned values; a code stands for the middle of
//! its interval. The two remaining codes stand for 0 and 1.
//!
//! A step decodes each moment, updates and uses it in float32, and encodes it again. Parameters with fewer
//! than 4096 elements keep their moments in float32, as in bitsandbytes.

use burn::optim::{LearningRate, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{DType, Device, Int, IntDType, Tensor, TensorData};

const BLOCK: usize = 256;
/// The moments of a parameter with fewer elements stay in float32.
const MIN_8BIT_SIZE: usize = 4096;
const B1: f64 = 0.9;
const B2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
const DECADES: usize = 7;
/// The code of 0.
const ZERO: usize = 254;
/// The code of 1, and the last of all codes.
const ONE: usize = 255;

/// AdamW with 8-bit moments, as a burn [`Optimizer`]. `β1 = 0.9`, `β2 = 0.999`, `ε = 1e-8`.
#[derive(Clone, Debug)]
pub struct AdamW8bit {
    /// The decoupled weight decay.
    pub weight_decay: f64,
}

/// The number of steps done and both moments of one parameter (or batch of parameters).
#[derive(Clone, Debug)]
pub struct AdamW8bitState {
    time: usize,
    m: Moment,
    v: Moment,
}

/// A flat moment.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are two moments for each shape of parameters")]
enum Moment {
    Plain(Tensor<1>),
    /// Codes `[blocks, BLOCK]` (u8), and the largest magnitude of each block, `[blocks, 1]`.
    Coded(Tensor<2, Int>, Tensor<2>),
}

impl Optimizer for AdamW8bit {
    type State<const D: usize> = AdamW8bitState;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        x: Tensor<D>,
        g: Tensor<D>,
        state: Option<AdamW8bitState>,
    ) -> (Tensor<D>, Option<AdamW8bitState>) {
        let dims = x.dims();
        let count = dims.iter().product();
        if count == 0 {
            return (x, state);
        }
        // The size of one parameter in a batch `[parameters, rows, columns]`.
        let coded = dims[D.saturating_sub(2)..].iter().product::<usize>() >= MIN_8BIT_SIZE;
        let g = g.reshape([count]);
        let (time, m, v) = match state {
            Some(AdamW8bitState { time, m, v }) => {
                (time + 1, m.decode(Map::Signed, count), v.decode(Map::Unsigned, count))
            }
            None => (1, g.zeros_like(), g.zeros_like()),
        };
        let m = m.mul_scalar(B1) + g.clone().mul_scalar(1.0 - B1);
        let v = v.mul_scalar(B2) + g.square().mul_scalar(1.0 - B2);
        let bias = |b: f64| 1.0 - b.powi(time as i32);
        let direction = m.clone().div_scalar(bias(B1))
            / v.clone().div_scalar(bias(B2)).sqrt().add_scalar(EPSILON);
        let x = x.mul_scalar(1.0 - lr * self.weight_decay) - direction.reshape(dims).mul_scalar(lr);
        let stored = |map: Map, x| if coded { map.encode(x) } else { Moment::Plain(x) };
        let state = AdamW8bitState { time, m: stored(Map::Signed, m), v: stored(Map::Unsigned, v) };
        (x, Some(state))
    }

    fn to_device<const D: usize>(state: AdamW8bitState, device: &Device) -> AdamW8bitState {
        let moved = |moment| match moment {
            Moment::Plain(x) => Moment::Plain(x.to_device(device)),
            Moment::Coded(codes, scales) => {
                Moment::Coded(codes.to_device(device), scales.to_device(device))
            }
        };
        AdamW8bitState { time: state.time, m: moved(state.m), v: moved(state.v) }
    }
}

impl Moment {
    fn decode(self, map: Map, count: usize) -> Tensor<1> {
        match self {
            Self::Plain(x) => x,
            Self::Coded(codes, scales) => {
                let [blocks, _] = codes.dims();
                let table = map.table();
                let table =
                    Tensor::<1>::from_data(TensorData::new(table, [ONE + 1]), &codes.device());
                let values = table.select(0, codes.cast(IntDType::I32).flatten::<1>(0, 1));
                let values = values.reshape([blocks, BLOCK]) * scales;
                values.flatten::<1>(0, 1).narrow(0, 0, count)
            }
        }
    }

    fn flatten(&self, prefix: &str, out: &mut StateSink) {
        match self {
            Self::Plain(x) => out.push_tensor(prefix, "plain", x.to_data()),
            Self::Coded(codes, scales) => {
                // Checkpoint files hold float tensors only; float32 represents every byte exactly.
                let codes = codes.to_data().convert_dtype(DType::F32);
                out.push_tensor(prefix, "codes", codes);
                out.push_tensor(prefix, "scales", scales.to_data());
            }
        }
    }

    fn unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        if let Some(data) = src.take_tensor(prefix, "plain") {
            return (data.rank() == 1).then(|| Self::Plain(Tensor::from_data(data, device)));
        }
        let (codes, scales) =
            (src.take_tensor(prefix, "codes")?, src.take_tensor(prefix, "scales")?);
        let fits = codes.rank() == 2 && scales.rank() == 2;
        fits.then(|| {
            let codes = Tensor::<2>::from_data(codes, device).int().cast(IntDType::U8);
            Self::Coded(codes, Tensor::from_data(scales, device))
        })
    }
}

impl RecordState for AdamW8bitState {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_scalar(prefix, "time", self.time.into());
        self.m.flatten(&format!("{prefix}.m"), out);
        self.v.flatten(&format!("{prefix}.v"), out);
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        Some(Self {
            time: src.take_scalar(prefix, "time")?.try_into().ok()?,
            m: Moment::unflatten(&format!("{prefix}.m"), src, device)?,
            v: Moment::unflatten(&format!("{prefix}.v"), src, device)?,
        })
    }
}

/// The two dynamic maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Map {
    /// Codes of positive values, followed by the codes of negative values.
    Signed,
    /// Codes of positive values.
    Unsigned,
}

impl Map {
    /// The number of intervals of the lowest decade; each next decade has twice as many.
    fn first(self) -> usize {
        if self == Self::Signed { 1 } else { 2 }
    }

    /// The number of intervals of all decades.
    fn intervals(self) -> usize {
        self.first() * ((1 << DECADES) - 1)
    }

    /// The value of each code.
    fn table(self) -> Vec<f32> {
        let mut table = vec![0.0; ONE + 1];
        table[ONE] = 1.0;
        for decade in 0..DECADES {
            let (intervals, unit) = (self.first() << decade, 10_f64.powi(decade as i32 - 6));
            for interval in 0..intervals {
                let middle = (0.1 + 0.9 * (interval as f64 + 0.5) / intervals as f64) * unit;
                // The decades below have `first (2^decade - 1)` intervals.
                let code = self.first() * ((1 << decade) - 1) + interval;
                table[code] = middle as f32;
                if self == Self::Signed {
                    table[self.intervals() + code] = -middle as f32;
                }
            }
        }
        table
    }

    /// Encodes `x`, padded with zeros to whole blocks: the code of a value is that of the interval it lies
    /// in.
    fn encode(self, x: Tensor<1>) -> Moment {
        let count = x.dims()[0];
        let blocks = count.div_ceil(BLOCK);
        let padding = Tensor::zeros([blocks * BLOCK - count], (&x.device(), x.dtype()));
        let x: Tensor<2> = Tensor::cat(vec![x, padding], 0).reshape([blocks, BLOCK]);
        let scales = x.clone().abs().max_dim(1);
        // A block of zeros has the scale 0; any divisor leaves its values zero.
        let divisor = scales.clone().mask_fill(scales.clone().equal_elem(0.0), 1.0);
        let x = x / divisor;
        let a = x.clone().abs();

        let log10 = a.clone().clamp_min(1e-7).log().div_scalar(std::f64::consts::LN_10);
        let decade = log10.floor().add_scalar(DECADES as f64).clamp(0.0, DECADES as f64 - 1.0);
        let power = |base: f64, exponent: Tensor<2>| exponent.mul_scalar(base.ln()).exp();
        // `exp(n ln 2)` is a power of two after rounding.
        let intervals = power(2.0, decade.clone()).mul_scalar(self.first() as f64).round();
        let exponent = decade.mul_scalar(-1.0).add_scalar(DECADES as f64 - 1.0);
        let position = (a.clone() * power(10.0, exponent)).sub_scalar(0.1).div_scalar(0.9);
        let last_interval = intervals.clone().sub_scalar(1.0);
        let interval =
            (position * intervals.clone()).floor().clamp_min(0.0).min_pair(last_interval);
        let mut code = intervals.sub_scalar(self.first() as f64) + interval;
        if self == Self::Signed {
            code = code + x.clone().lower_elem(0.0).float().mul_scalar(self.intervals() as f64);
        }
        let table = self.table();
        let near_zero = a.lower_elem(f64::from(table[0]) / 2.0);
        let last = f64::from(table[self.intervals() - 1]);
        let near_one = x.greater_elem(f64::midpoint(1.0, last));
        let code = code.mask_fill(near_zero, ZERO as f64).mask_fill(near_one, ONE as f64);
        Moment::Coded(code.int().cast(IntDType::U8), scales)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use burn::optim::{AdamW, AdamWConfig};
    use burn::tensor::Distribution;

    use super::*;

    /// The fixture holds `create_dynamic_map` of bitsandbytes 0.50, sorted (generator: `adamw8.py`).
    #[test]
    fn the_maps_are_those_of_bitsandbytes() {
        let text = include_str!("../tests/fixtures/adamw8.json");
        let theirs: std::collections::BTreeMap<String, Vec<f64>> =
            serde_json::from_str(text).unwrap();
        for (map, name) in [(Map::Signed, "signed"), (Map::Unsigned, "unsigned")] {
            let mut ours = map.table();
            ours.sort_by(f32::total_cmp);
            assert_eq!(ours.len(), theirs[name].len());
            for (ours, theirs) in ours.iter().zip(&theirs[name]) {
                // bitsandbytes computes the map by sums and products in f32, which round a few times.
                let error = (f64::from(*ours) - theirs).abs();
                assert!(error <= 4.0 * f64::from(f32::EPSILON) * theirs.abs(), "{ours} {theirs}");
            }
        }
    }

    #[test]
    fn a_value_is_off_by_half_an_interval_at_most() {
        let device = Device::default();
        // Magnitudes of eight decades: some are nearly zero relative to the largest of their block.
        let exponent = Tensor::<1>::random([1000], Distribution::Uniform(-18.0, 0.0), &device);
        let sign = Tensor::<1>::random([1000], Distribution::Normal(0.0, 1.0), &device).sign();
        for (map, x) in
            [(Map::Signed, exponent.clone().exp() * sign), (Map::Unsigned, exponent.exp())]
        {
            let coded = map.encode(x.clone());
            let Moment::Coded(codes, scales) = &coded else {
                panic!("a thousand values are encoded")
            };
            assert_eq!((codes.dims(), codes.dtype()), ([4, BLOCK], DType::U8));
            let scales: Vec<f32> = scales.to_data().iter().collect();
            let found = coded.decode(map, 1000).into_data();
            for (i, (x, y)) in x.into_data().iter::<f32>().zip(found.iter::<f32>()).enumerate() {
                let scale = scales[i / BLOCK];
                let a = (x / scale).abs();
                let decade = (a.log10().floor() + 7.0).clamp(0.0, 6.0);
                let intervals = map.first() as f32 * decade.exp2();
                let half = 0.45 / intervals * 10_f32.powf(decade - 6.0);
                // A value below the map is rounded to the smallest value of the map or to zero.
                let error = (x - y).abs() / scale;
                assert!(error < 1.01 * half + 3e-7, "{map:?} {x} {y} of {scale}");
            }
        }
    }

    /// Both optimizers minimise the same quadratic: 8-bit moments change the result little. A stored state
    /// continues to the bit.
    #[test]
    fn the_result_is_nearly_that_of_adamw() {
        let device = Device::default();
        // Fixed values: the error of 8 bits depends on the largest value of a block, and so on chance.
        let mut state = 1_u32;
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        let mut random = || {
            let normal = |_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0;
            let values: Vec<f32> = (0..64 * 80).map(normal).collect();
            Tensor::<3>::from_data(TensorData::new(values, [1, 64, 80]), &device)
        };
        let (target, steepness) = (random(), random().square().add_scalar(0.1));
        let gradient = |x: &Tensor<3>| (x.clone() - target.clone()) * steepness.clone();
        let loss = |x: &Tensor<3>| gradient(x).square().mean().into_scalar::<f32>();
        let plain: AdamW = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(1e-4).build();
        let coded = AdamW8bit { weight_decay: 1e-4 };
        let (mut x, mut y) = (target.zeros_like(), target.zeros_like());
        let (mut x_state, mut y_state) = (None, None);
        let before = loss(&x);
        for step in 0..200 {
            (x, x_state) = plain.step(0.01, x.clone(), gradient(&x), x_state);
            (y, y_state) = coded.step(0.01, y.clone(), gradient(&y), y_state);
            if step == 100 {
                let mut sink = StateSink::default();
                let state: AdamW8bitState = y_state.clone().unwrap();
                state.state_flatten("p", &mut sink);
                let mut source = StateSource::new(sink.scalars.into_iter().collect());
                for (name, data) in sink.tensors {
                    source.insert_tensor(name, data);
                }
                let again = AdamW8bitState::state_unflatten("p", &mut source, &device);
                let (straight, _) = coded.step(0.01, y.clone(), gradient(&y), y_state.clone());
                let (resumed, _) = coded.step(0.01, y.clone(), gradient(&y), again);
                assert!(straight.equal(resumed).all().into_scalar::<bool>());
            }
        }
        let (x, y) = (loss(&x), loss(&y));
        assert!(x < 0.1 * before, "{x} of {before}");
        assert!((y - x).abs() < 0.02 * before, "{y} for {x}");
    }
}
