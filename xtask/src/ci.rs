//! What must pass before a change lands.

use crate::run::{Outcome, cargo, command};
use crate::tidy::tidy;
use crate::train::train;

/// All tests of the workspace, documentation examples included.
pub(crate) fn test(args: &[String]) -> Outcome {
    let mut all = vec!["test", "--workspace"];
    all.extend(args.iter().map(String::as_str));
    cargo(&all)
}

/// Cheapest first: a missing space should not cost a build.
pub(crate) fn ci() -> Outcome {
    cargo(&["fmt", "--all", "--check"])?;
    tidy()?;
    test(&[])?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    command(&["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")])?;
    short_run()
}

/// The main job, short, into a folder of its own that goes away again.
fn short_run() -> Outcome {
    let runs = std::env::temp_dir().join(format!("soda-ci-{}", std::process::id()));
    let args = ["--steps", "3", "--runs", &runs.display().to_string()].map(str::to_owned);
    let result = train(&args);
    // Leaving the folder behind would be untidy, not wrong.
    let _ = std::fs::remove_dir_all(&runs);
    result
}
