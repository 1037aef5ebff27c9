//! One training run of a comparison.

use sha2::{Digest as _, Sha256};
use soda_train::TrainConfig;

/// One training run: an arm on one data set with one seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The identifier: arm, data set, seed and a hash of the configuration. It is also a file name.
    pub id: String,
    /// The name of the arm.
    pub arm: String,
    /// The training configuration, with data set and seed.
    pub config: TrainConfig,
}

impl Run {
    pub(crate) fn new(arm: &str, config: TrainConfig) -> Self {
        Self { id: run_id(arm, &config), arm: arm.to_owned(), config }
    }
}

/// Makes an identifier that is readable and differs for every configuration.
fn run_id(arm: &str, config: &TrainConfig) -> String {
    let data = config.data.file_name().unwrap_or_default().to_string_lossy();
    // A configuration that was read from TOML can be written as TOML.
    let hash = format!("{:x}", Sha256::digest(config.to_toml().unwrap_or_default()));
    format!("{arm}-{data}-{}-{}", config.seed, &hash[..8])
}
