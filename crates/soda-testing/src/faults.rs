//! Programs that are killed at a chosen one of their changes to files, or fail in it. Linux only.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The library that the program is started with, see its head.
const SOURCE: &str = include_str!("../examples/preload.rs");

/// What happens at a call that changes files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed before the call.
    KillBefore,
    /// The process is killed after half of a write; other calls as [`Fault::KillAfter`] or not at all.
    KillHalfway,
    /// The process is killed after the call.
    KillAfter,
    /// The call fails: no space is left on the device. Later calls succeed.
    NoSpace,
    /// The call and all later ones that do not remove something fail: no space is left on the device.
    FullDisk,
    /// The call fails with an error of the device. Later calls succeed.
    InputOutput,
}

impl Fault {
    /// All faults.
    pub const ALL: [Self; 6] = [
        Self::KillBefore,
        Self::NoSpace,
        Self::KillAfter,
        Self::FullDisk,
        Self::KillHalfway,
        Self::InputOutput,
    ];

    /// Whether the process is killed.
    pub fn kills(self) -> bool {
        matches!(self, Self::KillBefore | Self::KillHalfway | Self::KillAfter)
    }

    /// The name that the library knows, and whether later calls fail too.
    fn variables(self) -> (&'static str, &'static str) {
        match self {
            Self::KillBefore => ("before", "0"),
            Self::KillHalfway => ("half", "0"),
            Self::KillAfter => ("after", "0"),
            Self::NoSpace => ("enospc", "0"),
            Self::FullDisk => ("enospc", "1"),
            Self::InputOutput => ("eio", "0"),
        }
    }
}

/// The library for `LD_PRELOAD`, compiled.
#[derive(Debug)]
pub struct Faults {
    library: PathBuf,
}

impl Faults {
    /// Compiles the library into `folder`, with the compiler of the tests. This takes a second.
    ///
    /// # Panics
    /// If there is no compiler, or its linker fails.
    pub fn compile(folder: &Path) -> Self {
        // Beside cargo, the compiler is that of its toolchain.
        let beside = option_env!("CARGO").map(|cargo| Path::new(cargo).with_file_name("rustc"));
        let compiler = beside.filter(|path| path.is_file()).unwrap_or_else(|| "rustc".into());
        let library = folder.join("libsoda_faults.so");
        let mut child = Command::new(compiler)
            .args(["--crate-name", "soda_faults", "--crate-type", "cdylib"])
            .args(["--edition", "2024", "-C", "opt-level=1", "-o"])
            .args([library.as_os_str(), "-".as_ref()])
            .stdin(Stdio::piped())
            .spawn()
            .expect("the Rust compiler");
        let mut source = child.stdin.take().expect("the compiler's input");
        source.write_all(SOURCE.as_bytes()).expect("the compiler reads");
        drop(source);
        assert!(child.wait().expect("the compiler ends").success(), "the library is not compiled");
        Self { library }
    }

    /// Makes a command count its changes below `root`. The file `log` gets a line for each.
    pub fn log(&self, command: &mut Command, root: &Path, log: &Path) {
        command.env("LD_PRELOAD", &self.library).env("SODA_FAULT_ROOT", root);
        command.env("SODA_FAULT_LOG", log);
    }

    /// Makes `fault` happen at the change `number`, from 1, below `root`.
    pub fn interfere(&self, command: &mut Command, root: &Path, number: usize, fault: Fault) {
        let (kind, stays) = fault.variables();
        command.env("LD_PRELOAD", &self.library).env("SODA_FAULT_ROOT", root);
        command.env("SODA_FAULT_AT", number.to_string());
        command.env("SODA_FAULT_KIND", kind).env("SODA_FAULT_STAYS", stays);
    }
}
