//! The transposition of a matrix in host memory.

use burn::tensor::TensorData;

/// Transposes a matrix in host memory: `[rows, columns]` to `[columns, rows]`, in row-major order.
///
/// # Panics
/// If `data` is not a matrix of elements of 2, 4 or 8 bytes.
pub fn transposed(data: &TensorData) -> TensorData {
    let shape = data.shape();
    let (rows, columns) = (shape[0], shape[1]);
    let bytes = match data.dtype().size() {
        2 => transposed_elements::<2>(data.as_bytes(), rows, columns),
        4 => transposed_elements::<4>(data.as_bytes(), rows, columns),
        _ => transposed_elements::<8>(data.as_bytes(), rows, columns),
    };
    TensorData::from_bytes_vec(bytes, [columns, rows], data.dtype())
}

/// Transposes a matrix of elements of `W` bytes, in tiles that stay in the cache.
fn transposed_elements<const W: usize>(bytes: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    const TILE: usize = 32;
    let mut out = vec![0; bytes.len()];
    let (from, _) = bytes.as_chunks::<W>();
    let (to, _) = out.as_chunks_mut::<W>();
    for top in (0..rows).step_by(TILE) {
        for left in (0..columns).step_by(TILE) {
            let (bottom, right) = ((top + TILE).min(rows), (left + TILE).min(columns));
            for column in left..right {
                let target = &mut to[column * rows + top..column * rows + bottom];
                for (row, target) in (top..bottom).zip(target) {
                    *target = from[row * columns + column];
                }
            }
        }
    }
    out
}
