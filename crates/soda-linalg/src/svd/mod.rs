//! The thin singular value decomposition, on the host or by spectral divide and conquer, and its cache on
//! disk.

mod cache;
mod cache_file;
mod factors;
mod spectral;
mod thin;

pub use cache::SvdCache;
pub use factors::{SIGN_CONVENTION, Svd};
