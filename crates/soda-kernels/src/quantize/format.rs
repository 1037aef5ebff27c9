//! The formats, and the tables of their values.

/// A number format of frozen weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuantFormat {
    /// Integers from -127 to 127, and one scale for each row: the largest magnitude over 127.
    Int8,
    /// Floats of 8 bits with 4 bits of exponent (E4M3 without infinities, arXiv 2209.05433), and one scale
    /// for each row: the largest magnitude over 448.
    Fp8,
    /// Quantiles of the normal distribution in 4 bits (QLoRA, arXiv 2305.14314). Blocks of 64 numbers share
    /// a scale, and the scales are integers of 8 bits with one scale for each row.
    Nf4,
}

/// The values of NF4 of bitsandbytes, ascending.
#[allow(clippy::excessive_precision, reason = "the digits of the source")]
const NF4: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

/// The middles between neighbours of [`NF4`].
const NF4_MIDDLES: [f32; 15] = {
    let (mut middles, mut index) = ([0.0; 15], 0);
    while index < 15 {
        middles[index] = (NF4[index] + NF4[index + 1]) / 2.0;
        index += 1;
    }
    middles
};

/// [`NF4_MIDDLES`], and a number that nothing exceeds.
const NF4_BOUNDS: [f32; 16] = {
    let (mut bounds, mut index) = ([f32::INFINITY; 16], 0);
    while index < 15 {
        bounds[index] = NF4_MIDDLES[index];
        index += 1;
    }
    bounds
};

/// Cells of a 32nd around the multiples of a 32nd from -1 to 1, and as many that fill the table. Each has the
/// number of [`NF4_MIDDLES`] below it. There is at most one in a cell.
const NF4_CELLS: [u8; 128] = {
    let (mut cells, mut cell) = ([0; 128], 0);
    while cell < cells.len() {
        // More than the rounding of a number to its cell.
        let low = (cell as f32 - 0.5) / 32.0 - 1.0 - 1e-5;
        let mut below = 0;
        while below < 15 && NF4_MIDDLES[below] < low {
            below += 1;
        }
        assert!(below > 13 || NF4_MIDDLES[below + 1] > low + 1.0 / 32.0 + 2e-5);
        cells[cell] = below as u8;
        cell += 1;
    }
    cells
};

/// The numbers that activations and their gradients are rounded to in the products with a quantized matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActivationFormat {
    /// The dtype of the network.
    #[default]
    Float,
    /// E4M3 with one scale for each row, as [`QuantFormat::Fp8`]. Tensor cores multiply such numbers with
    /// those of the weight.
    Fp8,
}

impl ActivationFormat {
    /// The name in settings and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float => "float",
            Self::Fp8 => "fp8",
        }
    }
}

impl QuantFormat {
    /// All formats.
    pub const ALL: [Self; 3] = [Self::Int8, Self::Fp8, Self::Nf4];

    /// The name in settings and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
            Self::Nf4 => "nf4",
        }
    }

    /// The bits of a code.
    pub const fn bits(self) -> usize {
        match self {
            Self::Int8 | Self::Fp8 => 8,
            Self::Nf4 => 4,
        }
    }

    /// The numbers that share a scale. `None` if a row does.
    pub const fn block(self) -> Option<usize> {
        match self {
            Self::Int8 | Self::Fp8 => None,
            Self::Nf4 => Some(64),
        }
    }

    /// The largest value of the table, which the largest magnitude of a block becomes.
    pub(crate) fn largest(self) -> f32 {
        match self {
            Self::Int8 => 127.0,
            Self::Fp8 => 448.0,
            Self::Nf4 => 1.0,
        }
    }

    /// The value of each code, `2^bits` of them.
    pub fn table(self) -> Vec<f32> {
        match self {
            Self::Int8 => (0..=u8::MAX).map(|code| f32::from(code as i8)).collect(),
            Self::Fp8 => (0..=u8::MAX).map(e4m3_value).collect(),
            Self::Nf4 => NF4.to_vec(),
        }
    }

    /// The code of the value that is nearest to `x`, which is at most [`largest`](Self::largest) but for
    /// roundings.
    #[inline]
    pub(super) fn code(self, x: f32) -> u8 {
        match self {
            Self::Int8 => nearest_integer(x.clamp(-127.0, 127.0)) as u8,
            Self::Fp8 => e4m3_code(x),
            Self::Nf4 => nf4_code(x),
        }
    }
}

