//! `cargo xtask <command>`: what the project does with itself. One command a file, no dependencies, so
//! that it is built in a second.

mod ci;
mod paper;
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
  ci                everything that must pass before a change lands, cheapest first
  tidy              the structure that ARCHITECTURE.md promises, as a check
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let result = match command.as_str() {
        "train" => train::train(&rest),
        "paper" => paper::paper(&rest),
        "test" => ci::test(&rest),
        "ci" => ci::ci(),
        "tidy" => tidy::tidy(),
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
