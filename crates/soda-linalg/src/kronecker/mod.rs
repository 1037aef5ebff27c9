//! Kronecker products `A1 ⊗ A2 ⊗ … ⊗ Am` that are never formed, and the choice of their factors' sizes.

mod chunks;
mod factor_sizes;
mod matrix;
mod mode_products;
mod product;
mod rows;

pub use factor_sizes::{factor_sizes, factor_sizes_within};
pub use matrix::KroneckerMatrix;
pub use product::{kron, kron_left, kron_right};
pub use rows::{KroneckerGradients, KroneckerRows};
