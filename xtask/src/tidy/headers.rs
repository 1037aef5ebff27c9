//! Every Rust file says in its first line what it is.

use super::{Faults, tree::Tree};

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
    for (path, text) in tree.with_extension("rs") {
        if !text.starts_with("//!") {
            faults.push(format!("{path}: does not start with `//!`, which says what the file is"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::faults_of;

    #[test]
    fn a_file_without_a_first_line_of_documentation_is_a_fault() {
        assert!(faults_of(super::check, &[("crates/a/src/lib.rs", "//! Says it.\n")]).is_empty());
        let faults = faults_of(super::check, &[("crates/a/src/lib.rs", "use x;\n//! Late.\n")]);
        assert_eq!(faults.len(), 1);
    }
}
