//! `cargo xtask ci`: what must pass before a change lands.

use std::time::{Duration, Instant};

use crate::python::python;
use crate::run::{Outcome, cargo, cargo_with};
use crate::tidy::tidy;
use crate::train::train;

/// All backends in one binary. The variable names the version of CUDA's bindings; no CUDA is needed.
const ALL_BACKENDS: &str = "cpu,wgpu,cuda,persistence";
const CUDA_BINDINGS: (&str, &str) = ("CUDARC_CUDA_VERSION", "13000");

/// A part of CI with the name under which its time is printed.
type Stage = (&'static str, fn() -> Outcome);

/// The cheapest stages come first: a missing space should not cost a build.
const STAGES: &[Stage] = &[
    ("fmt", || cargo(&["fmt", "--all", "--check"])),
    ("tidy", || tidy(&[])),
    ("xtask", || cargo(&["test", "--package", "xtask"])),
    ("python", python),
    ("test", || test(&[])),
    ("fuzz", fuzz),
    ("clippy", || cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
    ("doc", || {
        cargo_with(&["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")])
    }),
    ("short run", short_run),
    ("all backends", all_backends),
];

/// Runs all tests of the workspace, documentation examples included.
pub(crate) fn test(args: &[String]) -> Outcome {
    let mut all = vec!["test", "--workspace"];
    all.extend(args.iter().map(String::as_str));
    cargo(&all)
}

/// Runs the stages until one fails, or only those named in `only`, and prints what each took.
pub(crate) fn ci(only: &[String]) -> Outcome {
    let name_of = |(name, _): &Stage| name.replace(' ', "-");
    let known = |wanted: &String| STAGES.iter().any(|stage| name_of(stage) == *wanted);
    if let Some(unknown) = only.iter().find(|wanted| !known(wanted)) {
        let names: Vec<_> = STAGES.iter().map(name_of).collect();
        return Err(format!("ci has no stage `{unknown}`; it has {}", names.join(", ")));
    }
    let mut times = Vec::new();
    let mut result = Ok(());
    for stage in STAGES.iter().filter(|s| only.is_empty() || only.contains(&name_of(s))) {
        let start = Instant::now();
        result = stage.1();
        times.push((stage.0, start.elapsed()));
        if result.is_err() {
            break;
        }
    }
    eprint!("{}", table(&times));
    result
}

/// Names and times, one a line, with their sum.
fn table(times: &[(&str, Duration)]) -> String {
    let line = |name: &str, time: Duration| {
        let seconds = time.as_secs();
        format!("{name:<14}{:>4} min {:02} s\n", seconds / 60, seconds % 60)
    };
    let sum = line("together", times.iter().map(|(_, time)| *time).sum());
    times.iter().map(|(name, time)| line(name, *time)).collect::<String>() + &sum
}

/// Gives damaged inputs to every reader, five seconds each.
fn fuzz() -> Outcome {
    const SECONDS: &[(&str, &str)] = &[("SODA_FUZZ_SECONDS", "5")];
    cargo_with(&["test", "--workspace", "--test", "fuzz"], SECONDS)?;
    // The readers of soda-hub are private, and so are their tests.
    cargo_with(&["test", "--workspace", "--lib", "--", "fuzz::"], SECONDS)
}

/// Lints the code that only builds with a GPU backend, with all backends in one binary.
///
/// Clippy compiles what it lints as `cargo check` does, so that a separate check would find nothing more.
fn all_backends() -> Outcome {
    let features = ["--package", "soda-cli", "--features", ALL_BACKENDS];
    let args = [&["clippy"], &features[..], &["--", "-D", "warnings"]].concat();
    cargo_with(&args, &[CUDA_BINDINGS])
}

/// Trains the bundled model for three steps, into a folder that goes away again.
fn short_run() -> Outcome {
    let runs = std::env::temp_dir().join(format!("soda-ci-{}", std::process::id()));
    let args = ["--steps", "3", "--runs", &runs.display().to_string()].map(str::to_owned);
    let result = train(&args);
    // A folder left behind would be untidy, not wrong.
    let _ = std::fs::remove_dir_all(&runs);
    result
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{ci, table};

    #[test]
    fn times_are_listed_with_their_sum() {
        let times = [("fmt", Duration::from_secs(61)), ("tidy", Duration::from_secs(9))];
        let expected = "fmt              1 min 01 s\ntidy             0 min 09 s\ntogether         1 min 10 s\n";
        assert_eq!(table(&times), expected);
    }

    #[test]
    fn an_unknown_stage_is_refused_before_anything_runs() {
        assert!(ci(&["tset".to_owned()]).is_err());
    }
}
