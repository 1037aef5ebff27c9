//! Building the program before it runs, so that a first build is seen and a finished one is silent.

use std::io::{IsTerminal as _, Read, Write};
use std::process::{Command, Stdio};

use crate::run::{Outcome, cargo_program, root};

/// The first line of a build of everything; measured with `cargo build --timings` on two idle cores.
const FIRST: &str =
    "Building soda and its dependencies once; this takes 9 to 17 minutes on two cores.";

/// The first line of a build after a change.
const AGAIN: &str = "Building soda again after a change.";

/// Words with which cargo begins a line when it starts to work.
const WORK: &[&str] = &["Compiling", "Downloading", "Downloaded", "Updating", "Blocking"];

/// Builds the binary `soda`.
///
/// On a terminal cargo's own progress is shown once something has to be built. Elsewhere one line says so,
/// and cargo's output follows only where the build fails.
pub(crate) fn build_soda(profile: &[&str]) -> Outcome {
    let terminal = std::io::stderr().is_terminal();
    let mut command = Command::new(cargo_program());
    command.args(["build", "--package", "soda-cli", "--bin", "soda"]).args(profile);
    command.current_dir(root()).stderr(Stdio::piped());
    if terminal {
        // Cargo writes to a pipe here, so that it has to be told what it writes for.
        command.envs([("CARGO_TERM_PROGRESS_WHEN", "always"), ("CARGO_TERM_COLOR", "always")]);
        command.env("CARGO_TERM_PROGRESS_WIDTH", "80");
    }
    let failed = |error: std::io::Error| format!("cannot run `cargo build`: {error}");
    let mut child = command.spawn().map_err(failed)?;
    let first = if is_built(profile.contains(&"--release")) { AGAIN } else { FIRST };
    let mut filter = Filter { first, terminal, working: false, held: Vec::new() };
    if let Some(mut stderr) = child.stderr.take() {
        let mut chunk = [0; 4096];
        loop {
            match stderr.read(&mut chunk) {
                Ok(0) | Err(_) => break,
                Ok(length) => filter.pass(&chunk[..length], &mut std::io::stderr()),
            }
        }
    }
    if child.wait().map_err(failed)?.success() {
        return Ok(());
    }
    // What was held back says why.
    let _ = std::io::stderr().write_all(&filter.held);
    Err("`cargo build --package soda-cli --bin soda` failed".to_owned())
}

/// Whether a program of an earlier build lies beside this one.
fn is_built(release: bool) -> bool {
    let own = std::env::current_exe().unwrap_or_default();
    let folder = own
        .parent()
        .map(|folder| if release { folder.with_file_name("release") } else { folder.into() });
    folder
        .is_some_and(|folder| folder.join(format!("soda{}", std::env::consts::EXE_SUFFIX)).exists())
}

/// Passes cargo's output on once it shows that there is work.
struct Filter {
    first: &'static str,
    terminal: bool,
    working: bool,
    held: Vec<u8>,
}

impl Filter {
    fn pass(&mut self, chunk: &[u8], out: &mut impl Write) {
        self.held.extend_from_slice(chunk);
        if !self.working {
            let text = String::from_utf8_lossy(&self.held);
            self.working = WORK.iter().any(|word| text.contains(word));
            if self.working {
                // A closed stderr is no reason to stop building.
                let _ = writeln!(out, "{}", self.first);
            }
        }
        if self.working && self.terminal {
            let _ = out.write_all(&self.held).and_then(|()| out.flush());
            self.held.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Filter;

    fn passed(terminal: bool, chunks: &[&str]) -> String {
        let mut filter = Filter { first: "first", terminal, working: false, held: Vec::new() };
        let mut out = Vec::new();
        for chunk in chunks {
            filter.pass(chunk.as_bytes(), &mut out);
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn nothing_to_build_is_silent() {
        assert_eq!(passed(true, &["    Finished `dev` profile in 0.1s\n"]), "");
    }

    #[test]
    fn a_terminal_sees_cargo_and_a_pipe_sees_one_line() {
        let chunks = ["   Compi", "ling burn v0.22.1\n", "   Compiling soda\n"];
        assert_eq!(passed(true, &chunks), format!("first\n{}", chunks.concat()));
        assert_eq!(passed(false, &chunks), "first\n");
    }
}
