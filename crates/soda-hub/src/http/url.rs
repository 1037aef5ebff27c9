//! Absolute `http` and `https` URLs: parsing, origins, and relative references.

use std::fmt;

use ureq::http::Uri;

/// An absolute URL with the scheme `http` or `https` and a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url(Uri);

/// The scheme, host and port of a URL: what must be equal for the access token to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) scheme: String,
    host: String,
    port: u16,
}

impl Url {
    /// Parses an absolute URL. `None` if it has another scheme, no host, or an impossible port.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let authority = uri.authority()?;
        let has_port = authority.as_str().rsplit(['@', ']']).next()?.contains(':');
        let is_whole = !authority.host().is_empty() && (!has_port || uri.port_u16().is_some());
        (is_whole && matches!(uri.scheme_str()?, "http" | "https")).then_some(Self(uri))
    }

    pub(crate) fn origin(&self) -> Origin {
        let scheme = self.0.scheme_str().unwrap_or_default().to_owned();
        let default_port = if scheme == "https" { 443 } else { 80 };
        Origin {
            host: self.0.host().unwrap_or_default().to_ascii_lowercase(),
            port: self.0.port_u16().unwrap_or(default_port),
            scheme,
        }
    }

    /// The scheme, host and port as text, without a user name and password.
    pub(crate) fn host(&self) -> String {
        let scheme = self.0.scheme_str().unwrap_or_default();
        let host = self.0.host().unwrap_or_default();
        let port = self.0.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{scheme}://{host}{port}")
    }

    /// The URL as text, without a user name and password.
    pub(crate) fn shown(&self) -> String {
        format!("{}{}", self.host(), self.0.path().trim_end_matches('/'))
    }

    /// Whether the URL holds a user name or a password.
    pub(crate) fn has_user(&self) -> bool {
        self.0.authority().is_some_and(|authority| authority.as_str().contains('@'))
    }

    /// Whether the URL has a query.
    pub(crate) fn has_query(&self) -> bool {
        self.0.query().is_some()
    }

    pub(crate) fn as_uri(&self) -> &Uri {
        &self.0
    }

    /// Returns the URL `self/path`, whose segments are percent-encoded. `None` if it is too long.
    pub(crate) fn with_path(&self, path: &str) -> Option<Self> {
        let base = self.to_string();
        let mut text = base.trim_end_matches('/').to_owned();
        for segment in path.split('/') {
            text.push('/');
            for byte in segment.bytes() {
                if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                    text.push(char::from(byte));
                } else {
                    text.push_str(&format!("%{byte:02X}"));
                }
            }
        }
        Self::parse(&text)
    }

    /// Resolves a reference, such as the value of `Location`, against this URL.
    ///
    /// `None` if the result is no absolute `http` or `https` URL.
    pub(crate) fn join(&self, reference: &str) -> Option<Self> {
        let reference = reference.split('#').next().unwrap_or_default();
        if has_scheme(reference) {
            return Self::parse(reference);
        }
        let scheme = self.0.scheme_str()?;
        if reference.starts_with("//") {
            return Self::parse(&format!("{scheme}:{reference}"));
        }
        let root = format!("{scheme}://{}", self.0.authority()?);
        let path = self.0.path();
        if reference.starts_with('/') {
            Self::parse(&format!("{root}{reference}"))
        } else if reference.is_empty() {
            Some(self.clone())
        } else if reference.starts_with('?') {
            Self::parse(&format!("{root}{path}{reference}"))
        } else {
            let folder = &path[..path.rfind('/').map_or(0, |at| at + 1)];
            let (relative, query) = match reference.split_once('?') {
                Some((relative, query)) => (relative, format!("?{query}")),
                None => (reference, String::new()),
            };
            Self::parse(&format!("{root}{}{query}", without_dots(&format!("{folder}{relative}"))))
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether a reference starts with a scheme, as `file:` does.
fn has_scheme(reference: &str) -> bool {
    let Some((scheme, _)) = reference.split_once(':') else { return false };
    scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// Removes the segments `.` and `..` of an absolute path.
fn without_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::Url;

    #[test]
    fn only_web_addresses_with_a_host_are_urls() {
        for text in ["http://a", "https://a.b:8/c?d", "http://[::1]:80/x", "https://u:p@a/b"] {
            assert!(Url::parse(text).is_some(), "{text}");
        }
        for text in
            ["", "a", "/a", "a:80", "ftp://a", "file:///etc/passwd", "http://", "http://[::1"]
        {
            assert!(Url::parse(text).is_none(), "{text}");
        }
        assert!(Url::parse("http://a:99999/").is_none());
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let origin = |text: &str| Url::parse(text).unwrap().origin();
        assert_eq!(origin("https://A.b/c"), origin("https://a.B:443/d?e"));
        assert_eq!(origin("http://u:p@a/"), origin("http://a:80"));
        for other in ["http://a", "https://a:444", "https://b", "https://a.b"] {
            assert_ne!(origin("https://a"), origin(other), "{other}");
        }
    }

    #[test]
    fn references_resolve_as_in_rfc_3986() {
        let base = Url::parse("http://h:1/a/b/c?q").unwrap();
        for (reference, expected) in [
            ("https://x/y", "https://x/y"),
            ("//x/y", "http://x/y"),
            ("/x?y", "http://h:1/x?y"),
            ("?z", "http://h:1/a/b/c?z"),
            ("#f", "http://h:1/a/b/c?q"),
            ("x", "http://h:1/a/b/x"),
            ("./x?y/..", "http://h:1/a/b/x?y/.."),
            ("../../../../x", "http://h:1/x"),
        ] {
            assert_eq!(base.join(reference).unwrap().to_string(), expected, "{reference}");
        }
        for reference in ["file:///etc/passwd", "gopher://x", "http://[::1", "//", "x y"] {
            assert_eq!(base.join(reference), None, "{reference}");
        }
    }

    #[test]
    fn paths_are_encoded_and_passwords_are_hidden() {
        let base = Url::parse("https://u:p@h/mirror/").unwrap();
        let url = base.with_path("a b/é?#%2e").unwrap();
        assert_eq!(url.to_string(), "https://u:p@h/mirror/a%20b/%C3%A9%3F%23%252e");
        assert_eq!(base.shown(), "https://h/mirror");
        assert!(base.has_user() && !Url::parse("https://h/@").unwrap().has_user());
    }
}
