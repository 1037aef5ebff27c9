//! Everything the program says. Bars and chatter go to standard error, and only to a terminal; results go
//! to standard output.

use std::io::{ErrorKind, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use soda_train::Event;

/// One progress bar, a stage at a time.
#[derive(Default)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Shows an event. indicatif itself stays silent where standard error is no terminal.
    pub(crate) fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Stage { name } => {
                self.finish();
                let bar = ProgressBar::no_length()
                    .with_style(style(SPINNER))
                    .with_prefix(name.to_owned());
                bar.enable_steady_tick(Duration::from_millis(200));
                self.bar = Some(bar);
            }
            Event::Progress { done, total, loss } => {
                let Some(bar) = &self.bar else { return };
                if bar.length().is_none() {
                    bar.set_style(style(BAR));
                    bar.set_length(total as u64);
                }
                if let Some(loss) = loss {
                    bar.set_message(format!("loss {loss:.4}"));
                }
                bar.set_position(done as u64);
            }
            Event::Warning(text) => self.say(&format!("warning: {text}")),
            Event::Note(text) => self.say(text),
        }
    }

    /// Shows the transfer of a file, in bytes.
    #[cfg(feature = "hub")]
    pub(crate) fn transfer(&mut self, file: &str, done: usize, total: usize) {
        if self.bar.as_ref().is_none_or(|bar| bar.prefix() != file) {
            self.finish();
            let bar = ProgressBar::new(total as u64).with_style(style(BYTES));
            self.bar = Some(bar.with_prefix(file.to_owned()));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        }
    }

    /// Whether there is a bar.
    pub(crate) fn is_shown(&self) -> bool {
        self.bar.is_some()
    }

    /// A line above the bar, on standard error, terminal or not.
    pub(crate) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say_aside(line)),
            None => say_aside(line),
        }
    }

    /// Leaves the last bar standing, filled.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}

/// A line of result on standard output. Where it cannot be written, nobody waits for the rest.
pub(crate) fn say_result(line: &str) {
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        // The reader of a pipe may have seen enough, as `head` has.
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        say_aside(&format!("error: cannot write to standard output: {error}"));
        std::process::exit(1);
    }
}

/// A line on standard error, which may be closed.
fn say_aside(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// An error with its causes, in one line. A sentence often has its cause in it: that is not said again.
pub(crate) fn say_error(error: &anyhow::Error) {
    let mut line = String::from("error");
    for cause in error.chain().map(ToString::to_string) {
        if !line.contains(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    say_aside(&line);
}

/// A stage of known length.
const BAR: &str = "{prefix:>16} [{bar:30}] {pos}/{len} {msg} {per_sec} {elapsed}<{eta}";
/// A file on its way.
#[cfg(feature = "hub")]
const BYTES: &str = "{prefix:>40} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
/// A stage that says nothing until it is done.
const SPINNER: &str = "{prefix:>16} {spinner} {elapsed}";

fn style(template: &str) -> ProgressStyle {
    // A template that does not parse would be a bug of this file; the default bar still works then.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
