//! The only folder of this crate that names burn backends: functions with their own gradient, and memory
//! access.
//!
//! The features `flex` and `cube` list the backends. Tensors of any other backend take the general paths of
//! burn.

#![cfg_attr(
    not(any(feature = "flex", feature = "cube")),
    allow(dead_code, unused_imports, unused_macros, reason = "no backend is listed")
)]

mod autograd;
mod memory;

pub use autograd::{AutogradFunction, apply_autograd};
pub(crate) use memory::{is_in_host_memory, with_bytes};