/// The number of [`NF4_MIDDLES`] below `x`.
#[inline]
fn nf4_code(x: f32) -> u8 {
    // The last bit of a float of this size is one, so that the sum rounds to the nearest cell.
    const SHIFT: f32 = 8_388_608.0;
    let cell = ((x.clamp(-1.0, 1.0) + 1.0) * 32.0 + SHIFT).to_bits() & 127;
    let below = NF4_CELLS[cell as usize];
    below + u8::from(x > NF4_BOUNDS[usize::from(below & 15)])
}

/// The value of a code of E4M3. The codes `0x7f` and `0xff`, which are not a number, are never made.
fn e4m3_value(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa * 2f32.powi(-9),
        _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The code of E4M3 that is nearest to `x`, ties to even mantissas. Magnitudes above 448 become 448.
#[inline]
fn e4m3_code(x: f32) -> u8 {
    let magnitude = x.abs().min(448.0);
    // The exponent of the last bit of the mantissa: that of subnormal numbers at least.
    let exponent = (((magnitude.to_bits() >> 23) as i32 - 127).max(-6)) - 3;
    let inverse_step = f32::from_bits(((127 - exponent) as u32) << 23);
    // A mantissa that is rounded up to 16 carries into the exponent. Below 8 it is subnormal.
    let code = ((exponent + 9) << 3) + nearest_integer(magnitude * inverse_step);
    code as u8 | if x.is_sign_negative() { 0x80 } else { 0 }
}

/// The integer that is nearest to `x`, ties to even, for magnitudes below 2^22.
///
/// The last bit of a float of this size is one, so that the sum rounds. The baseline of x86-64 has no
/// instruction for it, and a call for each of billions of weights takes minutes.
#[inline]
fn nearest_integer(x: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    (x + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_a_table_is_its_own_code() {
        for format in QuantFormat::ALL {
            let table = format.table();
            assert_eq!(table.len(), 1 << format.bits());
            for (code, value) in table.iter().enumerate() {
                // -128 of int8, the two that are not a number of E4M3, and its negative zero.
                let unused = match format {
                    QuantFormat::Int8 => code == 0x80,
                    QuantFormat::Fp8 => code & 0x7f == 0x7f,
                    QuantFormat::Nf4 => false,
                };
                if !unused {
                    assert_eq!(usize::from(format.code(*value)), code, "{format:?}");
                    assert!(value.abs() <= format.largest());
                }
            }
        }
    }

    #[test]
    fn a_code_of_nf4_counts_the_middles_below() {
        let count = |x: f32| NF4_MIDDLES.iter().filter(|middle| x > **middle).count();
        let steps = (-300_000..=300_000).map(|step| step as f32 / 250_000.0);
        // The floats next to each middle, and numbers that are none.
        let next = |middle: f32| (-3..=3).map(move |ulp| middle.to_bits().wrapping_add_signed(ulp));
        let near = NF4_MIDDLES.into_iter().flat_map(next).map(f32::from_bits);
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0];
        for x in steps.chain(near).chain(odd) {
            assert_eq!(usize::from(nf4_code(x)), count(x), "{x}");
        }
    }

    #[test]
    fn numbers_between_values_become_the_nearest() {
        for format in QuantFormat::ALL {
            let table = format.table();
            for step in -1000..=1000 {
                let x = step as f32 / 1000.0 * format.largest();
                let found = table[usize::from(format.code(x))];
                let nearest = table
                    .iter()
                    .filter(|value| value.abs() <= format.largest())
                    .map(|value| (value - x).abs())
                    .fold(f32::INFINITY, |least, off| if off < least { off } else { least });
                assert!((found - x).abs() <= nearest * 1.00001 + 1e-9, "{format:?}: {x} {found}");
            }
        }
    }

    /// Values that PyTorch's `float8_e4m3fn` gives for these numbers.
    #[test]
    fn e4m3_rounds_as_pytorch_does() {
        let cases = [(0.0625, 0.0625), (17.0, 16.0), (19.0, 20.0), (0.001, 0.001953125)];
        for (x, expected) in cases {
            assert_eq!(e4m3_value(e4m3_code(x)), expected, "{x}");
            assert_eq!(e4m3_value(e4m3_code(-x)), -expected, "{x}");
        }
        assert_eq!(e4m3_value(e4m3_code(500.0)), 448.0);
        assert_eq!(e4m3_value(e4m3_code(0.0009)), 0.0);
    }
}
