//! Everything the program says. Bars and chatter go to standard error, and only to a terminal; results go
//! to standard output.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the file that prints")]

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
        }
    }

    /// A line above the bar, on standard error, terminal or not.
    pub(crate) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Leaves the last bar standing, filled.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish();
        }
    }
}

/// A line of result on standard output.
pub(crate) fn say_result(line: &str) {
    println!("{line}");
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
    eprintln!("{line}");
}

/// A stage of known length.
const BAR: &str = "{prefix:>16} [{bar:30}] {pos}/{len} {msg} {per_sec} {elapsed}<{eta}";
/// A stage that says nothing until it is done.
const SPINNER: &str = "{prefix:>16} {spinner} {elapsed}";

fn style(template: &str) -> ProgressStyle {
    // A template that does not parse would be a bug of this file; the default bar still works then.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
