//! AdamW whose moments take a byte a number (Dettmers et al., arXiv 2110.02861): each block of 256 is divided by its
//! largest magnitude and rounded to the dynamic map of bitsandbytes.
//!
//! The map has seven decades below 1. Decade `i` is `(10^(i-7), 10^(i-6)]`, cut into `2^i` equal parts for signed
//! numbers and twice as many for unsigned ones; a part's code stands for its middle. Two codes are left, for 0 and 1.
//! A moment is decoded, moved and used in float32, and coded again. Parameters of fewer than 4096 numbers keep theirs
//! in float32, as in bitsandbytes: they save nothing.

use burn::optim::{LearningRate, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{DType, Device, Int, IntDType, Tensor, TensorData};

const BLOCK: usize = 256;
/// A parameter with fewer numbers is not coded.
const LEAST: usize = 4096;
const B1: f64 = 0.9;
const B2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
const DECADES: usize = 7;
const ZERO: usize = 254;
const ONE: usize = 255;

/// AdamW with coded moments.
#[derive(Clone, Debug)]
pub(crate) struct AdamW8bit {
    pub(crate) weight_decay: f64,
}

/// Steps done, and both moments.
#[derive(Clone, Debug)]
pub(crate) struct AdamW8State {
    time: usize,
    m: Moment,
    v: Moment,
}

/// A moment, flat.
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there are two for each shape of parameters")]
enum Moment {
    Plain(Tensor<1>),
    /// Codes `[blocks, BLOCK]` in bytes, and the largest magnitude of each block, `[blocks, 1]`.
    Coded(Tensor<2, Int>, Tensor<2>),
}

impl Optimizer for AdamW8bit {
    type State<const D: usize> = AdamW8State;

    fn step<const D: usize>(
        &self,
        lr: LearningRate,
        x: Tensor<D>,
        g: Tensor<D>,
        state: Option<AdamW8State>,
    ) -> (Tensor<D>, Option<AdamW8State>) {
        let dims = x.dims();
        let count = dims.iter().product();
        if count == 0 {
            return (x, state);
        }
        // Of a stack `[parameters, rows, columns]`, what one parameter has.
        let coded = dims[D.saturating_sub(2)..].iter().product::<usize>() >= LEAST;
        let g = g.reshape([count]);
        let (time, m, v) = match state {
            Some(AdamW8State { time, m, v }) => {
                (time + 1, m.decode(Map::Signed, count), v.decode(Map::Unsigned, count))
            }
            None => (1, g.zeros_like(), g.zeros_like()),
        };
        let m = m.mul_scalar(B1) + g.clone().mul_scalar(1.0 - B1);
        let v = v.mul_scalar(B2) + g.square().mul_scalar(1.0 - B2);
        let bias = |b: f64| 1.0 - b.powi(time as i32);
        let way = m.clone().div_scalar(bias(B1))
            / v.clone().div_scalar(bias(B2)).sqrt().add_scalar(EPSILON);
        let x = x.mul_scalar(1.0 - lr * self.weight_decay) - way.reshape(dims).mul_scalar(lr);
        let keep = |map: Map, x| if coded { map.encode(x) } else { Moment::Plain(x) };
        let state = AdamW8State { time, m: keep(Map::Signed, m), v: keep(Map::Unsigned, v) };
        (x, Some(state))
    }

    fn to_device<const D: usize>(state: AdamW8State, device: &Device) -> AdamW8State {
        let moved = |moment| match moment {
            Moment::Plain(x) => Moment::Plain(x.to_device(device)),
            Moment::Coded(codes, scales) => {
                Moment::Coded(codes.to_device(device), scales.to_device(device))
            }
        };
        AdamW8State { time: state.time, m: moved(state.m), v: moved(state.v) }
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
                // Bytes as numbers that every file of tensors has; they are exact.
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

impl RecordState for AdamW8State {
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

/// Which of the two dynamic maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Map {
    /// Parts of positive numbers, then the same of negative ones.
    Signed,
    Unsigned,
}

impl Map {
    /// The number of parts of the lowest decade; each next one has twice as many.
    fn first(self) -> usize {
        if self == Self::Signed { 1 } else { 2 }
    }

    /// Parts of all decades.
    fn parts(self) -> usize {
        self.first() * ((1 << DECADES) - 1)
    }

    /// What each code stands for.
    fn table(self) -> Vec<f32> {
        let mut table = vec![0.0; ONE + 1];
        table[ONE] = 1.0;
        for decade in 0..DECADES {
            let (parts, unit) = (self.first() << decade, 10_f64.powi(decade as i32 - 6));
            for part in 0..parts {
                let middle = (0.1 + 0.9 * (part as f64 + 0.5) / parts as f64) * unit;
                // The decades below have `first (2^decade - 1)` parts.
                let code = self.first() * ((1 << decade) - 1) + part;
                table[code] = middle as f32;
                if self == Self::Signed {
                    table[self.parts() + code] = -middle as f32;
                }
            }
        }
        table
    }

    /// `x`, padded with zeros to whole blocks, as codes: each number's is that of the part it lies in.
    fn encode(self, x: Tensor<1>) -> Moment {
        let count = x.dims()[0];
        let blocks = count.div_ceil(BLOCK);
        let rest = Tensor::zeros([blocks * BLOCK - count], (&x.device(), x.dtype()));
        let x: Tensor<2> = Tensor::cat(vec![x, rest], 0).reshape([blocks, BLOCK]);
        let scales = x.clone().abs().max_dim(1);
        // A block of zeros is one of zeros at any scale.
        let divisor = scales.clone().mask_fill(scales.clone().equal_elem(0.0), 1.0);
        let x = x / divisor;
        let a = x.clone().abs();

        let log10 = a.clone().clamp_min(1e-7).log().div_scalar(std::f64::consts::LN_10);
        let decade = log10.floor().add_scalar(DECADES as f64).clamp(0.0, DECADES as f64 - 1.0);
        let power = |base: f64, of: Tensor<2>| of.mul_scalar(base.ln()).exp();
        // A power of two by way of the exponential is one after rounding.
        let parts = power(2.0, decade.clone()).mul_scalar(self.first() as f64).round();
        let up = decade.mul_scalar(-1.0).add_scalar(DECADES as f64 - 1.0);
        let place = (a.clone() * power(10.0, up)).sub_scalar(0.1).div_scalar(0.9);
        let part =
            (place * parts.clone()).floor().clamp_min(0.0).min_pair(parts.clone().sub_scalar(1.0));
        let mut code = parts.sub_scalar(self.first() as f64) + part;
        if self == Self::Signed {
            code = code + x.clone().lower_elem(0.0).float().mul_scalar(self.parts() as f64);
        }
        let table = self.table();
        let near_zero = a.lower_elem(f64::from(table[0]) / 2.0);
        let last = f64::from(table[self.parts() - 1]);
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

    /// `create_dynamic_map` of bitsandbytes 0.50, sorted: a file of `docs/reference/adamw8.py`.
    #[test]
    fn the_maps_are_those_of_bitsandbytes() {
        let text = include_str!("../../tests/fixtures/adamw8.json");
        let theirs: std::collections::BTreeMap<String, Vec<f64>> =
            serde_json::from_str(text).unwrap();
        for (map, name) in [(Map::Signed, "signed"), (Map::Unsigned, "unsigned")] {
            let mut ours = map.table();
            ours.sort_by(f32::total_cmp);
            assert_eq!(ours.len(), theirs[name].len());
            for (ours, theirs) in ours.iter().zip(&theirs[name]) {
                // Theirs are sums and products in f32: a few roundings.
                let off = (f64::from(*ours) - theirs).abs();
                assert!(off <= 4.0 * f64::from(f32::EPSILON) * theirs.abs(), "{ours} {theirs}");
            }
        }
    }

    #[test]
    fn a_number_is_off_by_half_a_part_at_most() {
        let device = Device::default();
        // Magnitudes of eight decades, so that some are nearly zero beside the largest of their block.
        let exponent = Tensor::<1>::random([1000], Distribution::Uniform(-18.0, 0.0), &device);
        let sign = Tensor::<1>::random([1000], Distribution::Normal(0.0, 1.0), &device).sign();
        for (map, x) in
            [(Map::Signed, exponent.clone().exp() * sign), (Map::Unsigned, exponent.exp())]
        {
            let coded = map.encode(x.clone());
            let Moment::Coded(codes, scales) = &coded else { panic!("a thousand are coded") };
            assert_eq!((codes.dims(), codes.dtype()), ([4, BLOCK], DType::U8));
            let scales: Vec<f32> = scales.to_data().iter().collect();
            let found = coded.decode(map, 1000).into_data();
            for (i, (x, y)) in x.into_data().iter::<f32>().zip(found.iter::<f32>()).enumerate() {
                let scale = scales[i / BLOCK];
                let a = (x / scale).abs();
                let decade = (a.log10().floor() + 7.0).clamp(0.0, 6.0);
                let parts = map.first() as f32 * decade.exp2();
                let half = 0.45 / parts * 10_f32.powf(decade - 6.0);
                // Below the map a number is rounded to its least one or to zero.
                let off = (x - y).abs() / scale;
                assert!(off < 1.01 * half + 3e-7, "{map:?} {x} {y} of {scale}");
            }
        }
    }

    /// The same quadratic by both: the coded moments cost little of the way. And a state that was stored goes on to
    /// the bit.
    #[test]
    fn the_way_is_nearly_that_of_adamw() {
        let device = Device::default();
        let random = || Tensor::<3>::random([1, 64, 80], Distribution::Normal(0.0, 1.0), &device);
        let (target, steepness) = (random(), random().square().add_scalar(0.1));
        let slope = |x: &Tensor<3>| (x.clone() - target.clone()) * steepness.clone();
        let loss = |x: &Tensor<3>| slope(x).square().mean().into_scalar::<f32>();
        let plain: AdamW = AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(1e-4).build();
        let coded = AdamW8bit { weight_decay: 1e-4 };
        let (mut x, mut y) = (target.zeros_like(), target.zeros_like());
        let (mut of_x, mut of_y) = (None, None);
        let before = loss(&x);
        for step in 0..200 {
            (x, of_x) = plain.step(0.01, x.clone(), slope(&x), of_x);
            (y, of_y) = coded.step(0.01, y.clone(), slope(&y), of_y);
            if step == 100 {
                let mut sink = StateSink::default();
                let state: AdamW8State = of_y.clone().unwrap();
                state.state_flatten("p", &mut sink);
                let mut source = StateSource::new(sink.scalars.into_iter().collect());
                for (name, data) in sink.tensors {
                    source.insert_tensor(name, data);
                }
                let again = AdamW8State::state_unflatten("p", &mut source, &device);
                let (straight, _) = coded.step(0.01, y.clone(), slope(&y), of_y.clone());
                let (resumed, _) = coded.step(0.01, y.clone(), slope(&y), again);
                assert!(straight.equal(resumed).all().into_scalar::<bool>());
            }
        }
        let (x, y) = (loss(&x), loss(&y));
        assert!(x < 0.1 * before, "{x} of {before}");
        assert!((y - x).abs() < 0.02 * before, "{y} for {x}");
    }
}
