//! The command files of soda-cli are the subcommands of `soda`.

use std::collections::BTreeSet;

use super::rust::code;
use super::{Faults, tree::Tree};

const MAIN: &str = "crates/soda-cli/src/main.rs";
const FOLDER: &str = "crates/soda-cli/src/command/";

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
    let Some(main) = tree.text(MAIN) else { return };
    let commands = variants(&code(main));
    if commands.is_empty() {
        faults.push(format!("{MAIN}: has no `enum Command` with the subcommands"));
    }
    let files: BTreeSet<String> = tree
        .with_extension("rs")
        .filter_map(|(path, _)| path.strip_prefix(FOLDER))
        .map(|rest| rest.trim_end_matches(".rs").split('/').next().unwrap_or(rest).to_owned())
        .filter(|name| name != "mod")
        .collect();
    for command in commands.difference(&files) {
        faults.push(format!("{FOLDER}: has no file for the subcommand `{command}`"));
    }
    for file in files.difference(&commands) {
        faults.push(format!("{FOLDER}{file}: is no subcommand of `soda`"));
    }
}

/// The variants of `enum Command`, in the spelling of files.
fn variants(code: &str) -> BTreeSet<String> {
    let Some((_, rest)) = code.split_once("enum Command {") else { return BTreeSet::new() };
    let body = rest.split_once("\n}").map_or(rest, |(body, _)| body);
    let name = |line: &str| {
        let name: String = line.trim().chars().take_while(char::is_ascii_alphanumeric).collect();
        name.chars().next().filter(char::is_ascii_uppercase).map(|_| snake_case(&name))
    };
    body.lines().filter_map(name).collect()
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::faults_of;
    use super::{FOLDER, MAIN};

    const ENUM: &str =
        "enum Command {\n    /// Learn\n    Train(Box<Args>),\n    Merge(Args),\n}\n";

    #[test]
    fn files_and_subcommands_must_agree() {
        let count = |names: &[&str]| {
            let paths: Vec<_> = names.iter().map(|name| format!("{FOLDER}{name}")).collect();
            let mut files: Vec<_> = paths.iter().map(|path| (path.as_str(), "")).collect();
            files.push((MAIN, ENUM));
            faults_of(super::check, &files).len()
        };
        assert_eq!(count(&["mod.rs", "train.rs", "merge/mod.rs"]), 0);
        assert_eq!(count(&["train.rs"]), 1);
        assert_eq!(count(&["train.rs", "merge.rs", "fold.rs"]), 1);
    }
}
