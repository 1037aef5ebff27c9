//! Matrices in host memory: pinned memory, and copies to the device ahead of the product that reads them.

mod pass;
mod pinned;

pub(super) use pass::fetch;
pub(crate) use pass::{begin_pass, end_pass};
pub(crate) use pinned::pin;
