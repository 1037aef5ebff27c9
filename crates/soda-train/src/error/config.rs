//! Errors of the settings.

/// Settings that cannot be read, or that cannot train anything.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The TOML does not parse, or has an unknown or a missing field.
    #[error("the configuration is unusable: {reason}")]
    Read {
        /// The message of the TOML parser.
        reason: String,
    },
    /// The configuration cannot be written as TOML.
    #[error("the configuration cannot be written: {reason}")]
    Write {
        /// The message of the TOML writer.
        reason: String,
    },
    /// A setting on the command line that has no `=`, or whose key is malformed.
    #[error("`{0}` is not a setting; write it as key=value, such as optimizer.rotation_lr=1e-3")]
    Assignment(String),
    /// An unknown preset.
    #[error("there is no preset `{found}`{hint}; the presets are {known}")]
    UnknownPreset {
        /// The name that was asked for.
        found: String,
        /// The nearest known name as the end of a clause, or nothing.
        hint: String,
        /// All known names.
        known: String,
    },
    /// A number that is out of its range.
    #[error("`{field}` must be {range}")]
    OutOfRange {
        /// The path of the setting, such as `optimizer.rotation_lr`.
        field: &'static str,
        /// The allowed range, in words.
        range: &'static str,
    },
    /// Two settings that exclude each other. The text names both and the remedy.
    #[error("{0}")]
    Conflict(&'static str),
    /// A new word that no caption has, so that its embedding would learn nothing.
    #[error(
        "no caption has the new word `{0}`: write it into captions, or leave it out of `tokens`"
    )]
    UnusedWord(String),
    /// A precision in which the device does not compute.
    #[error("this device does not compute in {0}: set `precision = \"f32\"`")]
    UnsupportedPrecision(String),
    /// Bucket sizes that the base model does not allow.
    #[error("`{field}` is {value}: {reason}")]
    Buckets {
        /// The path of the setting.
        field: &'static str,
        /// Its value, in pixels.
        value: usize,
        /// Why the value is refused, and which values are allowed.
        reason: String,
    },
}
