//! One connection: requests and their answers, one after the other.

use std::io::Read as _;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use super::request::Request;
use super::response::{Answer, Response, write_events_head};

/// The time that a connection may be idle, and that one write may take.
const IDLE: Duration = Duration::from_secs(20);

/// The most bytes of a refused request that are still read.
const MAX_DRAINED: usize = 1 << 20;

/// Answers the requests of a connection until it ends. `admit` looks at the head of a request, see
/// [`Request::read`], and `answer` makes the answer to it.
pub(crate) fn serve(
    mut stream: TcpStream,
    admit: impl Fn(&Request) -> Result<usize, Response>,
    answer: impl Fn(&Request) -> Answer,
) {
    let limited =
        stream.set_read_timeout(Some(IDLE)).and_then(|()| stream.set_write_timeout(Some(IDLE)));
    if limited.is_err() {
        return;
    }
    let _ = stream.set_nodelay(true);
    let mut rest = Vec::new();
    loop {
        let request = match Request::read(&mut stream, &mut rest, &admit) {
            Ok(Some(request)) => request,
            Ok(None) => return,
            Err(refusal) => {
                let _ = refusal.write(&mut stream, false);
                return drain(&stream);
            }
        };
        let keeps_alive = request.keeps_alive();
        let written = match answer(&request) {
            Answer::Whole(response) => response.write(&mut stream, keeps_alive),
            Answer::Events(write) => {
                let _ = write_events_head(&mut stream).and_then(|()| write(&mut stream));
                return;
            }
        };
        if written.is_err() || !keeps_alive {
            return;
        }
    }
}

/// Reads on for a moment before the connection is closed. What was sent and not read would otherwise reset
/// the connection, and the browser would lose the refusal.
fn drain(mut stream: &TcpStream) {
    let ended = stream
        .shutdown(Shutdown::Write)
        .and_then(|()| stream.set_read_timeout(Some(Duration::from_millis(200))));
    let mut bytes = [0; 4096];
    let mut left = MAX_DRAINED;
    while left > 0 && ended.is_ok() {
        match stream.read(&mut bytes) {
            Ok(count) if count > 0 => left = left.saturating_sub(count),
            _ => return,
        }
    }
}
