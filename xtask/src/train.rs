//! `cargo xtask train`: the bundled model learns a bundled subject.

use crate::build::build_soda;
use crate::run::{Outcome, cargo, root};

/// The method, unless the command line chooses one: the best found for the bundled model, by
/// docs/notes/results.md.
const METHOD: [&str; 4] = [
    "method=soda-subspace",
    "method.rotation.rank=64",
    "optimizer.rotation_lr=2.5e-3",
    "optimizer.spectrum_lr=2.5e-3",
];

/// Runs `soda train` with the bundled model, judges, subject and method wherever `args` names none.
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
        if !chooses_method(args) {
            all.extend(METHOD.into_iter().flat_map(|setting| ["--set", setting]));
        }
    }
    all.extend(args.iter().map(String::as_str));
    cargo(&all)
}

/// Whether `args` choose a method, its settings, or a preset, which has a method of its own.
fn chooses_method(args: &[String]) -> bool {
    const OPTIONS: [&str; 5] =
        ["--method", "--preset", "--factors", "--no-rotation", "--no-spectrum"];
    let choice = |arg: &String| {
        let setting = arg.strip_prefix("--set=").unwrap_or(arg);
        let option = arg.split('=').next().unwrap_or(arg);
        setting.starts_with("method") || OPTIONS.contains(&option)
    };
    args.iter().any(choice)
}

#[cfg(test)]
mod tests {
    use super::chooses_method;

    #[test]
    fn a_method_on_the_command_line_is_kept() {
        let chooses =
            |args: &str| chooses_method(&args.split(' ').map(str::to_owned).collect::<Vec<_>>());
        for args in ["--method lora", "--method=lora", "--set method.rank=2", "--preset paper"] {
            assert!(chooses(args), "{args}");
        }
        assert!(chooses("--set=method=lora"));
        assert!(!chooses("--steps 3 --set seed=1 --rotation-lr 1e-3"));
    }
}
