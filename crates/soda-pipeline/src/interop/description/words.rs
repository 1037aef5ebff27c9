//! The words that call the subject of a file.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::header::Tensor;

/// The trigger words of the metadata, and the tokens of embeddings that the file has. Without them the tag
/// that most captions had.
pub(super) fn words(metadata: &BTreeMap<String, String>, tensors: &[Tensor<'_>]) -> Vec<String> {
    let trigger = trigger(metadata, tensors);
    if trigger.is_empty() { most_frequent_tag(metadata).into_iter().collect() } else { trigger }
}

/// The trigger words of the metadata, and the tokens of embeddings that the file has.
pub(super) fn trigger(metadata: &BTreeMap<String, String>, tensors: &[Tensor<'_>]) -> Vec<String> {
    let mut words = BTreeSet::new();
    for field in ["modelspec.trigger_phrase", "ss_trigger_words", "trigger_word"] {
        let texts = metadata.get(field).into_iter().flat_map(|text| text.split(','));
        words.extend(texts.map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()));
    }
    let bundled = tensors.iter().filter_map(|(key, ..)| key.strip_prefix("bundle_emb."));
    words.extend(bundled.filter_map(|rest| Some(rest.split('.').next()?.to_owned())));
    words.into_iter().collect()
}

/// The tag that most captions of kohya's training had, by the metadata.
fn most_frequent_tag(metadata: &BTreeMap<String, String>) -> Option<String> {
    let folders: Value = serde_json::from_str(metadata.get("ss_tag_frequency")?).ok()?;
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for tags in folders.as_object()?.values().filter_map(Value::as_object) {
        for (tag, count) in tags {
            let sum = counts.entry(tag.trim().to_owned()).or_default();
            *sum = sum.saturating_add(count.as_u64().unwrap_or_default());
        }
    }
    let most =
        counts.into_iter().max_by_key(|(tag, count)| (*count, std::cmp::Reverse(tag.clone())));
    most.map(|(tag, _)| tag)
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;

    #[test]
    fn words_are_those_of_the_metadata_or_the_most_frequent_tag() {
        let metadata = |key: &str, text: &str| BTreeMap::from([(key.to_owned(), text.to_owned())]);
        let phrase = metadata("modelspec.trigger_phrase", "sks mug, red");
        assert_eq!(words(&phrase, &[]), ["red", "sks mug"]);
        let tags =
            metadata("ss_tag_frequency", r#"{"5_x": {"a": 2, "sks mug": 9}, "b": {"a": 3}}"#);
        assert_eq!(words(&tags, &[]), ["sks mug"]);
        assert!(trigger(&tags, &[]).is_empty(), "a guess is no trigger");
        assert_eq!(trigger(&phrase, &[]), ["red", "sks mug"]);
        assert!(words(&metadata("ss_tag_frequency", "[1, {"), &[]).is_empty());
        let bundled = ("bundle_emb.<mug>.string_to_param.*", Dtype::F32, &[4, 768][..]);
        assert_eq!(words(&BTreeMap::new(), &[bundled]), ["<mug>"]);
    }
}
