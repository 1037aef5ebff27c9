//! `cargo xtask <command>`: the project's own commands, one file each, without dependencies.

mod build;
mod ci;
mod gpu;
mod paper;
mod python;
mod run;
mod tidy;
mod train;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask <command>

  train [options]   personalise the bundled model to a bundled subject (the options of `soda train`)
  paper [options]   every method on the bundled subjects, a night on four cores (the options of
                    `soda compare`); --quick is a small part of it, in minutes
  test  [options]   run all tests (the options of `cargo test`)
  test-gpu          run all tests on a GPU: [--backend cuda|wgpu] [PART OF A NAME], or pack them for a machine
                    without cargo: --pack FILE.tar.xz [--without-data]
  ci    [stages]    everything that must pass before a change lands, cheapest first
  tidy  [checks]    the promises of docs/ARCHITECTURE.md and CONTRIBUTING.md, as checks
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let result = match command.as_str() {
        "train" => train::train(&rest),
        "paper" => paper::paper(&rest),
        "test" => ci::test(&rest),
        "test-gpu" => gpu::test_gpu(&rest),
        "ci" => ci::ci(&rest),
        "tidy" => tidy::tidy(&rest),
        "" | "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        other => Err(format!("there is no command `{other}`\n\n{HELP}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
