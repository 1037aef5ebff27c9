//! `cargo xtask test-gpu`: the tests of all crates on a GPU, here or packed for a machine without cargo.
//!
//! A test file of cargo is a program of its own with all of burn in it. Here the integration tests are one
//! program, so that they are small enough to be sent.

mod programs;
mod workspace;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::run::{Outcome, root};

/// How the command is used.
const USAGE: &str = "cargo xtask test-gpu [--backend cuda|wgpu] [--pack FILE.tar.xz [--without-data]] [PART OF A NAME]";

/// The script that runs the tests, here and in an archive.
const RUN: &str = include_str!("run.sh");

/// The folders that tests read, as the root has them.
const DATA: &[&str] = &["examples/toybox", "examples/toyflux", "examples/compare"];

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    backend: Backend,
    /// The archive to write, instead of running the tests.
    pack: Option<PathBuf>,
    /// Whether the archive has the data that tests read.
    data: bool,
    filter: Option<String>,
}

/// A backend with tests of its own build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Cuda,
    Wgpu,
}

impl Backend {
    /// The name as features and `BURN_DEVICE` have it.
    fn name(self) -> &'static str {
        match self {
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
        }
    }
}

impl Options {
    fn parse(args: &[String]) -> Result<Self, String> {
        let mut options = Self { backend: Backend::Cuda, pack: None, data: true, filter: None };
        let mut args = args.iter();
        let value = |name: &str, value: Option<&String>| {
            value.cloned().ok_or_else(|| format!("{name} needs a value: {USAGE}"))
        };
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--backend" => {
                    options.backend = match value(arg, args.next())?.as_str() {
                        "cuda" => Backend::Cuda,
                        "wgpu" => Backend::Wgpu,
                        other => return Err(format!("there is no backend `{other}`: {USAGE}")),
                    }
                }
                "--pack" => options.pack = Some(value(arg, args.next())?.into()),
                "--without-data" => options.data = false,
                option if option.starts_with('-') => {
                    return Err(format!("there is no option `{option}`: {USAGE}"));
                }
                _ if options.filter.is_some() => return Err(format!("one name at most: {USAGE}")),
                filter => options.filter = Some(filter.to_owned()),
            }
        }
        match options {
            Self { pack: Some(_), filter: Some(_), .. } => {
                Err("an archive has all tests; give the name to its run.sh".to_owned())
            }
            Self { pack: None, data: false, .. } => {
                Err(format!("--without-data is of an archive: {USAGE}"))
            }
            options => Ok(options),
        }
    }
}

/// Builds the tests with a GPU backend, and runs or packs them.
pub(crate) fn test_gpu(args: &[String]) -> Outcome {
    let options = Options::parse(args)?;
    let folder = root().join("target").join("gpu-suite");
    let workspace = workspace::write(&folder)?;
    let stage = folder.join(options.backend.name());
    programs::build(&workspace, options.backend, &stage.join("programs"), &stage.join("soda"))?;
    write(&stage.join("backend"), options.backend.name().as_bytes())?;
    write(&stage.join("run.sh"), RUN.as_bytes())?;
    match &options.pack {
        Some(file) => pack(&stage, file, options.data),
        None => run(&stage, options.filter.as_deref()),
    }
}

fn run(stage: &Path, filter: Option<&str>) -> Outcome {
    let mut command = Command::new("bash");
    command.arg(stage.join("run.sh")).args(filter).env("SODA_WORKSPACE", root());
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("the tests failed".to_owned()),
        Err(error) => Err(format!("cannot run bash: {error}")),
    }
}

/// Writes the programs, the script and the data as one archive.
fn pack(stage: &Path, file: &Path, data: bool) -> Outcome {
    let mut command = Command::new("tar");
    // Programs compress better when calls have absolute addresses, and have much in common with each other.
    command.arg("--use-compress-program=xz --threads=0 --x86 --lzma2=preset=6,dict=64MiB");
    command.arg("-cf").arg(file).arg("-C").arg(stage);
    command.args(["run.sh", "backend", "soda", "programs"]);
    if data {
        // The script looks for the data in the folder `workspace` beside it.
        command.args(["--transform", r"s,^\(examples\|crates\)/,workspace/\1/,", "-C"]).arg(root());
        command.args(DATA).args(fixtures()?);
    }
    let status = command.status().map_err(|error| format!("cannot run tar: {error}"))?;
    if !status.success() {
        return Err(format!("tar cannot write {}", file.display()));
    }
    let size = fs::metadata(file).map_or(0, |metadata| metadata.len());
    println!("{}: {:.1} MB; unpack it and start ./run.sh", file.display(), size as f64 / 1e6);
    Ok(())
}

/// The folders of fixtures, relative to the root.
fn fixtures() -> Result<Vec<String>, String> {
    let folders = workspace::crates()?;
    let fixtures = folders.iter().map(|name| format!("crates/{name}/tests/fixtures"));
    Ok(fixtures.filter(|path| root().join(path).is_dir()).collect())
}

fn write(path: &Path, text: &[u8]) -> Outcome {
    use std::os::unix::fs::PermissionsExt as _;
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    fs::write(path, text).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::{Backend, Options};

    fn parse(args: &str) -> Result<Options, String> {
        Options::parse(&args.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_parsed() {
        let run = Options { backend: Backend::Cuda, pack: None, data: true, filter: None };
        assert_eq!(parse(""), Ok(run));
        let filtered = Options {
            backend: Backend::Wgpu,
            pack: None,
            data: true,
            filter: Some("soda_cli".to_owned()),
        };
        assert_eq!(parse("soda_cli --backend wgpu"), Ok(filtered));
        let packed =
            Options { backend: Backend::Cuda, pack: Some("a".into()), data: false, filter: None };
        assert_eq!(parse("--pack a --without-data"), Ok(packed));
    }

    #[test]
    fn mistakes_are_named() {
        for (args, named) in [
            ("--backend vulkan", "vulkan"),
            ("--pack", "--pack needs a value"),
            ("--steps 3", "--steps"),
            ("a b", "one name at most"),
            ("--pack a b", "run.sh"),
            ("--without-data", "of an archive"),
        ] {
            let message = parse(args).expect_err(args);
            assert!(message.contains(named), "{args}: {message}");
        }
    }
}
