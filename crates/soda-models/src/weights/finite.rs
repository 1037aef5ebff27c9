//! The search for values that are NaN or infinite.

use safetensors::Dtype;

/// The position of the first element that is NaN or infinite. `None` for integers.
///
/// Such elements have all bits of the exponent set, which lie in the upper two bytes of every float.
/// Comparing those is faster than converting a billion elements.
pub(crate) fn first_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<usize> {
    let exponent: u16 = match dtype {
        Dtype::F16 => 0x7c00,
        Dtype::BF16 | Dtype::F32 => 0x7f80,
        Dtype::F64 => 0x7ff0,
        _ => return None,
    };
    let width = dtype.bitsize() / 8;
    bytes.chunks_exact(width).position(|bytes| {
        u16::from_le_bytes([bytes[width - 2], bytes[width - 1]]) & exponent == exponent
    })
}
