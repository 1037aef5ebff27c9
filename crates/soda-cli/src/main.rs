//! `soda`: personalise Stable Diffusion from the command line.
//!
//! Exit codes: 0 done, 1 could not be done, 2 typed wrongly.

mod args;
mod base;
mod command;
mod device;
mod progress;

use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, Command};

/// Training allocates and frees a tape's tensors in every step; the system's allocator gives such blocks
/// back each time and pays for it in page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
