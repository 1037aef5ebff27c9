//! A public item has one path: a module whose items are re-exported is private.

use super::rust::{code, is_library, without_tests};
use super::{Faults, tree::Tree};

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
    for (path, text) in tree.with_extension("rs").filter(|(path, _)| is_library(path)) {
        let code = without_tests(&code(text));
        for module in public_modules(&code) {
            let passed_on = ["", "self::", "crate::"]
                .iter()
                .any(|prefix| code.contains(&format!("pub use {prefix}{module}::")));
            if passed_on {
                faults.push(format!(
                    "{path}: `{module}` is public and its items are re-exported, so that they have two paths"
                ));
            }
        }
    }
}

/// The names of the modules that a source declares as public.
fn public_modules(code: &str) -> impl Iterator<Item = &str> {
    code.split("pub mod ")
        .skip(1)
        .filter_map(|rest| rest.split_once([';', ' ']).map(|(name, _)| name))
}

#[cfg(test)]
mod tests {
    use super::super::faults_of;

    #[test]
    fn a_public_module_with_items_passed_on_is_a_fault() {
        let count = |text: &str| faults_of(super::check, &[("crates/a/src/lib.rs", text)]).len();
        assert_eq!(count("mod svd;\npub use svd::Svd;\n"), 0);
        assert_eq!(count("pub mod svd;\n"), 0);
        assert_eq!(count("pub mod svd;\npub use svd::Svd;\n"), 1);
        assert_eq!(count("pub(crate) mod svd;\npub(crate) use svd::Svd;\n"), 0);
    }
}
