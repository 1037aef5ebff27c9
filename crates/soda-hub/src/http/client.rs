//! GET requests with timeouts, with redirects followed by hand, and with the token for one origin only.

use std::io::Read;
use std::time::{Duration, Instant};

use ureq::http::HeaderMap;
use ureq::http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, RETRY_AFTER};
use ureq::{Agent, Body};

use super::redirect::{MAX_REDIRECTS, is_redirect, target};
use super::url::Url;
use crate::failure::{Failure, of_request};
use crate::names::shown;

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How many periods of silence the headers of an answer, or a text, may take in all.
const PATIENCE: u32 = 6;

/// The bytes that one period must bring; a server that sends less is as good as silent.
const LEAST_BYTES: usize = 1024;

/// The part of an unwanted body that is read so that the connection can be used again.
const DRAINED: u64 = 16 << 10;

/// The client of one hub.
pub(crate) struct Client {
    agent: Agent,
    endpoint: Url,
    /// The value of `Authorization`.
    authorization: Option<String>,
    silence: Duration,
}

/// The answer to a request.
pub(crate) struct Answer {
    pub(crate) url: Url,
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// Whether the answer is from the endpoint's own origin.
    pub(crate) is_own: bool,
    body: Body,
    silence: Duration,
}

impl Client {
    /// Returns a client that waits for a silent server as long as `silence`.
    pub(crate) fn new(endpoint: Url, token: Option<&str>, silence: Duration) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("soda/", env!("CARGO_PKG_VERSION")))
            // Lengths and digests are those of the plain bytes.
            .accept_encoding("identity")
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(silence))
            .timeout_per_write(Some(silence))
            .timeout_send_request(Some(silence))
            .timeout_recv_response(Some(silence.saturating_mul(PATIENCE)))
            .build();
        let authorization = token.map(|token| format!("Bearer {token}"));
        Self { agent: config.new_agent(), endpoint, authorization, silence }
    }

    pub(crate) fn endpoint(&self) -> &Url {
        &self.endpoint
    }

    /// Requests `url` with further header fields, and follows redirects until `is_enough` or the last one.
    ///
    /// # Errors
    ///
    /// Every failure of [`Failure`] that concerns a request. An answer whose status is an error is
    /// [`Failure::Status`].
    pub(crate) fn get(
        &self,
        url: &Url,
        fields: &[(&str, String)],
        mut is_enough: impl FnMut(&Answer) -> bool,
    ) -> Result<Answer, Failure> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut answer = self.get_once(&url, fields)?;
            if is_enough(&answer) {
                return Ok(answer);
            }
            if !is_redirect(answer.status) {
                return answer.into_success();
            }
            url = target(&url, &answer.headers).map_err(|reason| answer.not_a_hub(reason))?;
            answer.drain();
        }
        let reason = format!("it redirects more than {MAX_REDIRECTS} times");
        Err(Failure::NotAHub { host: url.host(), reason })
    }

    fn get_once(&self, url: &Url, fields: &[(&str, String)]) -> Result<Answer, Failure> {
        let is_own = url.origin() == self.endpoint.origin();
        let mut request = self.agent.get(url.as_uri());
        for (name, value) in fields {
            request = request.header(*name, value);
        }
        if let Some(authorization) = self.authorization.as_ref().filter(|_| is_own) {
            request = request.header(AUTHORIZATION, authorization);
        }
        let response = request
            .call()
            .map_err(|error| of_request(&url.host(), &error, self.silence.as_secs()))?;
        let (parts, body) = response.into_parts();
        Ok(Answer {
            url: url.clone(),
            status: parts.status.as_u16(),
            headers: parts.headers,
            is_own,
            body,
            silence: self.silence,
        })
    }
}

