//! Answers to requests, with the header fields that every answer has.

use std::io::{self, Write};

use serde::Serialize;

/// Header fields of every answer. Scripts, styles and pictures come from the server alone, no other page may
/// frame or read it, and browsers guess no types.
const FIELDS: &str = "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; \
img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
X-Content-Type-Options: nosniff\r\n\
Referrer-Policy: no-referrer\r\n\
Cross-Origin-Opener-Policy: same-origin\r\n\
Cross-Origin-Resource-Policy: same-origin\r\n\
Cache-Control: no-store\r\n";

/// Writes server-sent events until the connection or their source ends.
pub(crate) type SendEvents = Box<dyn FnOnce(&mut dyn Write) -> io::Result<()> + Send>;

/// What a route answers.
pub(crate) enum Answer {
    /// A response with a body of known length.
    Whole(Response),
    /// Server-sent events.
    Events(SendEvents),
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self::Whole(response)
    }
}

/// A response with a body of known length.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    content_type: &'static str,
    field: Option<(&'static str, String)>,
    body: Vec<u8>,
}

impl Response {
    /// A file of a fixed type.
    pub(crate) fn file(content_type: &'static str, body: Vec<u8>) -> Self {
        Self { status: 200, content_type, field: None, body }
    }

    /// A picture in PNG.
    pub(crate) fn png(body: Vec<u8>) -> Self {
        Self::file("image/png", body)
    }

    /// A value as JSON.
    pub(crate) fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::file("application/json", body),
            Err(error) => Self::error(500, &error.to_string()),
        }
    }

    /// A refusal, whose sentence the page shows.
    pub(crate) fn error(status: u16, sentence: &str) -> Self {
        let body = serde_json::json!({ "error": sentence }).to_string().into_bytes();
        Self { status, ..Self::file("application/json", body) }
    }

    /// The answer for an address that names nothing.
    pub(crate) fn not_found() -> Self {
        Self::error(404, "there is nothing at this address")
    }

    /// Sends the browser to the page `/`, with a cookie.
    pub(crate) fn to_page(cookie: &str) -> Self {
        let field = Some(("Set-Cookie", cookie.to_owned()));
        Self { status: 303, field, ..Self::file("text/plain; charset=utf-8", Vec::new()) }
    }

    /// The body.
    #[cfg(test)]
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Writes the response.
    pub(super) fn write(&self, stream: &mut impl Write, keeps_alive: bool) -> io::Result<()> {
        let mut head = head(self.status, self.content_type);
        head += &format!("Content-Length: {}\r\n", self.body.len());
        if self.status == 303 {
            head += "Location: /\r\n";
        }
        if let Some((name, value)) = &self.field {
            head += &format!("{name}: {value}\r\n");
        }
        if !keeps_alive {
            head += "Connection: close\r\n";
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        stream.write_all(&self.body)?;
        stream.flush()
    }
}

/// Writes the head of server-sent events.
pub(super) fn write_events_head(stream: &mut impl Write) -> io::Result<()> {
    let head = head(200, "text/event-stream");
    stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())
}

/// The status line and the fields of every answer.
fn head(status: u16, content_type: &str) -> String {
    let reason = match status {
        200 => "OK",
        303 => "See Other",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Content",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    };
    format!("HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\n{FIELDS}")
}
