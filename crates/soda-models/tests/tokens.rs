//! Token ids of 200 difficult strings, equal to those of transformers.
//!
//! The fixture is written by `docs/parity/tokens.py`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use soda_models::tokenizer::Tokenizer;

const TOKENIZER: &str = "examples/toybox/base/tokenizer";
const FIXTURE: &str = "crates/soda-models/tests/fixtures/tokens.json";

fn check(tokenizer: &Tokenizer) {
    let table: Vec<(String, Vec<u32>, bool)> = serde_json::from_str(
        &std::fs::read_to_string(soda_testing::workspace_path(FIXTURE)).unwrap(),
    )
    .unwrap();
    assert!(table.len() >= 200);
    for (text, ids, cut) in table {
        let ours = tokenizer.encode(&text);
        let (words, padding) = ours.ids.split_at(ids.len());
        assert_eq!(words, ids, "{text:?}");
        assert!(padding.iter().all(|id| *id == tokenizer.eos_token_id()), "{text:?}");
        assert_eq!(ours.truncated, cut, "{text:?}");
    }
}

#[test]
fn difficult_strings_have_transformers_ids() {
    check(&Tokenizer::from_dir(&soda_testing::workspace_path(TOKENIZER)).unwrap());
}

#[test]
fn difficult_strings_have_the_same_ids_from_vocabulary_and_merges() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["vocab.json", "merges.txt", "tokenizer_config.json"] {
        std::fs::copy(soda_testing::workspace_path(TOKENIZER).join(name), dir.path().join(name))
            .unwrap();
    }
    // As in tokenizer.json: the start token is matched in any case.
    let start = r#"{"bos_token": {"content": "<|startoftext|>", "normalized": true}}"#;
    std::fs::write(dir.path().join("special_tokens_map.json"), start).unwrap();
    check(&Tokenizer::from_dir(dir.path()).unwrap());
}
