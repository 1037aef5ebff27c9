//! Checks of a vocabulary before the tokenizers crate builds a tokenizer of it.
//!
//! The crate panics on some files that it parses: on an id of 2^32 - 1, on merges that build no token, and on
//! patterns that match nothing. So only the parts that CLIP's tokenizers have are accepted.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// One more than the largest id. The largest vocabularies in use have a quarter of a million tokens.
const MAX_TOKENS: u64 = 1 << 20;

/// The normalizers that cannot fail, whatever their settings and the text are.
const NORMALIZERS: &[&str] = &["Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"];

/// The pre-tokenizers that cannot fail, whatever their settings and the text are.
const PRE_TOKENIZERS: &[&str] =
    &["BertPreTokenizer", "ByteLevel", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"];

/// The tokens of a vocabulary, with their ids.
pub(super) type Vocabulary = HashMap<String, u32>;

/// Pairs of tokens that are joined, in the order of their priority.
pub(super) type Merges = Vec<(String, String)>;

/// Checks the content of a `tokenizer.json`.
///
/// # Errors
///
/// The field and the reason.
pub(super) fn check_tokenizer(file: &Value) -> Result<(), String> {
    let model = &file["model"];
    if model["type"].as_str().is_some_and(|name| name != "BPE") {
        return Err("its model is not byte-pair encoding".to_owned());
    }
    for (field, neutral) in [("continuing_subword_prefix", ""), ("byte_fallback", "false")] {
        let value = &model[field];
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        if !value.is_null() && text != neutral {
            return Err(format!("`model.{field}` is {value}, which is not supported"));
        }
    }
    if model["dropout"].as_f64().is_some_and(|dropout| dropout != 0.0) {
        return Err("`model.dropout` would encode a prompt at random: set it to null".to_owned());
    }
    let vocabulary = vocabulary(&model["vocab"]).map_err(|e| format!("`model.vocab` {e}"))?;
    let merges = model["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let merges = merges.iter().map(pair).collect::<Option<Merges>>();
    let merges = merges.ok_or("`model.merges` is no list of pairs")?;
    check_merges(&merges, &vocabulary).map_err(|e| format!("`model.merges` {e}"))?;
    let added = file["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
    check_added(added)?;
    check_parts("normalizer", &file["normalizer"])?;
    check_parts("pre_tokenizer", &file["pre_tokenizer"])
}

/// Reads a vocabulary: an object with an id for each token.
pub(super) fn vocabulary(value: &Value) -> Result<Vocabulary, String> {
    let tokens: &Map<String, Value> = value.as_object().ok_or("is no object of tokens and ids")?;
    let id = |(token, id): (&String, &Value)| match id.as_u64() {
        Some(id) if id < MAX_TOKENS => Ok((token.clone(), id as u32)),
        _ => Err(format!("gives {token:?} the id {id}; ids are below {MAX_TOKENS}")),
    };
    tokens.iter().map(id).collect()
}

/// Reads the lines of a `merges.txt`.
pub(super) fn merges(text: &str, vocabulary: &Vocabulary) -> Result<Merges, String> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version"));
    let pair = |(index, line): (usize, &str)| {
        let number = index + 1;
        two(line).ok_or_else(|| format!("line {number} is no pair of tokens: {line:?}"))
    };
    let merges: Merges = lines.map(pair).collect::<Result<_, _>>()?;
    check_merges(&merges, vocabulary)?;
    Ok(merges)
}

/// A merge, as a text of two words or as a list of two.
fn pair(value: &Value) -> Option<(String, String)> {
    match value {
        Value::String(line) => two(line),
        Value::Array(pair) => match &pair[..] {
            [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
            _ => None,
        },
        _ => None,
    }
}

fn two(line: &str) -> Option<(String, String)> {
    let (a, b) = line.split_once(' ')?;
    (!b.contains(' ')).then(|| (a.to_owned(), b.to_owned()))
}

/// Refuses merges whose parts or whose result are no tokens.
fn check_merges(merges: &Merges, vocabulary: &Vocabulary) -> Result<(), String> {
    for (a, b) in merges {
        let joined = format!("{a}{b}");
        if let Some(token) = [a, b, &joined].iter().find(|token| !vocabulary.contains_key(**token))
        {
            return Err(format!("join {a:?} and {b:?}, but the vocabulary lacks {token:?}"));
        }
    }
    Ok(())
}

fn check_added(tokens: &[Value]) -> Result<(), String> {
    let strips = |token: &Value| token["lstrip"] == true || token["rstrip"] == true;
    let any_strips = tokens.iter().any(strips);
    for token in tokens {
        let content = token["content"].as_str().unwrap_or_default();
        if token["id"].as_u64().is_none_or(|id| id >= MAX_TOKENS) {
            let id = &token["id"];
            return Err(format!(
                "`added_tokens` gives {content:?} the id {id}; ids are below {MAX_TOKENS}"
            ));
        }
        // A token that takes the spaces beside it would overlap one that consists of them.
        if content.is_empty() || (any_strips && content.trim() != content) {
            return Err(format!("`added_tokens` has {content:?}, which is no word"));
        }
    }
    Ok(())
}

/// Checks a normalizer or pre-tokenizer, or a sequence of them.
fn check_parts(field: &str, part: &Value) -> Result<(), String> {
    if part.is_null() {
        return Ok(());
    }
    let refuse = |what: String| Err(format!("`{field}` has {what}, which is not supported"));
    let name = part["type"].as_str().unwrap_or_default();
    let pattern = &part["pattern"];
    match (field, name) {
        ("normalizer", "Sequence") => check_sequence(field, &part["normalizers"]),
        ("pre_tokenizer", "Sequence") => check_sequence(field, &part["pretokenizers"]),
        ("normalizer", name) if NORMALIZERS.contains(&name) => Ok(()),
        ("pre_tokenizer", name) if PRE_TOKENIZERS.contains(&name) => Ok(()),
        // An empty match has no place of its own in the text.
        ("normalizer", "Replace") => {
            match (pattern["Regex"].as_str(), pattern["String"].as_str()) {
                (Some(r"\s+"), None) => Ok(()),
                (None, Some(text)) if !text.is_empty() => Ok(()),
                _ => refuse(format!("`Replace` with the pattern {pattern}")),
            }
        }
        ("pre_tokenizer", "Split") => match (pattern["Regex"].as_str(), pattern["String"].as_str())
        {
            (Some(text), None) | (None, Some(text)) if !text.is_empty() => Ok(()),
            _ => refuse(format!("`Split` with the pattern {pattern}")),
        },
        _ => refuse(format!("`{name}`")),
    }
}

fn check_sequence(field: &str, parts: &Value) -> Result<(), String> {
    let parts = parts.as_array().ok_or_else(|| format!("`{field}` has a sequence of nothing"))?;
    parts.iter().try_for_each(|part| match part["type"].as_str() {
        // The file's nesting is bounded by the JSON parser, and no tokenizer nests sequences.
        Some("Sequence") => Err(format!("`{field}` has a sequence in a sequence")),
        _ => check_parts(field, part),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn valid() -> Value {
        json!({
            "model": {
                "type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<unk>": 3}, "unk_token": "<unk>",
                "merges": ["a b"],
            },
            "added_tokens": [{"id": 3, "content": "<unk>", "special": true}],
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            ]},
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a|b"}, "behavior": "Removed"},
        })
    }

    #[test]
    fn each_unusable_field_is_named() {
        assert_eq!(check_tokenizer(&valid()), Ok(()));
        let replace =
            |pattern: Value| json!({"type": "Replace", "pattern": pattern, "content": "ab"});
        let added = |change: Value| {
            let mut token = json!({"id": 3, "content": "x", "lstrip": true});
            for (field, value) in change.as_object().expect("an object") {
                token[field] = value.clone();
            }
            json!([token])
        };
        for (pointer, value, named) in [
            ("/model/type", json!("WordPiece"), "byte-pair"),
            ("/model/vocab", json!({"a": u32::MAX}), "4294967295"),
            ("/model/vocab", json!({"a": -1}), "`model.vocab`"),
            ("/model/vocab", json!({"a": 0, "b": 1}), "`model.merges`"),
            ("/model/merges", json!([["a"]]), "`model.merges`"),
            ("/model/merges", json!(["a b c"]), "`model.merges`"),
            ("/added_tokens", added(json!({"id": u32::MAX})), "`added_tokens`"),
            ("/added_tokens", added(json!({"content": ""})), "`added_tokens`"),
            ("/added_tokens", added(json!({"content": " "})), "`added_tokens`"),
            ("/normalizer", replace(json!({"String": ""})), "`normalizer` has `Replace`"),
            ("/normalizer", replace(json!({"Regex": "x*"})), "`normalizer` has `Replace`"),
            ("/normalizer", json!({"type": "Prepend", "prepend": "x"}), "`Prepend`"),
            ("/pre_tokenizer", json!({"type": "Metaspace"}), "`Metaspace`"),
        ] {
            let mut file = valid();
            *file.pointer_mut(pointer).expect(pointer) = value;
            let error = check_tokenizer(&file).expect_err(named);
            assert!(error.contains(named), "{error}");
        }
        let mut file = valid();
        file["model"]["continuing_subword_prefix"] = json!("##");
        assert!(check_tokenizer(&file).is_err());
        file["model"]["continuing_subword_prefix"] = json!("");
        assert_eq!(check_tokenizer(&file), Ok(()));
        file["model"]["dropout"] = json!(0.5);
        assert!(check_tokenizer(&file).is_err());
    }
}
