//! Reading of requests.

use std::io::Read;
use std::time::{Duration, Instant};

use super::response::Response;

/// The most bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// The most header fields.
const MAX_FIELDS: usize = 64;
/// The most bytes of most bodies: settings or one caption.
pub(crate) const MAX_BODY: usize = 256 << 10;
/// The time within which a request must be whole, so that a slow sender does not keep a thread.
const PATIENCE: Duration = Duration::from_secs(20);
/// The bytes of a body for which that time is given again.
const PACE: usize = 2 << 20;

/// The methods that are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// Reading.
    Get,
    /// An action.
    Post,
    /// Writing.
    Put,
}

/// A request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// The path of the address, as sent.
    pub(crate) path: String,
    /// The part of the address after `?`, as sent.
    pub(crate) query: String,
    fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    /// The value of a header field, if the request has exactly one of this name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut all = self.fields.iter().filter(|(field, _)| field.eq_ignore_ascii_case(name));
        match (all.next(), all.next()) {
            (Some((_, value)), None) => Some(value),
            _ => None,
        }
    }

    /// Whether the request has a header field of this name.
    pub(crate) fn has_header(&self, name: &str) -> bool {
        self.fields.iter().any(|(field, _)| field.eq_ignore_ascii_case(name))
    }

    /// The value of the cookie `name`.
    pub(crate) fn cookie(&self, name: &str) -> Option<&str> {
        let pairs = self.header("cookie")?.split(';').filter_map(|pair| pair.split_once('='));
        let mut values =
            pairs.filter(|(found, _)| found.trim() == name).map(|(_, value)| value.trim());
        values.next()
    }

    /// Whether the connection stays open after the answer.
    pub(super) fn keeps_alive(&self) -> bool {
        !self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// Reads the next request. `rest` holds what was read beyond it. `None` at the end of the connection.
    /// `admit` looks at the head and gives the most bytes of the body, or refuses the request before that
    /// is read.
    ///
    /// # Errors
    /// The answer to a request that is refused. The connection must end with it.
    pub(crate) fn read(
        stream: &mut impl Read,
        rest: &mut Vec<u8>,
        admit: &dyn Fn(&Self) -> Result<usize, Response>,
    ) -> Result<Option<Self>, Response> {
        let mut deadline = Instant::now() + PATIENCE;
        let (mut request, length, start) = loop {
            if let Some(found) = parse(rest)? {
                break found;
            }
            if rest.len() >= MAX_HEAD {
                return Err(Response::error(431, "the head of the request is too long"));
            }
            if !fill(stream, rest, deadline)? {
                return Ok(None);
            }
        };
        if length > admit(&request)? {
            return Err(Response::error(413, "the body is too large"));
        }
        deadline += PATIENCE * u32::try_from(length / PACE).unwrap_or(u32::MAX);
        while rest.len() < start + length {
            if !fill(stream, rest, deadline)? {
                return Ok(None);
            }
        }
        request.body = rest[start..start + length].to_vec();
        rest.drain(..start + length);
        Ok(Some(request))
    }
}

/// Reads more bytes. False at the end of the connection, and if nothing comes.
fn fill(stream: &mut impl Read, rest: &mut Vec<u8>, deadline: Instant) -> Result<bool, Response> {
    if Instant::now() > deadline {
        return Err(Response::error(408, "the request took too long"));
    }
    let mut bytes = [0; 16 << 10];
    let count = stream.read(&mut bytes).unwrap_or(0);
    rest.extend(&bytes[..count]);
    Ok(count > 0)
}

