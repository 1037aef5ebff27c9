//! Many small copies in few launches (`multi_tensor.cu`).

use burn::backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use crate::cuda::stream;
use crate::cuda::support::empty;

/// The copies of one launch: as many as its argument of at most 4096 bytes can list.
const COPIES: usize = 160;
/// The threads of a block, and the bytes that one of them copies before there is a second block.
const THREADS: usize = 256;
const BYTES_PER_THREAD: usize = 64;

/// Concatenates tensors of one dtype into a vector.
pub(crate) fn cat(tensors: Vec<CubeTensor>) -> CubeTensor {
    let tensors: Vec<_> = tensors.into_iter().map(into_contiguous).collect();
    let total = tensors.iter().map(|x| x.shape().num_elements()).sum();
    let out = empty(&tensors[0], vec![total], tensors[0].dtype);
    let mut offset = 0;
    for tensors in tensors.chunks(COPIES) {
        let sizes: Vec<_> = tensors.iter().map(bytes).collect();
        let all: Vec<_> = tensors.iter().chain([&out]).collect();
        let first = offset;
        offset += sizes.iter().sum::<u64>();
        copy(&all, move |addresses| {
            let (from, to) = addresses.split_at(sizes.len());
            consecutive(to[0] + first, &sizes)
                .zip(from)
                .map(|((to, n), &from)| [from, to, n])
                .collect()
        });
    }
    out
}

/// Splits a vector into vectors of these lengths.
pub(crate) fn split(x: CubeTensor, lengths: &[usize]) -> Vec<CubeTensor> {
    let x = into_contiguous(x);
    let parts: Vec<_> = lengths.iter().map(|&n| empty(&x, vec![n], x.dtype)).collect();
    let mut offset = 0;
    for parts in parts.chunks(COPIES) {
        let sizes: Vec<_> = parts.iter().map(bytes).collect();
        let all: Vec<_> = parts.iter().chain([&x]).collect();
        let first = offset;
        offset += sizes.iter().sum::<u64>();
        copy(&all, move |addresses| {
            let (to, from) = addresses.split_at(sizes.len());
            consecutive(from[0] + first, &sizes)
                .zip(to)
                .map(|((from, n), &to)| [from, to, n])
                .collect()
        });
    }
    parts
}

/// Copies each second tensor into the memory of the first, which is contiguous and has the same size.
pub(crate) fn overwrite(pairs: Vec<(CubeTensor, CubeTensor)>) {
    let pairs: Vec<_> = pairs.into_iter().map(|(to, from)| (to, into_contiguous(from))).collect();
    for pairs in pairs.chunks(COPIES) {
        let sizes: Vec<_> = pairs.iter().map(|(_, from)| bytes(from)).collect();
        let all: Vec<_> = pairs.iter().flat_map(|(to, from)| [to, from]).collect();
        copy(&all, move |addresses| {
            addresses.chunks(2).zip(&sizes).map(|(pair, &n)| [pair[1], pair[0], n]).collect()
        });
    }
}

fn bytes(x: &CubeTensor) -> u64 {
    (x.shape().num_elements() * x.dtype.size()) as u64
}

/// The addresses and sizes of consecutive pieces of these sizes, from the address `first` on.
fn consecutive(first: u64, sizes: &[u64]) -> impl Iterator<Item = (u64, u64)> {
    sizes.iter().scan(first, |next, &size| {
        let address = *next;
        *next += size;
        Some((address, size))
    })
}

/// Launches at most [`COPIES`] copies `[from, to, bytes]`, which `copies` computes from the addresses of
/// `tensors`.
fn copy(tensors: &[&CubeTensor], copies: impl FnOnce(&[u64]) -> Vec<[u64; 3]> + Send + 'static) {
    stream::submit_all(tensors, move |context, addresses| {
        let copies = copies(addresses);
        let mut fields = [0; 3 * COPIES];
        for (i, copy) in copies.iter().enumerate() {
            for (field, value) in copy.iter().enumerate() {
                fields[field * COPIES + i] = *value;
            }
        }
        let longest = copies.iter().map(|[_, _, bytes]| *bytes).max().unwrap_or(0) as usize;
        let blocks = longest.div_ceil(THREADS * BYTES_PER_THREAD).clamp(1, 256);
        let (name, grid) = (entry!("multi_tensor_copy"), [blocks, copies.len()]);
        context.launcher.launch_struct(name, grid, THREADS, &mut fields)
    });
}
