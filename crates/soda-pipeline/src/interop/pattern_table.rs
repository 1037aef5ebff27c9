//! PEFT's `rank_pattern` and `alpha_pattern`: values by regular expressions over module names.
//!
//! The first key in the order of the file applies for which Python's
//! `re.match(rf"(.*\.)?({key})$", module)` holds.

use regex::Regex;
use serde::{Serialize, Serializer};

/// The most entries of a table. A network has about a thousand layers.
const MOST_ENTRIES: usize = 10_000;

/// Values by key, in the order of the file.
#[derive(Clone, Debug)]
pub(super) struct PatternTable<T>(Vec<(Key, T)>);

/// A key of a table.
#[derive(Clone, Debug)]
struct Key {
    text: String,
    /// The compiled expression; `None` for a key of letters, digits, `_`, `-` and dots.
    regex: Option<Regex>,
}

impl Key {
    fn new(text: String) -> Result<Self, String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if text.bytes().all(plain) {
            return Ok(Self { text, regex: None });
        }
        let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{text})$")).map_err(|_| text.clone())?;
        Ok(Self { text, regex: Some(regex) })
    }

    fn matches(&self, module: &str) -> bool {
        if let Some(regex) = &self.regex {
            return regex.is_match(module);
        }
        // A key of fixed length matches the end of the name, after a dot. Its own dots match any character.
        let Some(start) = module.len().checked_sub(self.text.len()) else { return false };
        let (before, end) = module.as_bytes().split_at(start);
        let equal = |(key, byte): (u8, &u8)| key == *byte || (key == b'.' && *byte != b'\n');
        before.last().is_none_or(|last| *last == b'.') && self.text.bytes().zip(end).all(equal)
    }
}

impl<T: Copy> PatternTable<T> {
    /// Makes a table of entries in the order of the file.
    ///
    /// # Errors
    /// The key that is no regular expression of this build, or a description of too many entries.
    pub(super) fn new(entries: Vec<(String, T)>) -> Result<Self, String> {
        if entries.len() > MOST_ENTRIES {
            return Err(format!("{} entries, more than {MOST_ENTRIES}", entries.len()));
        }
        let entry = |(text, value)| Ok((Key::new(text)?, value));
        entries.into_iter().map(entry).collect::<Result<_, _>>().map(Self)
    }

    /// Returns the value of the first key that matches a module.
    pub(super) fn get(&self, module: &str) -> Option<T> {
        self.0.iter().find(|(key, _)| key.matches(module)).map(|(_, value)| *value)
    }
}

impl<T> Default for PatternTable<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// Collects values by the whole names of modules, to be written.
impl<T> FromIterator<(String, T)> for PatternTable<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(entries: I) -> Self {
        let entry = |(text, value)| (Key { text, regex: None }, value);
        Self(entries.into_iter().map(entry).collect())
    }
}

impl<T: Serialize> Serialize for PatternTable<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(key, value)| (&key.text, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_as_in_peft() {
        // `re.match(rf"(.*\.)?({key})$", module)` of Python 3.13.
        for (key, module, matches) in [
            ("to_q", "a.attn2.to_q", true),
            ("to_q", "to_q", true),
            ("to_q", "a.xto_q", false),
            ("^to_q", "a.to_q", false),
            ("^to_q", "to_q", true),
            ("^a.to_q", "a.to_q", true),
            ("attn2.to_q", "a.attn2.to_q", true),
            ("attn2.to_q", "a.attn2xto_q", true),
            (r".*attn2\.to_q", "a.attn2.to_q", true),
            (r".*attn2\.to_q", "a.attn2xto_q", false),
            ("to_k|to_q", "a.to_q", true),
            ("to_q|to_k$", "a.to_q.b", false),
            (r"down_blocks\..*to_q", "down_blocks.0.to_q", true),
            ("to_", "a.to_q", false),
            ("", "a.to_q", false),
        ] {
            let table = PatternTable::new(vec![(key.to_owned(), 1)]).expect("a table");
            assert_eq!(table.get(module).is_some(), matches, "{key} {module}");
        }
        let entries = [("to_q", 2), ("attn2.to_q", 16)].map(|(key, value)| (key.to_owned(), value));
        let table = PatternTable::new(entries.to_vec()).expect("a table");
        assert_eq!(table.get("a.attn2.to_q"), Some(2), "the first key applies");
        let unread = PatternTable::new(vec![("(?=a)b".to_owned(), 1)]);
        assert_eq!(unread.err().as_deref(), Some("(?=a)b"));
    }
}
