//! Names that a hub gives, checked before they become parts of a path or of a message.

/// The longest name of a file or folder here. File systems allow 255 bytes, and the cache adds endings.
const MAX_NAME: usize = 200;

/// The longest text of a server that a message shows, in characters.
const MAX_SHOWN: usize = 80;

/// Characters that are special in the paths of some system.
const SPECIAL: &[char] = &['/', '\\', ':', '*', '?', '"', '<', '>', '|'];

/// Returns whether `text` is a commit hash, in full or shortened: hexadecimal digits only.
pub(crate) fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Returns whether `text` is a plain file name: one part of a path on every system, and not hidden.
pub(crate) fn is_file_name(text: &str) -> bool {
    let is_plain = |c: char| !c.is_control() && !SPECIAL.contains(&c);
    (1..=MAX_NAME).contains(&text.len())
        && !text.starts_with('.')
        && !text.ends_with(['.', ' '])
        && text.chars().all(is_plain)
}

/// Returns the name in an `ETag`: the text without `W/` and quotes, if it can name a file.
///
/// The name consists of ASCII letters, digits, `-`, `_` and `.`.
pub(crate) fn etag_name(etag: &str) -> Option<&str> {
    let etag = etag.trim();
    let etag = etag.strip_prefix("W/").unwrap_or(etag);
    let name = etag.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(etag);
    // Some servers put the mark of a weak tag inside of the quotes.
    let name = name.strip_prefix("W/").unwrap_or(name);
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    (is_file_name(name) && name.bytes().all(is_allowed)).then_some(name)
}

/// Returns a server's text for a message: shortened, with control characters escaped.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::{etag_name, is_commit, is_file_name, shown};

    #[test]
    fn commits_are_hexadecimal() {
        assert!(is_commit("0123456789abcdef0123456789abcdef01234567") && is_commit("0123abc"));
        for text in ["", "main", "../../x", "/etc/passwd", "0123456 ", &"a".repeat(65)] {
            assert!(!is_commit(text), "{text}");
        }
    }

    #[test]
    fn file_names_are_one_part_of_a_path() {
        for name in ["config.json", "merges.txt", "é x.json", "model-00001-of-00002.safetensors"] {
            assert!(is_file_name(name), "{name}");
        }
        let long = "a".repeat(201);
        for name in
            ["", ".", "..", ".hidden", "a/b", "a\\b", "c:x", "a\0b", "a\nb", "a?b", "a.", &long]
        {
            assert!(!is_file_name(name), "{name:?}");
        }
    }

    #[test]
    fn etags_lose_their_quotes() {
        assert_eq!(etag_name("\"ab-12\""), Some("ab-12"));
        assert_eq!(etag_name("W/\"ab_1.2\""), Some("ab_1.2"));
        assert_eq!(etag_name("\"W/ab\""), Some("ab"));
        assert_eq!(etag_name("ab"), Some("ab"));
        for etag in ["", "\"\"", "\"..\"", "\"../x\"", "/x", "\"a/b\"", "\"é\"", "\"a b\"", "\"a"]
        {
            assert_eq!(etag_name(etag), None, "{etag}");
        }
    }

    #[test]
    fn a_message_holds_a_short_line() {
        assert_eq!(shown("a\u{1b}[31m\n"), "a\\u{1b}[31m\\n");
        assert_eq!(shown(&"x".repeat(500)).chars().count(), 81);
    }
}
