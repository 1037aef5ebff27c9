//! `cargo xtask train`: the bundled model learns a bundled subject.

use crate::build::build_soda;
use crate::run::{Outcome, cargo, root};

/// Runs `soda train` with the bundled model, judges and subject wherever `args` names none.
pub(crate) fn train(args: &[String]) -> Outcome {
    // `cargo xtask train -- --resume runs/x`, as one types it for other commands of cargo.
    let args = args.strip_prefix(&["--".to_owned()]).unwrap_or(args);
    build_soda(&[])?;
    let toybox = root().join("examples").join("toybox");
    let path = |name: &str| toybox.join(name).display().to_string();
    let given = |option: &str| {
        args.iter().any(|arg| arg == option || arg.starts_with(&format!("{option}=")))
    };
    let mut all = vec!["run", "--quiet", "--package", "soda-cli", "--bin", "soda", "--", "train"];
    let defaults = [
        ("--base", path("base")),
        ("--judges", path("eval")),
        ("--data", path("subjects/castle_mug")),
    ];
    // A configuration or a stopped run names its own.
    if !["--config", "--resume", "--help"].into_iter().any(given) {
        for (option, value) in &defaults {
            if !given(option) {
                all.extend([*option, value]);
            }
        }
    }
    all.extend(args.iter().map(String::as_str));
    cargo(&all)
}
