//! What was typed: the commands, and options that several of them share.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};

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
    /// Read a LoRA, DoRA or OFT of PEFT, diffusers or kohya as an adapter
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
