//! Statistics of the scores: summaries and paired tests.

mod paired_test;
mod summary;

pub use paired_test::{ClusterUnit, PairedTest, holm_adjusted, paired_test, sign_flip_p_value};
pub use summary::Summary;
