//! What was typed: the commands, and options that several of them share.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};
use soda_adapters::SvdCache;

use crate::command::bench::BenchArgs;
use crate::command::compare::CompareArgs;
use crate::command::config::ConfigArgs;
use crate::command::convert::ConvertArgs;
use crate::command::evaluate::EvaluateArgs;
use crate::command::export::ExportArgs;
use crate::command::generate::GenerateArgs;
use crate::command::import::ImportArgs;
use crate::command::inspect::InspectArgs;
use crate::command::merge::MergeArgs;
use crate::command::train::TrainArgs;
use crate::device::DeviceKind;

/// Personalise Stable Diffusion to a subject or a style with SODA adapters.
#[derive(Debug, Parser)]
#[command(name = "soda", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Learn a subject or a style from a folder of pictures
    Train(Box<TrainArgs>),
    /// Say which settings a run would have, which presets there are, or what is wrong with a file
    Config(Box<ConfigArgs>),
    /// Draw pictures, with or without an adapter
    Generate(GenerateArgs),
    /// Fold an adapter into its base: a diffusers directory for other tools
    Merge(MergeArgs),
    /// Write a model in another layout or precision
    Convert(ConvertArgs),
    /// Read a LoRA, DoRA, OFT, LoHa or LoKr of other tools as an adapter
    Import(ImportArgs),
    /// Write an adapter for other tools: kohya, diffusers, PEFT, or whole deltas
    Export(ExportArgs),
    /// Say what a model directory or an adapter file holds
    Inspect(InspectArgs),
    /// Draw the prompts of a data set and score them
    Evaluate(EvaluateArgs),
    /// Compare ways to train over subjects and seeds, and report
    Compare(CompareArgs),
    /// Time training steps on this machine, with random weights
    Bench(BenchArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AdapterArg {
    /// An adapter trained on this base
    #[arg(long, value_name = "FILE")]
    pub(crate) adapter: Option<PathBuf>,
    /// How much of it: 0 is the base, 1 is what was trained; rotations turn along the geodesic
    #[arg(long, default_value_t = 1.0, requires = "adapter")]
    pub(crate) strength: f64,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DeviceArg {
    /// Where to compute
    #[arg(long, value_enum, default_value_t)]
    pub(crate) device: DeviceKind,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CacheArg {
    /// Keep singular value decompositions of the base here, so that the next command need not compute them:
    /// twice the adapted weights in f32, 0.7 GB for the attention of SD 1.5
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
}

impl CacheArg {
    pub(crate) fn open(&self) -> Option<SvdCache> {
        self.cache.as_ref().map(SvdCache::new)
    }
}
