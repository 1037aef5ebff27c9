//! The `soda` binary.
fn main() {}
