//! Files that sources and documents name by their path from the root exist.

use super::{Faults, tree::Tree};

/// Beginnings of paths that are looked up.
const ROOTS: &[&str] = &["crates/", "docs/", "examples/", "benches/", "xtask/"];

/// Where the past is told, with the names that it had.
const HISTORY: &[&str] = &["CHANGELOG.md", "docs/dev/renames.md", "docs/notes/"];

/// Extensions of files that cite.
const CITING: &[&str] = &["rs", "md", "py", "toml", "cu", "cuh"];

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
    for extension in CITING {
        for (path, text) in tree.with_extension(extension) {
            let skipped = path.starts_with("xtask/src/tidy/")
                || HISTORY.iter().any(|history| path.starts_with(history));
            if skipped {
                continue;
            }
            for (number, line) in (1..).zip(text.lines()) {
                for cited in citations(line).filter(|cited| !tree.has(cited)) {
                    faults.push(format!("{path}:{number}: names {cited}, which does not exist"));
                }
            }
        }
    }
}

/// Paths with an extension, or crates, that a line names from the root.
fn citations(line: &str) -> impl Iterator<Item = &str> {
    ROOTS.iter().flat_map(move |root| line.match_indices(root)).filter_map(move |(at, root)| {
        let before = line[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '/' | '_' | '-' | '.')) {
            return None;
        }
        let rest = &line[at..];
        let inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-' | '.');
        let end = rest.find(|c: char| !inside(c)).unwrap_or(rest.len());
        let pattern = rest[end..].starts_with(['*', '{', '<', '$']);
        let cited = rest[..end].trim_end_matches(['.', '/']);
        let name = cited.rsplit('/').next().unwrap_or_default();
        let looked_up = name.contains('.') || root == "crates/";
        (!pattern && looked_up && cited.len() >= root.len()).then_some(cited)
    })
}

#[cfg(test)]
mod tests {
    use super::super::faults_of;

    #[test]
    fn a_named_file_must_exist() {
        let count = |text: &str| {
            let files = [("crates/a/src/lib.rs", text), ("docs/parity/models.py", "")];
            faults_of(super::check, &files).len()
        };
        assert_eq!(count("//! Made by `docs/parity/models.py`.\n"), 0);
        assert_eq!(count("//! Made by `docs/reference/models.py`.\n"), 1);
        assert_eq!(count("//! See crates/b.\n"), 1);
        assert_eq!(count("//! See `crates/a/src/lib.rs` and crates/a, crates/*.\n"), 0);
        assert_eq!(count("// https://example.org/docs/x.md\n"), 0);
    }
}
