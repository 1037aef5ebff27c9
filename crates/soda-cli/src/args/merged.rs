//! The options of commands that merge adapters into a base: one adapter, or two.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::argv::{ToArgv, option, repeated};
use super::cache::CacheArg;
use super::number::finite;
use crate::usage::{UsageError, require};

#[derive(Clone, Debug, PartialEq, Args)]
pub(crate) struct MergedArgs {
    /// The adapter file
    #[arg(long, value_name = "FILE", conflicts_with = "subject")]
    pub(crate) adapter: Option<PathBuf>,
    /// Strength of the adapter: 0 is the base, 1 the trained adapter; rotations follow the geodesic
    #[arg(
        long,
        default_value_t = 1.0,
        value_parser = finite,
        requires = "adapter",
        // What is required is not, where it conflicts with a given option.
        conflicts_with = "subject",
    )]
    pub(crate) strength: f64,
    /// The first of two adapter files to merge
    #[arg(long, value_name = "FILE", requires = "style")]
    pub(crate) subject: Option<PathBuf>,
    /// The second of two adapter files to merge
    #[arg(long, value_name = "FILE", requires = "subject")]
    pub(crate) style: Option<PathBuf>,
    /// Weights of the subject and of the style
    #[arg(
        long,
        value_name = "A,B",
        value_delimiter = ',',
        value_parser = finite,
        // `-0.5,1` is no single number, and no option.
        allow_hyphen_values = true,
        default_values_t = [1.0, 1.0],
        requires = "subject",
    )]
    pub(crate) weights: Vec<f64>,
    /// How the two adapters are merged
    #[arg(long, value_enum, default_value_t, requires = "subject")]
    pub(crate) mode: MergeModeName,
    /// For geodesic: the share of the rotation lost by cancellation that the mean gets back, from 0 to 1
    #[arg(long, default_value_t = 0.0, value_parser = finite, requires = "subject")]
    pub(crate) restore: f64,
    #[command(flatten)]
    pub(crate) cache: CacheArg,
}

/// The value of `--mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum MergeModeName {
    /// W0 + a (W1 - W0) + b (W2 - W0)
    #[default]
    Residual,
    /// exp(a log R1 + b log R2)
    Geodesic,
    /// R1^a R2^b
    Compose,
}

/// No adapter: the options as they are by default.
impl Default for MergedArgs {
    fn default() -> Self {
        Self {
            adapter: None,
            strength: 1.0,
            subject: None,
            style: None,
            weights: vec![1.0, 1.0],
            mode: MergeModeName::default(),
            restore: 0.0,
            cache: CacheArg::default(),
        }
    }
}

impl MergedArgs {
    /// Checks what the parser of the command line does not.
    pub(crate) fn check(&self) -> Result<(), UsageError> {
        require(self.weights.len() == 2, "--weights takes two numbers, such as --weights 0.8,0.6")?;
        require((0.0..=1.0).contains(&self.restore), "--restore must be from 0 to 1")?;
        require(
            self.restore == 0.0 || self.mode == MergeModeName::Geodesic,
            "--restore belongs to --mode geodesic; leave it out",
        )
    }
}

impl ToArgv for MergedArgs {
    fn append_to(&self, argv: &mut Vec<OsString>) {
        let Self { adapter, strength, subject, style, weights, mode, restore, cache } = self;
        argv.extend(repeated("adapter", adapter));
        if adapter.is_some() {
            argv.push(option("strength", strength.to_string()));
        }
        argv.extend(repeated("subject", subject));
        argv.extend(repeated("style", style));
        if subject.is_some() {
            let weights: Vec<String> = weights.iter().map(f64::to_string).collect();
            argv.push(option("weights", weights.join(",")));
            let mode = mode.to_possible_value();
            argv.extend(repeated("mode", mode.as_ref().map(|mode| mode.get_name())));
            argv.push(option("restore", restore.to_string()));
        }
        cache.append_to(argv);
    }
}
