//! Child processes whose output is a file, and which are known by it after a restart of the server.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use soda_models::input_file::{self, SizeLimit};

/// The size of an output that is read. It has a line for each warning.
const OUTPUT: SizeLimit = SizeLimit { bytes: 16 << 20, kind: "the output of a process" };
/// The time between two attempts to lock an output, and their number. Who only looks holds the lock briefly.
const PAUSE: Duration = Duration::from_millis(20);
const ATTEMPTS: usize = 10;

/// Starts a process whose output is appended to `log`, in a process group of its own.
///
/// # Errors
/// The error of the operating system, or [`io::ErrorKind::WouldBlock`] if a process still writes to `log`.
pub(crate) fn start(command: &mut Command, log: &Path) -> io::Result<Child> {
    let output: File = OpenOptions::new().append(true).create(true).open(log)?;
    lock(&output)?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    detach(command);
    let child = command.spawn();
    // What is kept of the output here would keep its lock.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    child
}

/// Whether a process that [`start`] of this or of an earlier server began still writes to `log`. Only Unix
/// knows it; elsewhere the answer is false.
pub(crate) fn is_running(log: &Path) -> bool {
    let Ok(file) = OpenOptions::new().read(true).open(log) else { return false };
    cfg!(unix) && matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// The last `count` bytes of an output.
pub(crate) fn end_of(log: &Path, count: usize) -> String {
    let bytes = input_file::read(log, OUTPUT).unwrap_or_default();
    let end = &bytes[bytes.len().saturating_sub(count)..];
    String::from_utf8_lossy(end).into_owned()
}

/// Locks an output. The lock belongs to the open file, which the child inherits, and ends with the child.
#[cfg(unix)]
fn lock(output: &File) -> io::Result<()> {
    for _ in 0..ATTEMPTS {
        match output.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => sleep(PAUSE),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Err(io::Error::new(io::ErrorKind::WouldBlock, "a process still works on it"))
}

/// Other systems would refuse to read a locked file.
#[cfg(not(unix))]
fn lock(_: &File) -> io::Result<()> {
    Ok(())
}

/// Puts the child into a process group of its own.
#[cfg(unix)]
fn detach(command: &mut Command) {
    use std::os::unix::process::CommandExt as _;
    command.process_group(0);
}

/// Puts the child into a process group of its own, without a console window.
#[cfg(windows)]
fn detach(command: &mut Command) {
    use std::os::windows::process::CommandExt as _;
    const CREATE_NEW_PROCESS_GROUP: u32 = 0x200;
    const CREATE_NO_WINDOW: u32 = 0x0800_0000;
    command.creation_flags(CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW);
}

/// Other systems have no process groups.
#[cfg(not(any(unix, windows)))]
fn detach(_: &mut Command) {}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn a_process_is_known_by_its_output_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("a.log");
        assert!(!is_running(&log));
        let mut child =
            start(Command::new("sh").args(["-c", "echo begun; sleep 60"]), &log).unwrap();
        while end_of(&log, 100) != "begun\n" {
            sleep(PAUSE);
        }
        assert!(is_running(&log));
        let second = start(&mut Command::new("true"), &log).map(|_| ()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::WouldBlock);
        // The shell's own child has the output as well.
        let group = format!("-{}", child.id());
        assert!(Command::new("kill").args(["-9", "--", &group]).status().unwrap().success());
        child.wait().unwrap();
        while is_running(&log) {
            sleep(PAUSE);
        }
        assert_eq!(end_of(&log, 2), "n\n");
    }
}
