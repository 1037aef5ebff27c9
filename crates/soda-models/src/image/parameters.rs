//! Generation settings as text, in the format of A1111.
//!
//! ```text
//! a photo of a mug
//! Negative prompt: blurry
//! Steps: 20, Sampler: Euler a, Model: "mugs, red"
//! ```
//!
//! A1111 (`modules/infotext_utils.py`) reads the last line by a regular expression. A value with a comma,
//! a colon or a line break is a JSON string there.

use std::fmt;

/// The settings that an image was generated with.
///
/// ```
/// use soda_models::image::GenerationParameters;
///
/// let fields = vec![("Steps", "20".to_owned()), ("Model", "mugs, red".to_owned())];
/// let parameters =
///     GenerationParameters { prompt: "a mug".to_owned(), negative_prompt: String::new(), fields };
/// assert_eq!(parameters.to_string(), "a mug\nSteps: 20, Model: \"mugs, red\"");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerationParameters {
    /// The prompt.
    pub prompt: String,
    /// The negative prompt; empty for none.
    pub negative_prompt: String,
    /// Names and values of the settings. A1111 needs three of them at least to tell them from a prompt.
    pub fields: Vec<(&'static str, String)>,
}

/// The text, with quoted values.
impl fmt::Display for GenerationParameters {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.prompt)?;
        if !self.negative_prompt.is_empty() {
            write!(formatter, "\nNegative prompt: {}", self.negative_prompt)?;
        }
        for (index, (name, value)) in self.fields.iter().enumerate() {
            let separator = if index == 0 { "\n" } else { ", " };
            write!(formatter, "{separator}{name}: {}", quoted(value))?;
        }
        Ok(())
    }
}

/// Quotes a value as JSON if A1111 would read another one.
///
/// A1111's `quote` does so for commas, colons and line breaks. Its parser also strips spaces and quotation
/// marks, and fails on an empty value.
fn quoted(value: &str) -> String {
    let plain = !value.is_empty()
        && !value.contains([',', ':', '\n', '\r'])
        && !value.starts_with('"')
        && value.trim() == value;
    if plain { value.to_owned() } else { serde_json::Value::from(value).to_string() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use regex::Regex;

    use super::*;

    /// A1111's `re_param` and `unquote`.
    fn read(line: &str) -> BTreeMap<String, String> {
        let re_param = Regex::new(r#"\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)"#);
        let re_param = re_param.expect("a regular expression");
        let unquote = |text: &str| match text.starts_with('"') && text.ends_with('"') {
            true => serde_json::from_str(text).unwrap_or_else(|_| text.to_owned()),
            false => text.to_owned(),
        };
        let fields = re_param.captures_iter(line);
        fields.map(|field| (field[1].to_owned(), unquote(&field[2]))).collect()
    }

    #[test]
    fn a1111_reads_every_value_as_it_was() {
        for value in [
            "euler",
            "0.6",
            "",
            "my, adapter: v1.safetensors 0.6",
            "C:\\models\\mug.safetensors",
            "two\nlines, \"quoted\" and \\ all: at once",
            "a \"word\" inside",
            "\"all\"",
            " spaces ",
            "Ümläut, 杯",
            "tab\tand, comma",
        ] {
            let fields = vec![
                ("Steps", "20".to_owned()),
                ("Adapter", value.to_owned()),
                ("Size", "64x64".to_owned()),
                ("Version", "soda 1".to_owned()),
            ];
            let expected: BTreeMap<_, _> =
                fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            let (prompt, negative_prompt) = ("a mug: red,\nnew".to_owned(), "blur".to_owned());
            let text = GenerationParameters { prompt, negative_prompt, fields }.to_string();
            let (before, line) = text.rsplit_once('\n').expect("several lines");
            assert_eq!(before, "a mug: red,\nnew\nNegative prompt: blur");
            assert_eq!(read(line), expected, "{text}");
        }
    }

    #[test]
    fn plain_values_are_not_quoted() {
        let fields = vec![("Sampler", "DPM++ 2M SDE".to_owned()), ("Size", "64x64".to_owned())];
        let text = GenerationParameters { prompt: "a".to_owned(), fields, ..Default::default() };
        assert_eq!(text.to_string(), "a\nSampler: DPM++ 2M SDE, Size: 64x64");
    }
}
