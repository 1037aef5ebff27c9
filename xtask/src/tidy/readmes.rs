//! Every crate and Python package has a README of one screen, and the names in its examples exist.

use super::Faults;
use super::tree::{Tree, crate_of};

/// The fewest and the most lines of a crate's README.
const LINES: std::ops::RangeInclusive<usize> = 10..=60;

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
    for (path, _) in tree.with_extension("toml") {
        let folder =
            ["/Cargo.toml", "/pyproject.toml"].iter().find_map(|end| path.strip_suffix(end));
        let Some(folder) = folder.filter(|folder| folder.starts_with("crates/")) else { continue };
        let readme = format!("{folder}/README.md");
        let Some(text) = tree.text(&readme) else {
            faults.push(format!("{readme}: is missing"));
            continue;
        };
        let lines = text.lines().count();
        if !LINES.contains(&lines) {
            let (least, most) = (LINES.start(), LINES.end());
            faults.push(format!("{readme}: {lines} lines, not {least} to {most}"));
        }
        for (name, item) in imports(text) {
            let defined = tree.with_extension("rs").any(|(source, text)| {
                crate_of(source) == Some(name.as_str()) && defines(text, &item)
            });
            if !defined {
                faults.push(format!("{readme}: uses `{item}`, which {name} does not define"));
            }
        }
    }
}

/// The crates and items that the `use soda_..` lines of a document name.
fn imports(text: &str) -> Vec<(String, String)> {
    let uses = text.lines().filter_map(|line| line.trim().strip_prefix("use soda_"));
    let mut found = Vec::new();
    for line in uses {
        let words: Vec<&str> = line
            .split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .collect();
        let Some((name, rest)) = words.split_first() else { continue };
        let name = format!("soda-{}", name.replace('_', "-"));
        let items = rest.iter().filter(|word| !["self", "as", "_"].contains(word));
        found.extend(items.map(|item| (name.clone(), (*item).to_owned())));
    }
    found
}

/// Whether a source defines a public item of that name.
fn defines(text: &str, item: &str) -> bool {
    let kinds = ["struct", "enum", "trait", "fn", "type", "const", "mod", "macro_rules!", "union"];
    kinds.iter().any(|kind| {
        let start = format!("{kind} {item}");
        text.match_indices(&start).any(|(at, _)| {
            let next = text[at + start.len()..].chars().next();
            !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::faults_of;

    fn count(readme: &str) -> usize {
        let manifest = ("crates/soda-linalg/Cargo.toml", "");
        let source = ("crates/soda-linalg/src/svd.rs", "pub struct Svd {}\npub fn thin_all() {}");
        let with = [manifest, source, ("crates/soda-linalg/README.md", readme)];
        faults_of(super::check, if readme.is_empty() { &with[..2] } else { &with }).len()
    }

    #[test]
    fn a_readme_must_exist_and_be_short() {
        assert_eq!(count(""), 1);
        assert_eq!(count("# x\n"), 1);
        assert_eq!(count(&"x\n".repeat(20)), 0);
        assert_eq!(count(&"x\n".repeat(61)), 1);
        assert_eq!(faults_of(super::check, &[("crates/x/pyproject.toml", "")]).len(), 1);
    }

    #[test]
    fn names_of_examples_must_exist() {
        let text = |line: &str| "x\n".repeat(10) + line;
        assert_eq!(count(&text("use soda_linalg::Svd;\n")), 0);
        assert_eq!(count(&text("use soda_linalg::{Svd, thin_all};\n")), 0);
        assert_eq!(count(&text("use soda_linalg::{Svd, thin};\n")), 1);
    }
}
