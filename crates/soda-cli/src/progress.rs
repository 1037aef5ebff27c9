//! All output of the program.
//!
//! Progress bars and messages go to standard error; bars only to a terminal. Results go to standard output.

use std::io::{ErrorKind, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use soda_train::{Event, in_words};

use crate::escape::escape;

/// A progress bar that shows one stage at a time.
#[derive(Default)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Shows an event. indicatif draws nothing if standard error is no terminal.
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
            Event::Warning(text) => self.warn(text),
            Event::Note(text) => self.print(text),
        }
    }

    /// Shows the progress of a download, in bytes.
    #[cfg(feature = "hub")]
    pub(crate) fn transfer(&mut self, file: &str, done: usize, total: usize) {
        if self.bar.as_ref().is_none_or(|bar| bar.prefix() != escape(file)) {
            self.finish();
            let bar = ProgressBar::new(total as u64).with_style(style(BYTES));
            self.bar = Some(bar.with_prefix(escape(file).into_owned()));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
        }
    }

    /// Whether a bar is shown.
    pub(crate) fn is_shown(&self) -> bool {
        self.bar.is_some()
    }

    /// Prints a warning on standard error, above the bar.
    pub(crate) fn warn(&self, text: &str) {
        self.print(&format!("warning: {text}"));
    }

    /// Prints a line on standard error, above the bar.
    pub(crate) fn print(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print_stderr(line)),
            None => print_stderr(line),
        }
    }

    /// Finishes the bar and leaves it on the terminal.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}

/// Prints a line of the result on standard output, with control characters escaped. Ends the process if it
/// cannot be written.
pub(crate) fn print_result(line: &str) {
    if let Err(error) = writeln!(std::io::stdout(), "{}", escape(line)) {
        // The reader of a pipe, such as `head`, may close it early.
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        print_stderr(&format!("error: cannot write to standard output: {error}"));
        std::process::exit(1);
    }
}

/// Prints a line on standard error, with control characters escaped. Ignores a closed stream.
pub(crate) fn print_stderr(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", escape(line));
}

/// Prints an error, its causes and the remedy on one line.
pub(crate) fn print_error(error: &anyhow::Error, remedy: &str) {
    print_stderr(&format!("error: {}", sentence(error, remedy)));
}

/// An error, its causes and the remedy. Leaves out a cause whose text the sentence has already.
pub(crate) fn sentence(error: &anyhow::Error, remedy: &str) -> String {
    let mut line = String::new();
    for cause in error.chain().map(|cause| in_words(&cause.to_string())) {
        if !line.contains(&cause) {
            let separator = if line.is_empty() { "" } else { ": " };
            line.push_str(separator);
            line.push_str(&cause);
        }
    }
    line + remedy
}

/// The bar of a stage with a known length.
const BAR: &str = "{prefix:>16} [{bar:30}] {pos}/{len} {msg} {per_sec} {elapsed}<{eta}";
/// The bar of a download.
#[cfg(feature = "hub")]
const BYTES: &str = "{prefix:>40} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
/// The spinner of a stage without a known length.
const SPINNER: &str = "{prefix:>16} {spinner} {elapsed}";

fn style(template: &str) -> ProgressStyle {
    // An invalid template would be a bug of this file. The default bar works then.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
