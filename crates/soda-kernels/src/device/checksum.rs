//! Checksums of tensors, which are the same on every device.
//!
//! With the little-endian words `w₀, w₁, ...` of 32 bits of a tensor's memory, the last filled with zeros:
//!
//! ```text
//! checksum = Σᵢ mix(2³² i + wᵢ)   mod 2⁶⁴
//! ```
//!
//! `mix` is the finalizer of SplitMix64 (Steele et al., OOPSLA 2014). The sum has no order, so that a GPU
//! adds it as it likes. It finds mistakes, and is no protection against an attacker.

use burn::tensor::{FloatDType, Tensor, TensorData, bf16, f16};

use crate::cuda;

/// Returns the checksum of the values of `x`, in their own dtype.
///
/// A CUDA device computes it itself, so that nothing but the checksum is read back. Other devices are read.
pub fn checksum(x: Tensor<1>) -> u64 {
    let Some(sum) = cuda::checksum(&x) else { return checksum_of_data(&x.into_data()) };
    let data = sum.into_data();
    let (words, _) = data.as_bytes().as_chunks();
    words.first().map_or(0, |word| u64::from_le_bytes(*word))
}

/// Returns the [`checksum`] of a tensor with the values of `data`.
fn checksum_of_data(data: &TensorData) -> u64 {
    checksum_of_bytes(data.as_bytes())
}

/// Returns the [`checksum`] of a tensor with these bytes in memory.
pub(crate) fn checksum_of_bytes(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let term =
        |(index, word): (u64, &[u8; 4])| mixed(index << 32 | u64::from(u32::from_le_bytes(*word)));
    let whole = (0..).zip(words).map(term).fold(0, u64::wrapping_add);
    if rest.is_empty() {
        return whole;
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    whole.wrapping_add(term((words.len() as u64, &last)))
}

/// Returns the [`checksum`] of the values `[columns, rows]` in f32 of a matrix `[rows, columns]` of `dtype`
/// with these bytes in memory. `None` for a dtype other than f32, f16 and bf16.
pub(crate) fn checksum_of_transposed(
    dtype: FloatDType,
    shape: [usize; 2],
    bytes: &[u8],
) -> Option<u64> {
    let halves = bytes.as_chunks::<2>().0.iter().copied();
    let singles = bytes.as_chunks::<4>().0.iter().copied();
    Some(match dtype {
        FloatDType::F32 => sum_transposed(shape, singles.map(f32::from_le_bytes)),
        FloatDType::F16 => sum_transposed(shape, halves.map(|x| f16::from_le_bytes(x).to_f32())),
        FloatDType::BF16 => sum_transposed(shape, halves.map(|x| bf16::from_le_bytes(x).to_f32())),
        _ => return None,
    })
}

/// The terms of the `values` of a matrix `[rows, columns]`, in row-major order, at their places in the
/// transpose.
fn sum_transposed([rows, columns]: [usize; 2], mut values: impl Iterator<Item = f32>) -> u64 {
    let mut sum = 0_u64;
    for row in 0..rows {
        for (column, value) in values.by_ref().take(columns).enumerate() {
            let place = (column * rows + row) as u64;
            sum = sum.wrapping_add(mixed(place << 32 | u64::from(value.to_bits())));
        }
    }
    sum
}

/// The finalizer of SplitMix64.
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use burn::tensor::{DType, Device};

    use super::*;

    /// The first numbers of SplitMix64 from the seed 0, by the reference of its authors.
    #[test]
    fn terms_are_those_of_splitmix64() {
        let golden = 0x9e37_79b9_7f4a_7c15_u64;
        let numbers = [0, golden, golden.wrapping_mul(2)].map(mixed);
        assert_eq!(numbers, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
    }

    /// Also for values of an odd number of bytes, and for more values than a block of a GPU takes.
    #[test]
    fn a_checksum_is_that_of_every_device_and_changes_with_any_value() {
        let device = Device::default();
        for count in [1, 2, 1023, (1 << 20) + 3] {
            let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.37).sin()).collect();
            for dtype in [DType::F32, DType::F16] {
                let data = TensorData::new(values.clone(), [count]).convert_dtype(dtype);
                let x = Tensor::<1>::from_data(data.clone(), (&device, dtype));
                let expected = checksum_of_data(&data);
                assert_eq!(checksum(x.clone()), expected, "{count} {dtype:?}");
                let changed = x.clone().slice_fill(count - 1..count, 2.0);
                assert_ne!(checksum(changed), expected, "{count} {dtype:?}");
                if count > 1 {
                    assert_ne!(checksum(x.flip([0])), expected, "{count} {dtype:?}");
                }
            }
        }
    }

    #[test]
    fn the_checksum_of_a_matrix_in_host_memory_is_that_of_its_transpose_in_f32() {
        let [rows, columns] = [5, 3];
        let values: Vec<f32> = (0..15).map(|i| (i as f32 * 0.37).sin()).collect();
        for dtype in [FloatDType::F32, FloatDType::F16, FloatDType::BF16] {
            let data = TensorData::new(values.clone(), [rows, columns]).convert_dtype(dtype.into());
            let x = Tensor::<2>::from_data(data.clone(), (&Device::default(), DType::from(dtype)));
            let flat = x.transpose().cast(DType::F32).reshape([rows * columns]);
            let found = checksum_of_transposed(dtype, [rows, columns], data.as_bytes());
            assert_eq!(found, Some(checksum(flat)), "{dtype:?}");
        }
        assert_eq!(checksum_of_transposed(FloatDType::F64, [1, 1], &[0; 8]), None);
    }
}