impl Answer {
    /// The text of a header, if it is there and is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The announced length of the body.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH.as_str())?.trim().parse().ok()
    }

    /// The failure of an answer that no hub gives.
    pub(crate) fn not_a_hub(&self, reason: impl Into<String>) -> Failure {
        Failure::NotAHub { host: self.url.host(), reason: reason.into() }
    }

    fn into_success(self) -> Result<Self, Failure> {
        if matches!(self.status, 200 | 206 | 416) {
            return match self.header(CONTENT_ENCODING.as_str()) {
                Some(encoding) if !encoding.trim().eq_ignore_ascii_case("identity") => {
                    Err(self.not_a_hub(format!("it encodes its answer as {}", shown(encoding))))
                }
                _ => Ok(self),
            };
        }
        Err(Failure::Status {
            status: self.status,
            code: self.header("X-Error-Code").map(str::to_owned),
            retry_after: self
                .header(RETRY_AFTER.as_str())
                .and_then(|text| text.trim().parse().ok()),
            file: None,
        })
    }

    /// Reads the rest of a short body, so that the connection can be used again.
    pub(crate) fn drain(&mut self) {
        // A body that cannot be read, or is longer, costs a new connection and nothing else.
        if self.content_length().is_some_and(|length| length <= DRAINED) {
            let _ = std::io::copy(&mut self.body.as_reader().take(DRAINED), &mut std::io::sink());
        }
    }

    /// Reads a body of at most `limit` bytes.
    ///
    /// # Errors
    ///
    /// As [`Answer::read_to`], and [`Failure::NotAHub`] if the body is longer or takes too long.
    pub(crate) fn into_bytes(self, what: &str, limit: usize) -> Result<Vec<u8>, Failure> {
        let (host, length, start) = (self.url.host(), self.content_length(), Instant::now());
        let patience = self.silence.saturating_mul(PATIENCE);
        let mut bytes = Vec::new();
        self.read_to(what, length, &mut |chunk| {
            bytes.extend_from_slice(chunk);
            let reason = if bytes.len() > limit {
                format!("{what} has more than {limit} bytes")
            } else if start.elapsed() > patience {
                format!("{what} takes more than {} s", patience.as_secs())
            } else {
                return Ok(true);
            };
            Err(Failure::NotAHub { host: host.clone(), reason })
        })?;
        let done = bytes.len() as u64;
        if length.is_some_and(|length| length != done) {
            return Err(Failure::BrokenOff { what: what.to_owned(), done, size: length });
        }
        Ok(bytes)
    }

    /// Passes the body on in chunks, until it ends or `receive` returns false.
    ///
    /// `what` and `size` are for the message of [`Failure::BrokenOff`].
    ///
    /// # Errors
    ///
    /// - [`Failure::Silent`] if a period of silence brings next to nothing.
    /// - [`Failure::BrokenOff`] if the connection ends early.
    /// - Those of `receive`.
    pub(crate) fn read_to(
        mut self,
        what: &str,
        size: Option<u64>,
        receive: &mut dyn FnMut(&[u8]) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let silent = Failure::Silent { host: self.url.host(), seconds: self.silence.as_secs() };
        let mut pace = Pace::new(self.silence);
        let mut buffer = vec![0; 64 << 10];
        let mut done = 0;
        let mut reader = self.body.as_reader();
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) if is_timeout(&error) => return Err(silent),
                Err(_) => return Err(Failure::BrokenOff { what: what.to_owned(), done, size }),
            };
            done += count as u64;
            if !receive(&buffer[..count])? {
                return Ok(());
            }
            if !pace.is_kept(count) {
                return Err(silent);
            }
        }
    }
}

/// How many bytes arrived in the present period.
struct Pace {
    period: Duration,
    start: Instant,
    bytes: usize,
}

impl Pace {
    fn new(period: Duration) -> Self {
        Self { period, start: Instant::now(), bytes: 0 }
    }

    /// Whether the bytes that arrive are enough, now that there are `count` more.
    fn is_kept(&mut self, count: usize) -> bool {
        self.bytes += count;
        if self.start.elapsed() < self.period {
            return true;
        }
        let is_kept = self.bytes >= LEAST_BYTES;
        (self.start, self.bytes) = (Instant::now(), 0);
        is_kept
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>());
    error.kind() == std::io::ErrorKind::TimedOut || matches!(inner, Some(ureq::Error::Timeout(_)))
}
