//! No circle between the modules of a crate.
//!
//! Modules are compared with their siblings. For each folder, the nodes are the folder's own file (`mod.rs`
//! or `lib.rs`) and each child with everything below it; an edge is a path in code that leads from one to the
//! other. A name that a file passes on with `use` is followed to where it is defined.

use std::collections::{BTreeMap, BTreeSet};

use super::rust::{code, is_library, without_tests};
use super::tree::crate_of;
use super::{Faults, tree::Tree};

mod paths;

use paths::{Reference, references};

/// A module by its path from the crate's root, which is empty.
type Module = Vec<String>;

/// The files of one crate by module, and the code of each.
type Files = BTreeMap<Module, (String, Vec<Reference>)>;

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
    let mut crates: BTreeMap<&str, Files> = BTreeMap::new();
    for (path, text) in tree.with_extension("rs").filter(|(path, _)| is_library(path)) {
        let Some(name) = crate_of(path) else { continue };
        let module = module_of(path.split_once("/src/").map_or("", |(_, rest)| rest));
        let found = references(&without_tests(&code(text)));
        crates.entry(name).or_default().insert(module, (path.to_owned(), found));
    }
    for (name, files) in crates {
        for circle in circles(&files) {
            faults.push(format!("{name}: a circle of modules: {circle}"));
        }
    }
}

/// The module of a file, by its path below `src`.
fn module_of(path: &str) -> Module {
    let path = path.trim_end_matches(".rs");
    let mut module: Module = path.split('/').map(str::to_owned).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        module.pop();
    }
    module
}

/// The circles of a crate, each as the modules in it and the edges between them.
fn circles(files: &Files) -> Vec<String> {
    // For each folder: from child to child, with the file and the path that make the edge.
    let mut graphs: BTreeMap<Module, BTreeMap<(String, String), String>> = BTreeMap::new();
    for (module, (file, found)) in files {
        for reference in found {
            let Some(target) = resolve(files, module, &reference.path, 0) else { continue };
            let common = module.iter().zip(&target).take_while(|(a, b)| a == b).count();
            let child = |of: &Module| of.get(common).cloned().unwrap_or_else(|| "self".to_owned());
            let (from, to) = (child(module), child(&target));
            if from != to {
                let short = file.split_once("/src/").map_or(file.as_str(), |(_, rest)| rest);
                let edge = format!("{short} uses {}", reference.path.join("::"));
                graphs
                    .entry(module[..common].to_vec())
                    .or_default()
                    .entry((from, to))
                    .or_insert(edge);
            }
        }
    }
    let mut found = Vec::new();
    for (folder, edges) in graphs {
        let folder = if folder.is_empty() { "the root".to_owned() } else { folder.join("::") };
        for circle in components(&edges) {
            let inside =
                |(from, to): &&(String, String)| circle.contains(from) && circle.contains(to);
            let edges: Vec<_> =
                edges.keys().filter(inside).map(|key| edges[key].as_str()).collect();
            let names = circle.iter().cloned().collect::<Vec<_>>().join(", ");
            found.push(format!("{names} of {folder} ({})", edges.join("; ")));
        }
    }
    found
}

/// The module that defines what `path` names in `module`; `None` for paths out of the crate.
fn resolve(files: &Files, module: &Module, path: &[String], depth: usize) -> Option<Module> {
    let mut at = module.clone();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => (at, rest) = (Module::new(), &path[1..]),
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|part| part == "super") {
                at.pop()?;
                rest = &rest[1..];
            }
        }
        child => {
            at.push(child.to_owned());
            files.get(&at)?;
            rest = &path[1..];
        }
    }
    loop {
        let Some(next) = rest.first() else { return Some(at) };
        let mut child = at.clone();
        child.push(next.clone());
        if !files.contains_key(&child) {
            break;
        }
        (at, rest) = (child, &rest[1..]);
    }
    // A name that the file passes on leads to where it comes from, perhaps out of the crate.
    let (_, found) = files.get(&at)?;
    let named = |part| found.iter().find(|reference| reference.name.as_ref() == Some(part));
    let passed = rest.iter().find_map(named);
    match passed {
        Some(reference) if depth < 8 && reference.path != path => {
            resolve(files, &at, &reference.path, depth + 1)
        }
        _ => Some(at),
    }
}

/// Sets of nodes that reach each other.
fn components(edges: &BTreeMap<(String, String), String>) -> Vec<BTreeSet<String>> {
    let nodes: BTreeSet<&String> = edges.keys().flat_map(|(from, to)| [from, to]).collect();
    let reached = |start: &String| {
        let mut seen = BTreeSet::new();
        let mut open = vec![start];
        while let Some(node) = open.pop() {
            for (_, to) in edges.keys().filter(|(from, _)| from == node) {
                if seen.insert(to.clone()) {
                    open.push(to);
                }
            }
        }
        seen
    };
    let all: BTreeMap<&String, BTreeSet<String>> =
        nodes.iter().map(|node| (*node, reached(node))).collect();
    let mut found: Vec<BTreeSet<String>> = Vec::new();
    for (node, forward) in &all {
        if forward.contains(*node) && !found.iter().any(|set| set.contains(*node)) {
            let back = |other: &&String| all.get(other).is_some_and(|set| set.contains(*node));
            found.push(forward.iter().filter(back).cloned().collect());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::faults_of;

    fn count(files: &[(&str, &str)]) -> usize {
        let paths: Vec<_> = files.iter().map(|(path, _)| format!("crates/a/src/{path}")).collect();
        let files: Vec<_> =
            paths.iter().zip(files).map(|(path, (_, text))| (path.as_str(), *text)).collect();
        faults_of(super::check, &files).len()
    }

    #[test]
    fn files_that_use_each_other_are_a_circle() {
        let one_way = [("lib.rs", "mod a; mod b;"), ("a.rs", "use crate::b::B;"), ("b.rs", "")];
        assert_eq!(count(&one_way), 0);
        let circle = [("a.rs", "use crate::b::B;"), ("b.rs", "fn f() { super::a::g(); }")];
        assert_eq!(count(&circle), 1);
    }

    #[test]
    fn a_circle_of_folders_is_seen_through_their_files() {
        let circle = [
            ("a/mod.rs", ""),
            ("a/one.rs", "use crate::b::two::T;"),
            ("a/three.rs", ""),
            ("b/mod.rs", ""),
            ("b/two.rs", "use crate::{a::three::{S, U as V}, c};"),
        ];
        assert_eq!(count(&circle), 1);
        assert_eq!(count(&circle[..4]), 0);
    }

    #[test]
    fn a_folder_and_its_child_may_not_use_each_other() {
        let child = ("a/one.rs", "use super::Seam;");
        assert_eq!(count(&[("a/mod.rs", "mod one; use one::One; trait Seam {}"), child]), 1);
        assert_eq!(count(&[("a/mod.rs", "mod one; trait Seam {}"), child]), 0);
    }

    #[test]
    fn a_name_that_is_passed_on_leads_to_its_file() {
        let files = [
            ("lib.rs", "mod a; mod error; pub use a::A; pub use error::Error;"),
            ("a.rs", "use crate::Error;"),
            ("error.rs", ""),
        ];
        assert_eq!(count(&files), 0);
    }

    #[test]
    fn unit_tests_may_use_what_they_like() {
        let test = "#[cfg(test)]\nmod tests { use crate::b::B; }";
        assert_eq!(count(&[("a.rs", test), ("b.rs", "use crate::a::A;")]), 0);
    }
}
