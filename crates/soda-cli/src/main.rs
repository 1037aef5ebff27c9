//! `soda`: personalise Stable Diffusion from the command line.
//!
//! Exit codes: 0 done, 1 could not be done, 2 typed wrongly.

mod args;
mod base;
mod command;
mod device;
mod progress;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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

/// Training allocates and frees a tape's tensors in every step; the system's allocator gives such blocks
/// back each time and pays for it in page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Personalise Stable Diffusion to a subject or a style with SODA adapters.
#[derive(Debug, Parser)]
#[command(name = "soda", version, max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
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

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Train(args) => command::train::run(*args),
        Command::Config(args) => command::config::run(*args),
        Command::Generate(args) => command::generate::run(args),
        Command::Merge(args) => command::merge::run(args),
        Command::Import(args) => command::import::run(args),
        Command::Export(args) => command::export::run(args),
        Command::Inspect(args) => command::inspect::run(args),
        Command::Evaluate(args) => command::evaluate::run(args),
        Command::Compare(args) => command::compare::run(&args),
        Command::Bench(args) => command::bench::run(args),
        Command::Convert(args) => command::convert::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            progress::say_error(&error);
            ExitCode::FAILURE
        }
    }
}
