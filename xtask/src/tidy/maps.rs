//! The table of modules in `docs/ARCHITECTURE.md` names every module at the root of each crate, and no other.

use std::collections::BTreeSet;

use super::Faults;
use super::rust::is_library;
use super::tree::{Tree, crate_of};

const DOCUMENT: &str = "docs/ARCHITECTURE.md";
const HEADING: &str = "## Modules";

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
    let Some(text) = tree.text(DOCUMENT) else { return };
    let rows = rows(text);
    let sources = || tree.with_extension("rs").filter(|(path, _)| is_library(path));
    let crates: BTreeSet<&str> = sources()
        .filter_map(|(path, _)| crate_of(path))
        .filter(|name| name.starts_with("soda-"))
        .collect();
    for name in crates {
        let modules: BTreeSet<String> = sources()
            .filter_map(|(path, _)| path.strip_prefix(&format!("crates/{name}/src/")))
            .map(|rest| rest.split('/').next().unwrap_or(rest).trim_end_matches(".rs").to_owned())
            .filter(|module| !["lib", "main"].contains(&module.as_str()))
            .collect();
        let named: BTreeSet<String> = rows
            .iter()
            .filter(|(row, _)| row == name)
            .flat_map(|(_, modules)| modules.clone())
            .collect();
        let list = |names: Vec<&String>| {
            names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
        };
        let missing: Vec<_> = modules.difference(&named).collect();
        if !missing.is_empty() {
            let missing = list(missing);
            faults.push(format!("{DOCUMENT}: the table of modules lacks {missing} of {name}"));
        }
        let gone: Vec<_> = named.difference(&modules).collect();
        if !gone.is_empty() {
            let gone = list(gone);
            faults.push(format!("{DOCUMENT}: the table of modules has {gone}, which {name} lacks"));
        }
    }
}

/// The rows of the table below the heading: a crate, and the names in backticks of the second cell.
fn rows(text: &str) -> Vec<(String, Vec<String>)> {
    let section = text.split_once(HEADING).map_or("", |(_, rest)| rest);
    let section = section.split("\n## ").next().unwrap_or_default();
    let mut rows = Vec::new();
    let mut name = String::new();
    for line in section.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let names =
            |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
        // A row without a crate goes on with the one above.
        if let Some(first) = cells.first().and_then(|cell| names(cell).into_iter().next()) {
            name = first;
        }
        if let Some(cell) = cells.get(1) {
            rows.push((name.clone(), names(cell)));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::faults_of;
    use super::DOCUMENT;

    #[test]
    fn the_table_and_the_folders_must_agree() {
        let count = |table: &str| {
            let text =
                format!("# A\n\n## Modules\n\n| crate | modules |\n|---|---|\n{table}\n## Next\n");
            let files = [
                (DOCUMENT, text.as_str()),
                ("crates/soda-x/src/lib.rs", ""),
                ("crates/soda-x/src/svd.rs", ""),
                ("crates/soda-x/src/optim/mod.rs", ""),
            ];
            faults_of(super::check, &files).len()
        };
        assert_eq!(count("| `soda-x` | `svd`, `optim` | all |\n"), 0);
        assert_eq!(count("| `soda-x` | `svd` | |\n| | `optim` | |\n"), 0);
        assert_eq!(count("| `soda-x` | `svd` | |\n"), 1);
        assert_eq!(count("| `soda-x` | `svd`, `optim`, `qr` | |\n"), 1);
    }
}
