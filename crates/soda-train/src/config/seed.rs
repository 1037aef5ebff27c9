//! A seed in TOML and JSON. TOML's integers end at 2^63 - 1, and seeds at 2^64 - 1: larger seeds are strings.

use std::fmt;

use serde::de::{Error, Unexpected, Visitor};
use serde::{Deserializer, Serializer};

/// Writes a seed as an integer, or as a string if TOML has no such integer.
pub(super) fn serialize<S: Serializer>(seed: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    match i64::try_from(*seed) {
        Ok(seed) => serializer.serialize_i64(seed),
        Err(_) => serializer.collect_str(seed),
    }
}

/// Reads a seed from an integer or a string.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    deserializer.deserialize_any(SeedVisitor)
}

struct SeedVisitor;

impl Visitor<'_> for SeedVisitor {
    type Value = u64;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`seed` as a whole number from 0 to {}", u64::MAX)
    }

    fn visit_u64<E: Error>(self, seed: u64) -> Result<u64, E> {
        Ok(seed)
    }

    fn visit_i64<E: Error>(self, seed: i64) -> Result<u64, E> {
        u64::try_from(seed).map_err(|_| E::invalid_value(Unexpected::Signed(seed), &self))
    }

    fn visit_i128<E: Error>(self, seed: i128) -> Result<u64, E> {
        u64::try_from(seed).map_err(|_| E::invalid_value(Unexpected::Other("integer"), &self))
    }

    fn visit_u128<E: Error>(self, seed: u128) -> Result<u64, E> {
        u64::try_from(seed).map_err(|_| E::invalid_value(Unexpected::Other("integer"), &self))
    }

    fn visit_str<E: Error>(self, seed: &str) -> Result<u64, E> {
        seed.trim().parse().map_err(|_| E::invalid_value(Unexpected::Str(seed), &self))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use toml::Table;

    use crate::config::{TrainConfig, apply_setting, preset};

    fn table(seed: &str) -> Table {
        let mut table = preset("toybox").unwrap();
        for setting in ["base=b", "data=d", &format!("seed={seed}")] {
            apply_setting(&mut table, setting).unwrap();
        }
        table
    }

    #[test]
    fn every_seed_survives_a_setting_a_file_and_a_table() {
        for seed in [0, 7, i64::MAX as u64, i64::MAX as u64 + 1, u64::MAX] {
            let config = TrainConfig::from_table(table(&seed.to_string())).unwrap();
            assert_eq!(config.seed, seed);
            let text = config.to_toml().unwrap();
            assert_eq!(TrainConfig::from_toml(&text).unwrap(), config, "{text}");
            let again = Table::try_from(&config).unwrap();
            assert_eq!(TrainConfig::from_table(again).unwrap(), config);
            let json = serde_json::to_value(&config).unwrap();
            assert_eq!(serde_json::from_value::<TrainConfig>(json).unwrap(), config);
            // A file that another program wrote may have the number itself.
            let line = format!("seed = {seed}\n");
            let bare = format!("base = 'b'\ndata = 'd'\nsteps = 1\nbatch_size = 1\n{line}");
            assert_eq!(TrainConfig::from_toml(&bare).unwrap().seed, seed);
        }
    }

    #[test]
    fn other_seeds_are_refused_with_the_range() {
        for seed in ["-1", "1.5", "18446744073709551616", "random", "''"] {
            let error = TrainConfig::from_table(table(seed)).unwrap_err().to_string();
            assert!(
                error.contains("`seed` as a whole number from 0 to 18446744073709551615"),
                "{error}"
            );
        }
    }
}
