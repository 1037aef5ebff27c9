//! The token that every request needs.

use std::fmt::Write as _;

use crate::error::UiError;

/// The token of a server.
pub(crate) struct Token(String);

impl Token {
    /// A token of 256 random bits.
    pub(crate) fn random() -> Result<Self, UiError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| UiError::Random(error.to_string()))?;
        let mut text = String::new();
        for byte in bytes {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Ok(Self(text))
    }

    /// A token that the user chose: letters, digits, `-` and `_`.
    pub(crate) fn given(text: String) -> Result<Self, UiError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || [b'-', b'_'].contains(&byte);
        let fits = (16..=256).contains(&text.len()) && text.bytes().all(allowed);
        if fits { Ok(Self(text)) } else { Err(UiError::Token) }
    }

    /// The text of the token.
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// Whether `other` is the token. The time does not depend on where they differ.
    pub(crate) fn is(&self, other: &str) -> bool {
        let (own, other) = (self.0.as_bytes(), other.as_bytes());
        let differ = own.iter().zip(other).fold(0, |differ, (a, b)| differ | (a ^ b));
        own.len() == other.len() && std::hint::black_box(differ) == 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn only_the_whole_token_is_the_token() {
        let token = Token::random().unwrap();
        let text = token.text().to_owned();
        assert_eq!(text.len(), 64);
        assert_ne!(Token::random().unwrap().text(), text);
        assert!(token.is(&text));
        for other in ["", &text[..63], &text[1..], &(text.clone() + "0"), &text.to_uppercase()] {
            assert!(!token.is(other) || other == text, "{other}");
        }
    }

    #[test]
    fn a_given_token_is_long_and_fits_a_cookie() {
        assert!(Token::given("correct-horse_battery".to_owned()).is_ok());
        for text in
            ["", "short", "with a blank in it", "semicolon;semicolon", "größer-als-sechzehn"]
        {
            assert!(Token::given(text.to_owned()).is_err(), "{text}");
        }
    }
}
