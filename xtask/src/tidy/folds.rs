//! No fold that loses NaN: `f32::max` returns the other operand where one is NaN.

use super::rust::code;
use super::{Faults, tree::Tree};

/// What loses NaN, as it stands in code without spaces.
const LOSSY: &[&str] =
    &["f32::max)", "f64::max)", "f32::min)", "f64::min)", ".amax()", ".amin()", ".camax()"];

/// Files in which such a fold is right, and why.
const ALLOWED: &[(&str, &str)] = &[
    ("crates/soda-train/src/output/plot.rs", "the range of an axis leaves out NaN"),
    ("crates/soda-compare/src/report/scatter.rs", "the range of an axis leaves out NaN"),
];

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
    let sources = tree.with_extension("rs").filter(|(path, _)| !path.starts_with("xtask/"));
    for (path, text) in sources {
        if ALLOWED.iter().any(|(file, _)| *file == path) {
            continue;
        }
        for (number, line) in (1..).zip(code(text).lines()) {
            let line: String = line.split_whitespace().collect();
            if let Some(lossy) = LOSSY.iter().find(|lossy| line.contains(*lossy)) {
                faults.push(format!(
                    "{path}:{number}: `{}` loses NaN; use soda_testing, or compare so that NaN stays",
                    lossy.trim_end_matches(')')
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::faults_of;

    #[test]
    fn a_fold_by_max_is_a_fault_and_the_method_of_two_numbers_is_not() {
        let count = |text: &str| faults_of(super::check, &[("crates/a/src/lib.rs", text)]).len();
        assert_eq!(count("let m = x.iter().fold(0.0, f32::max);"), 1);
        assert_eq!(count("let m = x.into_iter().reduce( f64::min );"), 1);
        assert_eq!(count("assert!(a.amax() < 1e-5);"), 1);
        assert_eq!(count("let m = a.max(b); // fold(0.0, f32::max)"), 0);
    }
}
