//! The report of a comparison: one HTML file that links to nothing.

mod curves;
mod evaluations;
mod image_grid;
mod labels;
mod loss;
mod page;
mod scatter;

pub use page::{ReportInput, report};
