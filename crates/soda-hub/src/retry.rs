//! Repeats what may succeed the next time, after a pause.

use std::time::Duration;

use crate::failure::Failure;

/// The pause before the first repetition. Each later one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause that a server can ask for.
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// Calls `attempt` until it succeeds, or until `repetitions` of its last failure allows no further call.
///
/// # Errors
///
/// The last failure.
pub(crate) fn with_repetitions<T>(
    repetitions: impl Fn(&Failure) -> u32,
    mut attempt: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut failures = 0;
    loop {
        let failure = match attempt() {
            Ok(value) => return Ok(value),
            Err(failure) => failure,
        };
        if failures >= repetitions(&failure) {
            return Err(failure);
        }
        let asked = match &failure {
            Failure::Status { retry_after, .. } => retry_after.map(Duration::from_secs),
            _ => None,
        };
        std::thread::sleep(asked.unwrap_or(FIRST_PAUSE * 2_u32.pow(failures)).min(MAX_PAUSE));
        failures += 1;
    }
}
