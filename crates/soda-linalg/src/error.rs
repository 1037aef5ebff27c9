//! Everything that can be wrong with what a caller hands in.

use std::io;
use std::path::PathBuf;

use burn::tensor::TensorReadError;
use thiserror::Error;

/// Why a piece of linear algebra could not be done.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinalgError {
    /// A matrix without rows or columns has no decomposition.
    #[error("the matrix is empty ({rows} x {cols})")]
    Empty {
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
    },

    /// NaN or infinity in the input.
    #[error("entry ({row}, {col}) of the {rows} x {cols} matrix is {value}")]
    NotFinite {
        /// Row of the first such entry.
        row: usize,
        /// Column of the first such entry.
        col: usize,
        /// The entry.
        value: f64,
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },

    /// The result of a finite matrix is too large for its dtype.
    #[error("a factor of the {rows} x {cols} matrix overflows its dtype")]
    Overflow {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },

    /// The iteration behind an SVD or an eigendecomposition did not converge.
    #[error("the iteration did not converge on the {rows} x {cols} matrix")]
    NoConvergence {
        /// Rows of the matrix.
        rows: usize,
        /// Columns of the matrix.
        cols: usize,
    },

    /// A width or a number of factors of zero.
    #[error("{n} cannot be written as a product of {parts} factors")]
    NoFactors {
        /// The number to factor.
        n: usize,
        /// The number of factors asked for.
        parts: usize,
    },

    /// A matrix that must be square.
    #[error("expected a square matrix, got {rows} x {cols}")]
    NotSquare {
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
    },

    /// A matrix that must be symmetric.
    #[error("entries ({row}, {col}) and ({col}, {row}) of the {n} x {n} matrix differ")]
    NotSymmetric {
        /// Row of the first such entry.
        row: usize,
        /// Its column.
        col: usize,
        /// Size of the matrix.
        n: usize,
    },

    /// A matrix that must have orthonormal columns (rows, if wide).
    #[error("the {rows} x {cols} matrix is not orthonormal: max |XᵀX - I| is {defect:.2e}")]
    NotOrthonormal {
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
        /// `max |XᵀX - I|`.
        defect: f64,
    },

    /// Two tensors that must agree in shape.
    #[error("the shapes {left:?} and {right:?} do not fit each other")]
    ShapeMismatch {
        /// Shape of the first.
        left: Vec<usize>,
        /// Shape of the second.
        right: Vec<usize>,
    },

    /// A rotation without a principal logarithm.
    #[error(
        "the {n} x {n} matrix reflects or turns by half a turn, so it has no principal logarithm"
    )]
    NoLogarithm {
        /// Its size.
        n: usize,
    },

    /// A budget of parameters that no factorisation meets.
    #[error("no factors of {n} hold {budget} values or fewer; the least is {least}")]
    Budget {
        /// The number to factor.
        n: usize,
        /// The parameters allowed.
        budget: u128,
        /// The fewest there can be.
        least: u128,
    },

    /// A cached decomposition could be neither read nor written.
    #[error("the cached decomposition {}", path.display())]
    Cache {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// The data could not be read from the device.
    #[error("the tensor could not be read from its device")]
    Read(#[from] TensorReadError),
}
