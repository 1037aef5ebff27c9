//! `cargo xtask paper`: every method on the bundled subjects.

use crate::build::build_soda;
use crate::run::{Outcome, cargo};

/// Runs `soda compare` on `examples/compare/paper.toml`, with `--quick` on `examples/compare/quick.toml`.
///
/// As many runs are done at once as there are cores. A comparison that was stopped goes on where it stopped.
pub(crate) fn paper(args: &[String]) -> Outcome {
    let (quick, options): (Vec<_>, Vec<_>) = args.iter().partition(|arg| *arg == "--quick");
    let name = if quick.is_empty() { "paper" } else { "quick" };
    let plan = format!("examples/compare/{name}.toml");
    let out = format!("comparisons/{name}");
    let jobs = std::thread::available_parallelism().map_or(1, usize::from).to_string();
    build_soda(&["--release"])?;
    let mut all =
        vec!["run", "--quiet", "--release", "--package", "soda-cli", "--bin", "soda", "--"];
    all.extend(["compare", &plan]);
    for (option, value) in [("--out", &out), ("--jobs", &jobs)] {
        let given = |arg: &&String| *arg == option || arg.starts_with(&format!("{option}="));
        if !options.iter().any(given) {
            all.extend([option, value]);
        }
    }
    all.extend(options.into_iter().map(String::as_str));
    cargo(&all)
}
