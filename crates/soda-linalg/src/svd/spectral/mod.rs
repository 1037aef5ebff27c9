//! The thin singular value decomposition of a batch of matrices by spectral divide and conquer.
//!
//! The algorithm consists of matrix products, for devices with fast products (Nakatsukasa and Higham, SIAM J.
//! Sci. Comput. 2013). It has two steps: the polar decomposition `A = Up H`, and the eigenvectors `V` of the
//! symmetric `H`, so that `U = Up V`.
//!
//! | file | contents |
//! |---|---|
//! | `batch` | groups matrices by shape, and rejects inaccurate factors |
//! | `decompose` | both steps, the order of the singular values, signs and errors |
//! | `polar` | the polar factor, the limit of `X <- X (a I + b XᵀX + c (XᵀX)²)` |
//! | `eigenvectors` | the levels of the division, and the host's part |
//! | `divide` | the division of one level |
//! | `norms`, `ordering`, `indicator`, `noise` | sums, ranks, comparisons and random numbers as tensors |
//!
//! The host chooses the sizes. It reads back how many eigenvalues lie above each point of division, and one
//! norm for each step of an iteration.

mod batch;
mod decompose;
mod divide;
mod eigenvectors;
mod indicator;
mod noise;
mod norms;
mod ordering;
mod polar;

pub(super) use batch::thin_batch;
