//! The tests of the Python package, with numpy and safetensors alone, in an environment below `target`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Outcome, root};

/// The package, from the root.
const PACKAGE: &str = "crates/soda-python";

/// What the tests need, and what builds the package. Installed versions that fit need no network.
const NEEDED: &[&str] = &["numpy>=1.24", "safetensors>=0.4", "flit_core>=3.9,<4"];

/// Names of Python, in the order in which they are tried.
const PYTHONS: &[&str] = &["python3", "python"];

/// Installs the package into its environment and runs its tests.
pub(crate) fn python() -> Outcome {
    let environment = root().join("target").join("python");
    let interpreter = interpreter_in(&environment);
    if !interpreter.is_file() {
        let system = system_python()?;
        let environment = environment.display().to_string();
        run(Path::new(system), &["-m", "venv", "--clear", &environment])?;
    }
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    run(&interpreter, &[&pip[..], NEEDED].concat())?;
    // The installed package, so that a module that it lacks is missed.
    let options = ["--no-deps", "--no-build-isolation", "--force-reinstall", PACKAGE];
    run(&interpreter, &[&pip[..], &options[..]].concat())?;
    let tests = format!("{PACKAGE}/tests");
    run(&interpreter, &["-m", "unittest", "discover", "-s", &tests, "-p", "test_f*.py"])
}

/// The interpreter of an environment.
fn interpreter_in(environment: &Path) -> PathBuf {
    match cfg!(windows) {
        true => environment.join("Scripts").join("python.exe"),
        false => environment.join("bin").join("python"),
    }
}

/// The first Python that is new enough.
fn system_python() -> Result<&'static str, String> {
    let fits = |name: &&&str| {
        let check = "import sys; sys.exit(sys.version_info < (3, 10))";
        Command::new(name).args(["-c", check]).status().is_ok_and(|status| status.success())
    };
    let found = PYTHONS.iter().find(fits).copied();
    found.ok_or_else(|| "the stage `python` needs CPython 3.10 or newer on the PATH".to_owned())
}

/// Runs a Python at the root.
fn run(python: &Path, args: &[&str]) -> Outcome {
    let line = format!("{} {}", python.display(), args.join(" "));
    eprintln!("$ {line}");
    let status = Command::new(python)
        .args(args)
        // Byte code would lie in the tree.
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(root())
        .status()
        .map_err(|error| format!("cannot run `{line}`: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{line}` failed")) }
}
