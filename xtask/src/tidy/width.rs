//! Comments and documentation are at most 110 characters wide.

use super::{Faults, tree::Tree};

/// The widest comment line, with its indentation.
const MAX_WIDTH: usize = 110;

/// What a comment line starts with, by the file's extension.
const COMMENTS: &[(&str, &str)] = &[("rs", "//"), ("cu", "//"), ("cuh", "//"), ("toml", "#")];

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
    for (extension, mark) in COMMENTS {
        for (path, text) in tree.with_extension(extension) {
            let comments = (1..).zip(text.lines()).filter(|(_, line)| {
                let line = line.trim_start();
                line.starts_with(mark) && !line.contains("https://")
            });
            for (number, line) in comments {
                let width = line.chars().count();
                if width > MAX_WIDTH {
                    faults.push(format!(
                        "{path}:{number}: a comment {width} wide, more than {MAX_WIDTH}"
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::faults_of;

    #[test]
    fn a_wide_comment_is_a_fault_and_wide_code_is_not() {
        let wide = "x".repeat(111);
        let comment = format!("    /// {wide}\n");
        assert_eq!(faults_of(super::check, &[("crates/a/src/lib.rs", &comment)]).len(), 1);
        assert!(faults_of(super::check, &[("crates/a/src/lib.rs", &wide)]).is_empty());
        assert_eq!(faults_of(super::check, &[("a/Cargo.toml", &format!("# {wide}"))]).len(), 1);
    }
}
