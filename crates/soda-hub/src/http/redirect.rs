//! Where a redirect may lead.

use ureq::http::HeaderMap;
use ureq::http::header::LOCATION;

use super::url::Url;
use crate::names::shown;

/// How many redirects one request may meet.
pub(crate) const MAX_REDIRECTS: usize = 10;

/// Whether an answer of this status names another URL.
pub(crate) fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Returns the URL to which the answer of `from` redirects.
///
/// # Errors
///
/// The reason why it leads nowhere: `Location` is missing or no `http` URL, it holds a user name, or it
/// leaves `https` for `http`.
pub(crate) fn target(from: &Url, headers: &HeaderMap) -> Result<Url, String> {
    let location = headers.get(LOCATION).ok_or("it redirects without a Location")?;
    let location = location.to_str().map_err(|_| "it redirects to a Location that is no text")?;
    let location = location.trim();
    let target = Some(location)
        .filter(|location| !location.is_empty())
        .and_then(|location| from.join(location))
        .ok_or_else(|| format!("it redirects to \"{}\", no http URL", shown(location)))?;
    if target.origin() != from.origin() && target.has_user() {
        return Err(format!("it redirects to {} with a user name", target.host()));
    }
    if from.origin().scheme == "https" && target.origin().scheme != "https" {
        return Err(format!("it redirects from https to {}", target.host()));
    }
    Ok(target)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use ureq::http::{HeaderMap, HeaderValue};

    use super::{Url, target};

    fn redirect(from: &str, location: Option<&[u8]>) -> Result<String, String> {
        let mut headers = HeaderMap::new();
        if let Some(location) = location {
            headers.insert("Location", HeaderValue::from_bytes(location).unwrap());
        }
        target(&Url::parse(from).unwrap(), &headers).map(|url| url.to_string())
    }

    #[test]
    fn a_redirect_leads_to_a_web_address() {
        let cdn: &[u8] = b"https://cdn.b/x?signature=1";
        assert_eq!(redirect("https://a/b", Some(cdn)).unwrap(), "https://cdn.b/x?signature=1");
        assert_eq!(redirect("http://a/b", Some(cdn)).unwrap(), "https://cdn.b/x?signature=1");
        for location in ["", " ", "file:///etc/passwd", "gopher://127.0.0.1/x", "http://[::1"] {
            let reason = redirect("http://a/b", Some(location.as_bytes())).unwrap_err();
            assert!(reason.contains("no http URL"), "{reason}");
        }
        assert!(redirect("http://a/b", None).unwrap_err().contains("without a Location"));
        assert!(redirect("http://a/b", Some(b"/\xff")).unwrap_err().contains("no text"));
    }

    #[test]
    fn https_stays_https_and_no_password_is_taken_along() {
        let reason = redirect("https://a/b", Some(b"http://a/b")).unwrap_err();
        assert!(reason.contains("from https"), "{reason}");
        let reason = redirect("https://a/b", Some(b"https://u:secret@c/b")).unwrap_err();
        assert!(reason.contains("user name") && !reason.contains("secret"), "{reason}");
    }
}
