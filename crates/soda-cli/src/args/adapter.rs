//! The options of commands that load one adapter.

use std::path::PathBuf;

use clap::Args;

use super::number::finite;

#[derive(Debug, Args)]
pub(crate) struct AdapterArg {
    /// An adapter trained on this base
    #[arg(long, value_name = "FILE")]
    pub(crate) adapter: Option<PathBuf>,
    /// Strength of the adapter: 0 is the base, 1 the trained adapter; rotations follow the geodesic
    #[arg(long, default_value_t = 1.0, value_parser = finite, requires = "adapter")]
    pub(crate) strength: f64,
}
