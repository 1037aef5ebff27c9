//! The log of a run as server-sent events.
//!
//! An event `lines` has some lines of the log, and as its id the place in the file after them. A browser that
//! reconnects sends that id, and gets the lines from there on. The event `end` says that no process works on
//! the run and that all lines were sent.

use std::io::{self, Read as _, Seek as _, SeekFrom, Write};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::App;
use crate::http::{Answer, Request, Response};
use crate::runs::{Run, find};

/// The most bytes of one event.
const CHUNK: usize = 256 << 10;
/// The time between two looks at the file.
const PAUSE: Duration = Duration::from_millis(300);
/// The time after which a comment is sent, which tells whether the page is still there.
const ALIVE: Duration = Duration::from_secs(5);

impl App {
    pub(super) fn events(&self, id: &str, request: &Request) -> Answer {
        let Some(run) = find(&self.config.runs, id) else { return Response::not_found().into() };
        // A browser that reconnects by itself sends the field. The page gives the place in the address.
        let from = request.header("last-event-id").or(request.query.strip_prefix("from="));
        let start = from.and_then(|text| text.parse().ok()).unwrap_or(0);
        Answer::Events(Box::new(move |stream| follow(&run, start, stream)))
    }
}

/// Sends the lines of a run's log from the place `at` on, until the run is over.
fn follow(run: &Run, mut at: u64, stream: &mut dyn Write) -> io::Result<()> {
    let mut last_sent = Instant::now();
    loop {
        // The state is looked at first: what is written before the end is sent before `end`.
        let is_over = run.is_over();
        let (next, lines) = read_lines(run, at)?;
        at = next;
        if !lines.is_empty() {
            let mut text = format!("id: {at}\nevent: lines\n");
            for line in lines.lines() {
                text += &format!("data: {line}\n");
            }
            stream.write_all(format!("{text}\n").as_bytes())?;
            last_sent = Instant::now();
            continue;
        }
        if is_over || !run.is_there() {
            return stream.write_all(format!("id: {at}\nevent: end\ndata: end\n\n").as_bytes());
        }
        if last_sent.elapsed() >= ALIVE {
            stream.write_all(b": alive\n\n")?;
            last_sent = Instant::now();
        }
        sleep(PAUSE);
    }
}

/// The whole lines of the log after the place `at`, and the place after them.
fn read_lines(run: &Run, at: u64) -> io::Result<(u64, String)> {
    let Some(mut file) = run.open_log() else { return Ok((at, String::new())) };
    // A log that was replaced is sent again.
    let at = if file.metadata()?.len() < at { 0 } else { at };
    file.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    file.take(CHUNK as u64).read_to_end(&mut bytes)?;
    let end = match bytes.iter().rposition(|byte| *byte == b'\n') {
        Some(last) => last + 1,
        // A line that is longer than any of a run is passed over.
        None if bytes.len() == CHUNK => return Ok((at + CHUNK as u64, String::new())),
        None => return Ok((at, String::new())),
    };
    let text = String::from_utf8_lossy(&bytes[..end]).replace('\r', " ");
    Ok((at + end as u64, text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;
    use crate::runs::list;

    fn sent(root: &std::path::Path, at: u64) -> String {
        let mut stream = Vec::new();
        follow(&list(root)[0], at, &mut stream).unwrap();
        String::from_utf8(stream).unwrap()
    }

    /// A browser that reconnects gets each line once, and a line that is not whole comes later.
    #[test]
    fn lines_are_sent_once_from_any_place() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.toml"), "").unwrap();
        assert_eq!(sent(root.path(), 0), "id: 0\nevent: end\ndata: end\n\n");
        let lines = "{\"a\":1}\n{\"b\":2}\n";
        std::fs::write(folder.join("events.jsonl"), format!("{lines}{{\"half")).unwrap();
        let end = format!("id: {}\nevent: end\ndata: end\n\n", lines.len());
        let all = "id: 16\nevent: lines\ndata: {\"a\":1}\ndata: {\"b\":2}\n\n";
        assert_eq!(sent(root.path(), 0), format!("{all}{end}"));
        let rest = "id: 16\nevent: lines\ndata: {\"b\":2}\n\n";
        assert_eq!(sent(root.path(), 8), format!("{rest}{end}"));
        assert_eq!(sent(root.path(), 16), end);
        // A place beyond the end is that of another log.
        assert_eq!(sent(root.path(), 99), format!("{all}{end}"));
    }

    #[test]
    fn a_log_of_many_parts_is_sent_whole() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.toml"), "").unwrap();
        let line =
            |number: usize| format!("{{\"number\":{number},\"text\":\"{}\"}}", "x".repeat(99));
        let text: String = (0..5000).map(|number| line(number) + "\n").collect();
        assert!(text.len() > 2 * CHUNK);
        std::fs::write(folder.join("events.jsonl"), &text).unwrap();
        let sent = sent(root.path(), 0);
        let found: Vec<&str> =
            sent.lines().filter_map(|line| line.strip_prefix("data: {")).collect();
        assert_eq!(found.len(), 5000);
        assert!(found.iter().enumerate().all(|(number, found)| line(number)[1..] == **found));
    }
}
