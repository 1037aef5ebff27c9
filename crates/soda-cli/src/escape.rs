//! Text of files and of strangers on a terminal.
//!
//! An escape sequence can clear the screen, set the title or fake an answer of the program; a line feed can
//! fake another line. Names and metadata of files may hold both.

use std::borrow::Cow;

/// Writes control characters in `line` as escapes such as `\u{1b}`, and those that change the order of the
/// text or end a line in Unicode.
pub(crate) fn escape(line: &str) -> Cow<'_, str> {
    if !line.contains(is_hidden) {
        return Cow::Borrowed(line);
    }
    let mut text = String::with_capacity(line.len() + 8);
    for char in line.chars() {
        match is_hidden(char) {
            true => text.extend(char.escape_default()),
            false => text.push(char),
        }
    }
    Cow::Owned(text)
}

fn is_hidden(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{feff}')
        || ('\u{2028}'..='\u{202e}').contains(&char)
        || ('\u{2066}'..='\u{2069}').contains(&char)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_text_is_kept() {
        let plain = "a \"café\" 🍵 \\ 'mug'";
        assert!(matches!(escape(plain), Cow::Borrowed(text) if text == plain));
        for (text, expected) in [
            ("\u{1b}]0;owned\u{7}", "\\u{1b}]0;owned\\u{7}"),
            ("a\nerror: b\r\t", "a\\nerror: b\\r\\t"),
            ("\u{9b}2J\u{7f}\0", "\\u{9b}2J\\u{7f}\\u{0}"),
            ("\u{202e}gnp\u{2069}\u{2028}", "\\u{202e}gnp\\u{2069}\\u{2028}"),
            ("\u{feff}é", "\\u{feff}é"),
        ] {
            assert_eq!(escape(text), expected);
        }
    }
}
