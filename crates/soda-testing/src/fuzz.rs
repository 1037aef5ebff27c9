//! Fuzzing in process: seeds are damaged by a deterministic generator and given to a reader.
//!
//! `cargo test` runs a short form. These variables of the environment choose another one:
//!
//! | variable | meaning |
//! |---|---|
//! | `SODA_FUZZ=1000000` | the inputs of each reader |
//! | `SODA_FUZZ_SECONDS=10` | the time for each reader, instead of a number of inputs |
//! | `SODA_FUZZ_FROM=104252` | the number of the first input |
//! | `SODA_FUZZ_TARGET=picture` | the only reader that is run |
//!
//! An input may take ten seconds, and the process 3000 MiB of memory. Another thread watches both: a reader
//! that hangs ends the tests with the number of its input.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use crate::mutator::Mutator;
use crate::watch::{LONGEST, Watch, repeat, say};

/// Gives damaged seeds to `reader`: `short` of them, or as many as the environment says.
///
/// # Panics
/// If the reader panics or takes more than ten seconds, with the number of the input. Also without seeds.
/// A reader that does not return, or takes more than 3000 MiB, ends the process (memory: on Linux).
pub fn fuzz(name: &str, seeds: &[Vec<u8>], short: u64, mut reader: impl FnMut(&[u8])) {
    assert!(!seeds.is_empty(), "{name}: there are no seeds");
    let plan = Plan::from_env(short);
    if !plan.includes(name) {
        return;
    }
    let watch = Watch::start(name, plan.from);
    let started = Instant::now();
    let mut number = plan.from;
    while plan.goes_on(number, started) {
        let mut mutator = Mutator::new(number);
        let seed = &seeds[mutator.below(seeds.len())];
        let input = mutator.damage(seed);
        let start = Instant::now();
        watch.begin(number);
        let result = catch_unwind(AssertUnwindSafe(|| reader(&input)));
        let again = repeat(name, number);
        if let Err(panic) = result {
            let reason = panic.downcast_ref::<String>().cloned();
            let reason = reason.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            match reason {
                Some(reason) => panic!("{name}: input {number} panics ({reason}); {again}"),
                None => resume_unwind(panic),
            }
        }
        let took = start.elapsed();
        assert!(took <= LONGEST, "{name}: input {number} takes {took:?}; {again}");
        number += 1;
    }
    watch.end();
    if plan.is_long {
        let (count, seconds) = (number - plan.from, started.elapsed().as_secs_f64());
        let rate = count as f64 / seconds.max(1e-9);
        say(&format!("fuzz {name}: {count} inputs in {seconds:.1} s, {rate:.0} a second"));
    }
}

/// Which inputs are tried.
struct Plan {
    from: u64,
    count: u64,
    seconds: Option<Duration>,
    target: Option<String>,
    is_long: bool,
}

impl Plan {
    fn from_env(short: u64) -> Self {
        Self::new(short, |name| std::env::var(name).ok())
    }

    /// # Panics
    /// If a variable is no number: a mistyped one would make the long form a short one.
    fn new(short: u64, variable: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| {
            variable(name)
                .map(|text| text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text}")))
        };
        let count = number("SODA_FUZZ");
        let seconds = number("SODA_FUZZ_SECONDS").filter(|_| count.is_none());
        Self {
            from: number("SODA_FUZZ_FROM").unwrap_or(0),
            count: count.unwrap_or(short),
            seconds: seconds.map(Duration::from_secs),
            target: variable("SODA_FUZZ_TARGET"),
            is_long: count.is_some() || seconds.is_some(),
        }
    }

    fn includes(&self, name: &str) -> bool {
        self.target.as_ref().is_none_or(|target| target == name)
    }

    fn goes_on(&self, number: u64, started: Instant) -> bool {
        match self.seconds {
            Some(seconds) => started.elapsed() < seconds,
            None => number - self.from < self.count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::{LOOK, MOST_MEMORY};

    #[test]
    fn a_panic_is_reported_with_its_input() {
        let seeds = [b"1234".to_vec()];
        let reader = |input: &[u8]| assert!(input.len() < 5, "too long");
        let panic = catch_unwind(|| fuzz("a reader", &seeds, 1000, reader));
        let panic = panic.expect_err("some inputs are longer");
        let reason = panic.downcast_ref::<String>().expect("a message");
        assert!(reason.contains("too long") && reason.contains("SODA_FUZZ_FROM="), "{reason}");
    }

    #[test]
    fn the_environment_chooses_inputs() {
        let plan = |variables: &[(&str, &str)]| {
            Plan::new(7, |name| {
                let found = variables.iter().find(|(variable, _)| *variable == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let now = Instant::now();
        let short = plan(&[]);
        assert!(short.goes_on(6, now) && !short.goes_on(7, now) && !short.is_long);
        let some = plan(&[("SODA_FUZZ", "2"), ("SODA_FUZZ_FROM", "5"), ("SODA_FUZZ_SECONDS", "9")]);
        assert!(some.goes_on(6, now) && !some.goes_on(7, now) && some.is_long);
        let timed = plan(&[("SODA_FUZZ_SECONDS", "3600")]);
        assert!(timed.goes_on(1 << 40, now) && timed.is_long);
        assert!(!plan(&[("SODA_FUZZ_SECONDS", "0")]).goes_on(0, now));
        assert!(short.includes("a") && !plan(&[("SODA_FUZZ_TARGET", "b")]).includes("a"));
        assert!(catch_unwind(|| plan(&[("SODA_FUZZ", "1e6")])).is_err());
    }

    /// A hang must end the process of the tests, which only another process can see.
    #[test]
    fn a_reader_that_hangs_or_fills_the_memory_ends_the_process() {
        const WHAT: &str = "SODA_FUZZ_TRIAL";
        let trial = "fuzz::tests::a_reader_that_hangs_or_fills_the_memory_ends_the_process";
        let seeds = [b"1234".to_vec()];
        match std::env::var(WHAT).as_deref() {
            Ok("hang") => fuzz("a trial", &seeds, 1, |_| {
                loop {
                    std::thread::sleep(LOOK);
                }
            }),
            Ok(_) => fuzz("a trial", &seeds, 1000, |_| {
                let much = vec![1u8; ((MOST_MEMORY + 30) << 20) as usize];
                assert!(std::hint::black_box(&much).len() > 1);
            }),
            Err(_) => {
                let trials: &[_] = match cfg!(target_os = "linux") {
                    true => &[("hang", "does not return"), ("memory", "MiB")],
                    false => &[("hang", "does not return")],
                };
                for (what, reason) in trials {
                    let mut again =
                        std::process::Command::new(std::env::current_exe().expect("it"));
                    again.args(["--exact", trial]).env(WHAT, what);
                    for name in ["SODA_FUZZ", "SODA_FUZZ_SECONDS", "SODA_FUZZ_TARGET"] {
                        again.env_remove(name);
                    }
                    let output = again.output().expect("this program runs");
                    let said = String::from_utf8_lossy(&output.stderr);
                    assert!(!output.status.success() && said.contains(reason), "{what}: {said}");
                }
            }
        }
    }
}
