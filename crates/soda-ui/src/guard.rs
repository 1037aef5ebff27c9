//! Which requests are answered.
//!
//! | rule | against |
//! |---|---|
//! | the field `Host` is an address of this server | DNS rebinding: a foreign name that leads to 127.0.0.1 |
//! | the field `Origin` is absent or an address of this server, never `null` | requests of other pages |
//! | the field `Sec-Fetch-Site` is absent, `same-origin` or `none` | pictures and scripts in other pages |
//! | the token is in the cookie | other users and programs of the machine |
//! | a write has JSON and a field of its own | forms of other pages, which can send neither |

use std::net::SocketAddr;

use crate::http::{Method, Request, Response};
use crate::token::Token;

/// The field that the page sends with every write.
const OWN_FIELD: &str = "x-soda-ui";

/// The rules of one server.
pub(crate) struct Guard {
    token: Token,
    hosts: Vec<String>,
    cookie: String,
}

impl Guard {
    /// The rules of the server at `address`.
    pub(crate) fn new(token: Token, address: SocketAddr) -> Self {
        let port = address.port();
        let mut hosts = vec![address.to_string()];
        if address.ip().is_loopback() {
            let names = ["127.0.0.1", "localhost", "[::1]"];
            hosts.extend(names.map(|name| format!("{name}:{port}")));
        }
        // Cookies of one host are sent to all its ports.
        Self { token, hosts, cookie: format!("soda_ui_{port}") }
    }

    /// The address of the page with the token in it.
    pub(crate) fn first_url(&self) -> String {
        format!("http://{}/?token={}", self.hosts[0], self.token.text())
    }

    /// Checks a request.
    ///
    /// # Errors
    /// The answer instead: a refusal, or the cookie for the token of the first address.
    pub(crate) fn check(&self, request: &Request) -> Result<(), Response> {
        let host = request.header("host").map(str::to_lowercase);
        if !host.is_some_and(|host| self.hosts.contains(&host)) {
            return Err(Response::error(403, "the host of the address is not this server"));
        }
        if request.has_header("origin") {
            let origin = request.header("origin").and_then(|origin| origin.strip_prefix("http://"));
            if !origin.is_some_and(|origin| self.hosts.iter().any(|host| host == origin)) {
                return Err(Response::error(403, "the request comes from another page"));
            }
        }
        if request.has_header("sec-fetch-site") {
            let site = request.header("sec-fetch-site");
            if !site.is_some_and(|site| ["same-origin", "none"].contains(&site)) {
                return Err(Response::error(403, "the request comes from another page"));
            }
        }
        self.check_token(request)?;
        match request.method {
            Method::Get => Ok(()),
            Method::Post | Method::Put => check_write(request),
        }
    }

    fn check_token(&self, request: &Request) -> Result<(), Response> {
        let given = request.query.strip_prefix("token=");
        let is_page = request.method == Method::Get && request.path == "/";
        if is_page && given.is_some_and(|token| self.token.is(token)) {
            let (name, token) = (&self.cookie, self.token.text());
            let cookie = format!("{name}={token}; HttpOnly; SameSite=Strict; Path=/");
            return Err(Response::to_page(&cookie));
        }
        match request.cookie(&self.cookie) {
            Some(token) if self.token.is(token) => Ok(()),
            _ => Err(Response::error(401, "open the address that `soda ui` printed")),
        }
    }
}

fn check_write(request: &Request) -> Result<(), Response> {
    if request.header("content-type") != Some("application/json") {
        return Err(Response::error(415, "a write must be JSON"));
    }
    if !request.has_header(OWN_FIELD) {
        return Err(Response::error(403, "a write must come from the page"));
    }
    Ok(())
}
