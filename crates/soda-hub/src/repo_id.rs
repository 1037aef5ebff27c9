//! The form of a repo id: `owner/name`, with an optional `@revision`.

use crate::error::HubError;

/// The revision of a repo id that names none.
const DEFAULT_REVISION: &str = "main";

/// Returns whether `text` has the form `owner/name` or `owner/name@revision`.
///
/// Owner, name and revision consist of ASCII letters, digits, `-`, `_` and `.`, and none starts with a dot.
/// The function does not ask the Hub: a repo id of this form may not exist.
///
/// ```
/// use soda_hub::is_repo_id;
///
/// assert!(is_repo_id("stabilityai/stable-diffusion-xl-base-1.0"));
/// assert!(is_repo_id("owner/name@v1.2"));
/// assert!(!is_repo_id("models/sdxl/base") && !is_repo_id("../base"));
/// ```
pub fn is_repo_id(text: &str) -> bool {
    let (name, revision) = text.split_once('@').unwrap_or((text, DEFAULT_REVISION));
    let is_plain = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !part.is_empty() && !part.starts_with('.') && part.chars().all(allowed)
    };
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() == 2 && parts.iter().all(|part| is_plain(part)) && is_plain(revision)
}

/// Splits `text` into `owner/name` and the revision.
///
/// # Errors
///
/// If `text` is not a repo id.
pub(crate) fn split_revision(text: &str) -> Result<(&str, &str), HubError> {
    if is_repo_id(text) {
        Ok(text.split_once('@').unwrap_or((text, DEFAULT_REVISION)))
    } else {
        Err(HubError::InvalidRepoId(text.to_owned()))
    }
}
