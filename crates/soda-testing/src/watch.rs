//! A thread that ends the process if a reader hangs or takes too much memory.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The longest time that a reader may take for one input.
pub(crate) const LONGEST: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });

/// The most memory of a process of tests while a reader runs, in MiB. A picture of the largest size takes
/// most of it, while it is decoded.
pub(crate) const MOST_MEMORY: u64 = if cfg!(test) { 64 } else { 3000 };

/// The time between two looks at a reader.
pub(crate) const LOOK: Duration = Duration::from_millis(100);

pub(crate) fn repeat(name: &str, number: u64) -> String {
    format!("repeat it with SODA_FUZZ_TARGET='{name}' SODA_FUZZ_FROM={number} SODA_FUZZ=1")
}

/// Writes a line that the test harness does not keep back: it would be lost at the end of the process.
pub(crate) fn say(line: &str) {
    // Nobody may read the output any more.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A thread that looks at a reader from time to time.
pub(crate) struct Watch {
    shared: Arc<Watched>,
}

struct Watched {
    name: String,
    /// The number of the present input.
    number: AtomicU64,
    /// The milliseconds from `started` to the beginning of the present input.
    since: AtomicU64,
    started: Instant,
    ended: AtomicBool,
}

impl Watch {
    pub(crate) fn start(name: &str, from: u64) -> Self {
        let shared = Arc::new(Watched {
            name: name.to_owned(),
            number: AtomicU64::new(from),
            since: AtomicU64::new(0),
            started: Instant::now(),
            ended: AtomicBool::new(false),
        });
        let watched = Arc::clone(&shared);
        std::thread::spawn(move || {
            while !watched.ended.load(Relaxed) {
                watched.look();
                std::thread::sleep(LOOK);
            }
        });
        Self { shared }
    }

    pub(crate) fn begin(&self, number: u64) {
        self.shared.number.store(number, Relaxed);
        self.shared.since.store(self.shared.milliseconds(), Relaxed);
    }

    /// Looks a last time, at the peak of the memory.
    pub(crate) fn end(&self) {
        self.shared.look();
        self.shared.ended.store(true, Relaxed);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.ended.store(true, Relaxed);
    }
}

impl Watched {
    fn milliseconds(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn look(&self) {
        let took = self.milliseconds().saturating_sub(self.since.load(Relaxed));
        // Some time more: the reader's own thread has the better message, if it returns.
        let hangs = took > LONGEST.as_millis() as u64 + 500;
        let memory = peak_memory().filter(|memory| *memory > MOST_MEMORY);
        if !hangs && memory.is_none() {
            return;
        }
        let number = self.number.load(Relaxed);
        let what = memory.map_or_else(
            || format!("does not return within {LONGEST:?}"),
            |memory| format!("or one just before it takes {memory} MiB of {MOST_MEMORY}"),
        );
        let (name, again) = (&self.name, repeat(&self.name, number));
        say(&format!("{name}: input {number} {what}; {again}"));
        // The thread of the reader cannot be ended.
        std::process::abort();
    }
}

/// The largest memory of this process so far, in MiB. `None` on other systems than Linux.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? >> 10)
}
