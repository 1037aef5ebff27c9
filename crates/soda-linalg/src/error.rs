//! The errors of this crate, each with the matrix or the file that caused it.

use std::io;
use std::path::PathBuf;

use burn::tensor::TensorReadError;
use thiserror::Error;

/// The reason why a computation of this crate failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinalgError {
    /// The matrix has no entries, and so no decomposition.
    #[error("the {rows} x {cols} matrix is empty: a decomposition needs at least one entry")]
    Empty {
        /// The number of rows.
        rows: usize,
        /// The number of columns.
        cols: usize,
    },

    /// An entry of the input is NaN or infinite.
    #[error("entry ({row}, {col}) of the {rows} x {cols} matrix is {value}, which is not finite")]
    NotFinite {
        /// The row of the first such entry, from 0.
        row: usize,
        /// The column of the first such entry, from 0.
        col: usize,
        /// The entry.
        value: f64,
        /// The number of rows of the matrix.
        rows: usize,
        /// The number of columns of the matrix.
        cols: usize,
    },

    /// A factor of a finite matrix exceeds the range of its dtype.
    #[error("a factor of the {rows} x {cols} matrix overflows its dtype: scale the matrix down")]
    Overflow {
        /// The number of rows of the matrix.
        rows: usize,
        /// The number of columns of the matrix.
        cols: usize,
    },

    /// An iterative decomposition did not converge.
    #[error("the iteration did not converge on the {rows} x {cols} matrix")]
    NoConvergence {
        /// The number of rows of the matrix.
        rows: usize,
        /// The number of columns of the matrix.
        cols: usize,
    },

    /// A width or a number of factors is zero.
    #[error("{n} cannot be written as a product of {count} factors: both must be at least 1")]
    NoFactorSizes {
        /// The width to factor.
        n: usize,
        /// The requested number of factors.
        count: usize,
    },

    /// A product has no factors.
    #[error("a product of matrices needs at least one factor")]
    NoFactors,

    /// The matrix is not square.
    #[error("expected a square matrix, got {rows} x {cols}")]
    NotSquare {
        /// The number of rows.
        rows: usize,
        /// The number of columns.
        cols: usize,
    },

    /// The matrix is not symmetric.
    #[error(
        "the {n} x {n} matrix is not symmetric: entries ({row}, {col}) and ({col}, {row}) differ"
    )]
    NotSymmetric {
        /// The row of the first such entry, from 0.
        row: usize,
        /// The column of the first such entry, from 0.
        col: usize,
        /// The number of rows and columns.
        n: usize,
    },

    /// The columns of the matrix (the rows, if it is wide) are not orthonormal.
    #[error("the {rows} x {cols} matrix is not orthonormal: max |XᵀX - I| is {error:.2e}")]
    NotOrthonormal {
        /// The number of rows.
        rows: usize,
        /// The number of columns.
        cols: usize,
        /// `max |XᵀX - I|`; NaN if an entry is.
        error: f64,
    },

    /// Two tensors that must have the same shape differ.
    #[error("expected two tensors of one shape, got {left:?} and {right:?}")]
    ShapeMismatch {
        /// The shape of the first tensor.
        left: Vec<usize>,
        /// The shape of the second tensor.
        right: Vec<usize>,
    },

    /// The orthogonal matrix has no principal logarithm: -1 is an eigenvalue, or nearly.
    #[error(
        "the {n} x {n} matrix reflects or turns by half a turn, so it has no principal logarithm"
    )]
    NoLogarithm {
        /// The number of rows and columns.
        n: usize,
    },

    /// No factorization of the width fits into the parameter budget.
    #[error("no factors of {n} hold {budget} values or fewer: allow at least {least}")]
    ParameterBudget {
        /// The width to factor.
        n: usize,
        /// The allowed number of parameters.
        budget: u128,
        /// The least number of parameters of any factorization.
        least: u128,
    },

    /// A file of the decomposition cache can be neither read nor written.
    #[error("the cached decomposition {} cannot be read or written", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },

    /// A tensor could not be read from its device.
    #[error("the tensor could not be read from its device")]
    Read(#[from] TensorReadError),
}
