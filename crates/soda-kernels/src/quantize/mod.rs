//! Number formats of frozen weights in 4 and 8 bits, and how the numbers of a matrix are stored in them.
//!
//! Every format is the same three things: a table of values, a code for each number, and a scale for each
//! block of numbers. A number is `table[code] * scale`.

mod encode;
mod format;
mod layout;

pub use encode::QuantizedMatrix;
pub use format::{ActivationFormat, QuantFormat};
pub use layout::QuantLayout;
