//! Many small copies in few launches.

use burn::backend::TensorMetadata;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::launch::empty;
use super::session;

/// Copies of one launch: what its one argument, of at most 4096 bytes, can list.
const COPIES: usize = 160;
/// Threads of a block, and what one of them copies before there is a second block, in bytes.
const THREADS: usize = 256;
const EACH: usize = 64;

/// Tensors one after the other.
pub(crate) fn cat(tensors: Vec<CubeTensor>) -> CubeTensor {
    let tensors: Vec<_> = tensors.into_iter().map(into_contiguous).collect();
    let total = tensors.iter().map(|x| x.shape().num_elements()).sum();
    let out = empty(&tensors[0], vec![total], tensors[0].dtype);
    let mut at = 0;
    for tensors in tensors.chunks(COPIES) {
        let sizes: Vec<_> = tensors.iter().map(bytes).collect();
        let all: Vec<_> = tensors.iter().chain([&out]).collect();
        let first = at;
        at += sizes.iter().sum::<u64>();
        run(&all, move |addresses| {
            let (from, to) = addresses.split_at(sizes.len());
            one_by_one(to[0] + first, &sizes)
                .zip(from)
                .map(|((to, n), &from)| [from, to, n])
                .collect()
        });
    }
    out
}

/// Vectors of these lengths out of one.
pub(crate) fn split(x: CubeTensor, lengths: &[usize]) -> Vec<CubeTensor> {
    let x = into_contiguous(x);
    let parts: Vec<_> = lengths.iter().map(|&n| empty(&x, vec![n], x.dtype)).collect();
    let mut at = 0;
    for parts in parts.chunks(COPIES) {
        let sizes: Vec<_> = parts.iter().map(bytes).collect();
        let all: Vec<_> = parts.iter().chain([&x]).collect();
        let first = at;
        at += sizes.iter().sum::<u64>();
        run(&all, move |addresses| {
            let (to, from) = addresses.split_at(sizes.len());
            one_by_one(from[0] + first, &sizes)
                .zip(to)
                .map(|((from, n), &to)| [from, to, n])
                .collect()
        });
    }
    parts
}

/// Puts each second tensor into the memory of the first, which is contiguous and of its size.
pub(crate) fn overwrite(pairs: Vec<(CubeTensor, CubeTensor)>) {
    let pairs: Vec<_> = pairs.into_iter().map(|(to, from)| (to, into_contiguous(from))).collect();
    for pairs in pairs.chunks(COPIES) {
        let sizes: Vec<_> = pairs.iter().map(|(_, from)| bytes(from)).collect();
        let all: Vec<_> = pairs.iter().flat_map(|(to, from)| [to, from]).collect();
        run(&all, move |addresses| {
            addresses.chunks(2).zip(&sizes).map(|(pair, &n)| [pair[1], pair[0], n]).collect()
        });
    }
}

fn bytes(x: &CubeTensor) -> u64 {
    (x.shape().num_elements() * x.dtype.size()) as u64
}

/// The places of pieces of these sizes from `first` on, with their sizes.
fn one_by_one(first: u64, sizes: &[u64]) -> impl Iterator<Item = (u64, u64)> {
    sizes.iter().scan(first, |at, &size| {
        let place = *at;
        *at += size;
        Some((place, size))
    })
}

/// At most [`COPIES`] copies, `[from, to, bytes]` each, between the `tensors` whose addresses they come from.
fn run(tensors: &[&CubeTensor], copies: impl FnOnce(&[u64]) -> Vec<[u64; 3]> + Send + 'static) {
    session::submit_all(tensors, move |session, addresses| {
        let copies = copies(addresses);
        let mut table = [0; 3 * COPIES];
        for (i, copy) in copies.iter().enumerate() {
            for (field, value) in copy.iter().enumerate() {
                table[field * COPIES + i] = *value;
            }
        }
        let longest = copies.iter().map(|[_, _, bytes]| *bytes).max().unwrap_or(0) as usize;
        let blocks = longest.div_ceil(THREADS * EACH).clamp(1, 256);
        session.launch_table("copies", [blocks, copies.len()], THREADS, &mut table)
    });
}
