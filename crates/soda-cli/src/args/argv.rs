//! Options as a command line, for commands that run as child processes.

use std::ffi::{OsStr, OsString};

/// Options that can be written as a command line.
pub(crate) trait ToArgv {
    /// Appends the options to `argv`. Parsing them gives the same options.
    fn append_to(&self, argv: &mut Vec<OsString>);
}

/// The option `--name=value`. In one argument, the value may begin with a hyphen.
pub(crate) fn option(name: &str, value: impl AsRef<OsStr>) -> OsString {
    let mut argument = OsString::from(format!("--{name}="));
    argument.push(value);
    argument
}

/// The option `--name=value` for each of the values.
pub(crate) fn repeated<V: AsRef<OsStr>>(
    name: &str,
    values: impl IntoIterator<Item = V>,
) -> impl Iterator<Item = OsString> {
    values.into_iter().map(move |value| option(name, value))
}