/// The head of the request, the length of its body, and where that starts. `None` if the head is not whole.
fn parse(bytes: &[u8]) -> Result<Option<(Request, usize, usize)>, Response> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    let start = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(start)) => start,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Response::error(400, "this is no request of HTTP")),
    };
    let method = match parsed.method {
        Some("GET") => Method::Get,
        Some("POST") => Method::Post,
        Some("PUT") => Method::Put,
        _ => return Err(Response::error(405, "only GET, POST and PUT are answered")),
    };
    let address = parsed.path.unwrap_or_default();
    let (path, query) = address.split_once('?').unwrap_or((address, ""));
    let mut fields = Vec::new();
    for field in parsed.headers.iter() {
        let Ok(value) = std::str::from_utf8(field.value) else {
            return Err(Response::error(400, "a header field is not UTF-8"));
        };
        fields.push((field.name.to_owned(), value.trim().to_owned()));
    }
    let (path, query) = (path.to_owned(), query.to_owned());
    let request = Request { method, path, query, fields, body: Vec::new() };
    if request.has_header("transfer-encoding") {
        return Err(Response::error(501, "a body must have a length"));
    }
    let length = match request.header("content-length") {
        Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
        Some(_) => None,
        None if request.has_header("content-length") => None,
        None => Some(0),
    };
    match length {
        None => Err(Response::error(400, "the length of the body is no number")),
        Some(length) => Ok(Some((request, length, start))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Request>, u16> {
        let mut rest = Vec::new();
        Request::read(&mut text.as_bytes(), &mut rest, &|_| Ok(MAX_BODY))
            .map_err(|response| response.status)
    }

    #[test]
    fn requests_of_one_connection_are_read_one_by_one() {
        let text =
            "PUT /a?b=c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n{}\nGET / HTTP/1.1\r\n\r\n";
        let mut rest = Vec::new();
        let mut stream = text.as_bytes();
        let mut next = || Request::read(&mut stream, &mut rest, &|_| Ok(MAX_BODY)).ok().flatten();
        let first = next().expect("a request");
        assert_eq!((first.method, &*first.path, &*first.query), (Method::Put, "/a", "b=c"));
        assert_eq!((first.header("HOST"), &*first.body), (Some("x"), &b"{}\n"[..]));
        assert_eq!(next().map(|request| request.path), Some("/".to_owned()));
        assert!(next().is_none());
    }

    #[test]
    fn requests_that_are_not_understood_are_refused() {
        let huge = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(MAX_HEAD));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(MAX_FIELDS + 1));
        for (text, status) in [
            ("nonsense\r\n\r\n", 400),
            ("DELETE / HTTP/1.1\r\n\r\n", 405),
            ("GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
            ("POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\na", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 262145\r\n\r\n", 413),
            (&many, 400),
        ] {
            assert_eq!(read(text).err(), Some(status), "{text}");
        }
        assert!(matches!(read(&huge), Err(431) | Ok(Some(_))));
        // What ends early is no request.
        for text in ["", "GET / HT", "POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nshort"] {
            assert!(matches!(read(text), Ok(None)), "{text}");
        }
    }

    /// A sender without the token cannot make the server hold a body.
    #[test]
    fn a_request_is_refused_before_its_body_is_read() {
        let mut stream = "POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n123456789".as_bytes();
        let refuse = |_: &Request| Err(Response::error(401, "no"));
        // One byte at a time, so that what follows the head is still in the stream.
        let mut slow = std::iter::from_fn(|| {
            let (first, rest) = stream.split_at_checked(1)?;
            stream = rest;
            Some(first[0])
        });
        let mut reader = Bytes(&mut slow);
        let refused = Request::read(&mut reader, &mut Vec::new(), &refuse);
        assert_eq!(refused.err().map(|response| response.status), Some(401));
        assert_eq!(slow.count(), 9);
    }

    /// A stream that gives one byte at a time.
    struct Bytes<'a>(&'a mut dyn Iterator<Item = u8>);

    impl Read for Bytes<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            Ok(self.0.next().map_or(0, |byte| {
                buffer[0] = byte;
                1
            }))
        }
    }

    #[test]
    fn a_field_that_is_sent_twice_has_no_value() {
        let twice = "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nCookie: x=1; y=2\r\n\r\n";
        let request = read(twice).ok().flatten().expect("a request");
        assert_eq!((request.header("host"), request.has_header("host")), (None, true));
        assert_eq!((request.cookie("y"), request.cookie("z")), (Some("2"), None));
    }
}
