//! Copies ahead of the products that read them.
//!
//! A training step and a forward pass read the matrices in host memory in the same order every time. A pass
//! notes that order, and the next one copies matrices before they are asked for.

use std::cell::RefCell;
use std::collections::VecDeque;

use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use crate::cuda::copy_stream::{COPIES, copy};
use crate::cuda::stream::submit;
use crate::cuda::support::empty;
use crate::host_matrix::{HostMatrix, HostNumbers, WeakHostMatrix};

/// The bytes that are copied ahead, unless one matrix has more. A block of FLUX.2 klein 4B in bf16 has
/// 245 MB.
const BYTES_AHEAD: usize = 256 << 20;

/// The passes of one thread. Outside of a pass nothing is copied ahead.
#[derive(Default)]
struct Passes {
    is_open: bool,
    /// The matrices of the last pass, in the order in which they were read.
    last: Vec<WeakHostMatrix>,
    /// Those of this pass so far.
    current: Vec<WeakHostMatrix>,
    /// Whether this pass has read what the last one read so far.
    follows: bool,
    /// Copies that are begun, in the order of the last pass.
    ahead: VecDeque<Copy>,
    /// The number of the next copy.
    number: usize,
}

struct Copy {
    matrix: HostMatrix,
    tensor: CubeTensor,
    number: usize,
}

thread_local! {
    static PASSES: RefCell<Passes> = RefCell::default();
}

/// Begins a pass on this thread. Returns whether it is one of its own: within a pass there is none.
pub(crate) fn begin_pass() -> bool {
    PASSES.with_borrow_mut(|passes| {
        let begins = !passes.is_open;
        if begins {
            (passes.is_open, passes.follows) = (true, true);
            passes.current.clear();
        }
        begins
    })
}

/// Ends the pass of this thread. No copy goes on beyond it, as a captured graph must not.
pub(crate) fn end_pass() {
    PASSES.with_borrow_mut(|passes| {
        passes.await_all();
        passes.is_open = false;
        passes.last = std::mem::take(&mut passes.current);
    });
}

/// The matrix on the CUDA device of `like`, as floats `[rows, columns]` or words `[n]`.
pub(crate) fn fetch(matrix: &HostMatrix, like: &CubeTensor) -> CubeTensor {
    PASSES.with_borrow_mut(|passes| {
        let tensor = passes.take(matrix).unwrap_or_else(|| copied(matrix, like));
        if passes.is_open {
            passes.current.push(matrix.downgrade());
            passes.copy_ahead(like);
        }
        tensor
    })
}

impl Passes {
    /// The matrix, if it was copied ahead. If another one was, this pass differs from the last.
    fn take(&mut self, matrix: &HostMatrix) -> Option<CubeTensor> {
        let place = self.current.len();
        self.follows &= self.last.get(place).is_some_and(|expected| expected.is(matrix));
        if !self.follows {
            self.await_all();
            return None;
        }
        self.ahead.pop_front().map(await_copy)
    }

    fn copy_ahead(&mut self, like: &CubeTensor) {
        if !self.follows {
            return;
        }
        let mut bytes: usize = self.ahead.iter().map(|copy| copy.matrix.bytes().len()).sum();
        let next = self.current.len() + self.ahead.len();
        let expected = self.last.iter().skip(next).map_while(WeakHostMatrix::upgrade);
        for matrix in expected {
            bytes += matrix.bytes().len();
            if self.ahead.len() == COPIES - 1 || (bytes > BYTES_AHEAD && !self.ahead.is_empty()) {
                return;
            }
            self.number = self.number.wrapping_add(1);
            let (tensor, number) = (allocated(&matrix, like), self.number);
            let source = matrix.clone();
            submit([&tensor], move |context, [address]| {
                let main = context.stream;
                context.copy_stream()?.begin(main, (number, address), source.bytes())
            });
            self.ahead.push_back(Copy { matrix, tensor, number });
        }
    }

    /// Waits for the copies that are begun and gives up their memory.
    fn await_all(&mut self) {
        self.ahead.drain(..).for_each(|copy| drop(await_copy(copy)));
    }
}

/// Lets later work wait for a copy.
fn await_copy(Copy { matrix, tensor, number }: Copy) -> CubeTensor {
    submit([&tensor], move |context, [_]| {
        let main = context.stream;
        // The matrix is held until the wait is queued, and by its network beyond that.
        let _ = &matrix;
        context.copy_stream()?.wait(main, number)
    });
    tensor
}

/// A copy in the order of the backend's stream.
fn copied(matrix: &HostMatrix, like: &CubeTensor) -> CubeTensor {
    let tensor = allocated(matrix, like);
    let source = matrix.clone();
    submit([&tensor], move |context, [address]| copy(context.stream, address, source.bytes()));
    tensor
}

/// Memory for a matrix on the device of `like`.
fn allocated(matrix: &HostMatrix, like: &CubeTensor) -> CubeTensor {
    match matrix.numbers() {
        HostNumbers::Floats { dtype, shape } => empty(like, shape.to_vec(), dtype.into()),
        HostNumbers::Codes(layout) => empty(like, vec![layout.words()], DType::I32),
    }
}
