//! `cargo xtask tidy`: the promises of `docs/ARCHITECTURE.md` and `CONTRIBUTING.md`, as checks.
//!
//! Each file holds one check. A check reads the [`Tree`] and adds its faults to a [`Faults`] list.

mod citations;
mod commands;
mod exports;
mod folds;
mod headers;
mod layers;
mod links;
mod maps;
mod modules;
mod permits;
mod prose;
mod readmes;
mod rust;
mod sizes;
mod tree;
mod width;

use crate::run::{Outcome, root};
use tree::Tree;

/// What the checks found; each entry names a file and the rule it breaks.
type Faults = Vec<String>;

/// A check reads the tree and adds what is wrong to the list.
type Check = fn(&Tree, &mut Faults);

/// All checks, with the name under which their faults are printed.
const CHECKS: &[(&str, Check)] = &[
    ("headers", headers::check),
    ("sizes", sizes::check),
    ("width", width::check),
    ("layers", layers::check),
    ("permits", permits::check),
    ("modules", modules::check),
    ("maps", maps::check),
    ("commands", commands::check),
    ("exports", exports::check),
    ("folds", folds::check),
    ("prose", prose::check),
    ("readmes", readmes::check),
    ("links", links::check),
    ("citations", citations::check),
];

/// Runs the checks named in `only`, or all of them, and fails where one found a fault.
pub(crate) fn tidy(only: &[String]) -> Outcome {
    if let Some(unknown) = only.iter().find(|name| CHECKS.iter().all(|(check, _)| check != name)) {
        let names: Vec<_> = CHECKS.iter().map(|(name, _)| *name).collect();
        return Err(format!("tidy has no check `{unknown}`; it has {}", names.join(", ")));
    }
    let tree = Tree::read(&root());
    let mut report = String::new();
    let mut count = 0;
    for (name, check) in CHECKS {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        let mut faults = Faults::new();
        check(&tree, &mut faults);
        count += faults.len();
        for fault in faults {
            report.push_str(&format!("\n  {name}: {fault}"));
        }
    }
    if count == 0 { Ok(()) } else { Err(format!("tidy found {count} faults{report}")) }
}

/// The faults of one check on a tree of the given files, for tests.
#[cfg(test)]
fn faults_of(check: Check, files: &[(&str, &str)]) -> Faults {
    let mut faults = Faults::new();
    check(&Tree::of(files), &mut faults);
    faults
}
