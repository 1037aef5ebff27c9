//! Documents are read in one go: short paragraphs, short sentences. Notebooks and the changelog are left out.

use super::{Faults, tree::Tree};

/// The documents that are held to it, and folders with all their documents.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/ARCHITECTURE.md",
    "docs/README.md",
    "docs/guide/",
    "docs/reference/",
    "docs/dev/parity.md",
];

/// The most sentences of a paragraph, a list item or a cell of a table.
const MAX_SENTENCES: usize = 3;

/// The most words of a sentence.
const MAX_WORDS: usize = 25;

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
    let held = |path: &str| {
        path.starts_with("crates/") || DOCUMENTS.iter().any(|document| path.starts_with(document))
    };
    for (document, text) in tree.with_extension("md").filter(|(path, _)| held(path)) {
        for (number, paragraph) in paragraphs(text) {
            let sentences = sentences(&paragraph);
            if sentences.len() > MAX_SENTENCES {
                faults.push(format!(
                    "{document}:{number}: {} sentences in one paragraph, more than {MAX_SENTENCES}",
                    sentences.len()
                ));
            }
            for words in sentences.iter().map(|sentence| sentence.split_whitespace().count()) {
                if words > MAX_WORDS {
                    faults.push(format!(
                        "{document}:{number}: a sentence of {words} words, more than {MAX_WORDS}"
                    ));
                }
            }
        }
    }
}

/// Paragraphs, list items and table cells with the line on which each starts; code and headings are left out.
fn paragraphs(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let (mut fenced, mut open) = (false, false);
    for (number, line) in (1..).zip(text.lines()) {
        let trimmed = line.trim();
        if trimmed.starts_with("```") {
            (fenced, open) = (!fenced, false);
        } else if fenced || trimmed.is_empty() || trimmed.starts_with('#') {
            open = false;
        } else if line.starts_with("    ") && !open {
            // An indented block of code.
        } else if let Some(row) = trimmed.strip_prefix('|') {
            open = false;
            found.extend(row.split('|').map(|cell| (number, cell.trim().to_owned())));
        } else if let Some(item) = list_item(trimmed) {
            open = true;
            found.push((number, item.to_owned()));
        } else if open {
            if let Some((_, paragraph)) = found.last_mut() {
                paragraph.push(' ');
                paragraph.push_str(trimmed);
            }
        } else {
            open = true;
            found.push((number, trimmed.to_owned()));
        }
    }
    found
}

/// The text of a list item, numbered or not.
fn list_item(line: &str) -> Option<&str> {
    let numbered = line.split_once(". ").filter(|(number, _)| number.parse::<u32>().is_ok());
    line.strip_prefix("- ").or(line.strip_prefix("* ")).or(numbered.map(|(_, item)| item))
}

/// The sentences of a paragraph, which end in a full stop, a question mark or an exclamation mark.
fn sentences(paragraph: &str) -> Vec<String> {
    let mut sentences = vec![String::new()];
    for word in paragraph.split_whitespace() {
        if let Some(sentence) = sentences.last_mut() {
            sentence.push_str(word);
            sentence.push(' ');
        }
        let bare = word.trim_end_matches(['*', ')', '"', '`', '_']);
        let short = ["e.g.", "i.e.", "et", "al.", "etc.", "vs."].contains(&bare);
        if bare.ends_with(['.', '!', '?']) && !short {
            sentences.push(String::new());
        }
    }
    sentences.retain(|sentence| !sentence.trim().is_empty());
    sentences
}

#[cfg(test)]
mod tests {
    use super::super::faults_of;

    fn count(text: &str) -> usize {
        faults_of(super::check, &[("README.md", text)]).len()
    }

    #[test]
    fn a_long_paragraph_is_a_fault_and_two_of_them_are_not_one() {
        assert_eq!(count("One. Two. Three.\n\nFour.\n"), 0);
        assert_eq!(count("One. Two.\nThree. Four.\n"), 1);
        assert_eq!(count("| a | One. Two. Three. Four. |\n"), 1);
        assert_eq!(count("- One. Two.\n- Three. Four.\n"), 0);
        assert_eq!(count("1. One. Two.\n2. Three. Four.\n"), 0);
        assert_eq!(count("```\nOne. Two. Three. Four.\n```\n"), 0);
    }

    #[test]
    fn a_long_sentence_is_a_fault() {
        assert_eq!(count(&format!("{}end.", "word ".repeat(24))), 0);
        assert_eq!(count(&format!("{}end.", "word ".repeat(25))), 1);
    }
}
