//! `--timings`: where the time of a command goes.
//!
//! The libraries mark their stages as spans of the crate `tracing`. A GPU works behind the program, so the
//! end of a span waits for the device. Without `--timings` nothing waits and nothing is recorded.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::device;
use crate::progress::print_stderr;

/// The beginning of the names of the crates whose spans are recorded.
const CRATES: &str = "soda";

/// The times of all stages since the start of the program.
pub(crate) struct Timings {
    started: Instant,
    stages: Arc<Stages>,
}

impl Timings {
    /// Records the stages of this process from now on. Another recorder of spans stays, if there is one.
    pub(crate) fn record() -> Self {
        let stages = Arc::new(Stages::default());
        let recorder = Recorder { stages: Arc::clone(&stages), wait: device::finish };
        // A process has one recorder, and `main` sets none before.
        let _ = tracing::subscriber::set_global_default(recorder);
        Self { started: Instant::now(), stages }
    }

    /// Prints the table of the stages on standard error.
    pub(crate) fn print(&self) {
        for line in self.stages.table(self.started.elapsed()) {
            print_stderr(&line);
        }
    }
}

/// The stages as a tree, in the order in which they began.
#[derive(Default)]
struct Stages(Mutex<Vec<Stage>>);

struct Stage {
    name: &'static str,
    parent: Option<usize>,
    calls: usize,
    time: Duration,
}

impl Stages {
    /// The stage `name` inside `parent`, which is new at its first call.
    fn find_or_add(&self, name: &'static str, parent: Option<usize>) -> usize {
        let mut stages = self.lock();
        let found = stages.iter().position(|stage| (stage.name, stage.parent) == (name, parent));
        found.unwrap_or_else(|| {
            stages.push(Stage { name, parent, calls: 0, time: Duration::ZERO });
            stages.len() - 1
        })
    }

    fn add(&self, index: usize, time: Duration) {
        if let Some(stage) = self.lock().get_mut(index) {
            stage.calls += 1;
            stage.time += time;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Stage>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines of the table. A stage that belongs to another is indented.
    fn table(&self, total: Duration) -> Vec<String> {
        fn below(stages: &[Stage], parent: Option<usize>, depth: usize, lines: &mut Vec<String>) {
            for (index, stage) in stages.iter().enumerate().filter(|(_, s)| s.parent == parent) {
                let name = format!("{:indent$}{}", "", stage.name, indent = 2 * depth);
                lines.push(line(&name, stage.time, &stage.calls.to_string()));
                below(stages, Some(index), depth + 1, lines);
            }
        }
        let mut lines = vec![format!("{:<36}{:>10}{:>8}", "stage", "seconds", "calls")];
        below(&self.lock(), None, 0, &mut lines);
        lines.push(line("total", total, ""));
        lines
    }
}

fn line(name: &str, time: Duration, calls: &str) -> String {
    format!("{name:<36}{:>10.3}{calls:>8}", time.as_secs_f64()).trim_end().to_owned()
}

thread_local! {
    /// The open stages of this thread, from the outermost, with the times at which they began.
    static OPEN: RefCell<Vec<(usize, Instant)>> = const { RefCell::new(Vec::new()) };
}

/// Records spans as stages.
struct Recorder {
    stages: Arc<Stages>,
    /// Waits for the device.
    wait: fn(),
}

impl Subscriber for Recorder {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span()
            && metadata.target().starts_with(CRATES)
            && *metadata.level() <= Level::INFO
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let parent = OPEN.with_borrow(|open| open.last().map(|(index, _)| *index));
        let index = self.stages.find_or_add(span.metadata().name(), parent);
        Id::from_u64(index as u64 + 1)
    }

    fn enter(&self, span: &Id) {
        OPEN.with_borrow_mut(|open| open.push((span.into_u64() as usize - 1, Instant::now())));
    }

    fn exit(&self, _span: &Id) {
        (self.wait)();
        if let Some((index, began)) = OPEN.with_borrow_mut(Vec::pop) {
            self.stages.add(index, began.elapsed());
        }
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, _event: &Event<'_>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_are_counted_inside_the_stages_that_they_belong_to() {
        let stages = Stages::default();
        let load = stages.find_or_add("load", None);
        for (name, parent, calls) in [("unet", Some(load), 1), ("step", None, 3), ("unet", None, 2)]
        {
            for _ in 0..calls {
                let stage = stages.find_or_add(name, parent);
                stages.add(stage, Duration::from_millis(250));
            }
        }
        stages.add(load, Duration::from_secs(1));
        let expected = [
            "stage                                  seconds   calls",
            "load                                     1.000       1",
            "  unet                                   0.250       1",
            "step                                     0.750       3",
            "unet                                     0.500       2",
            "total                                    2.000",
        ];
        assert_eq!(stages.table(Duration::from_secs(2)), expected);
    }
}
