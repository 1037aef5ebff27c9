//! Regular expressions that match one path, as those of every layer of an imported file.
//!
//! A file with 700 layers has as many patterns, and each is compared with every path. Such a comparison needs
//! no compiled expression.

/// Characters with a meaning in a regular expression, unless a backslash precedes them.
const SPECIAL: &[u8] = br".+*?()|[]{}^$";

/// Returns whether `pattern` matches `path`, if `pattern` is `^path$` with escaped characters; `None` for
/// any other regular expression.
pub(crate) fn matches_one_path(pattern: &str, path: &str) -> Option<bool> {
    let inside = pattern.strip_prefix('^')?.strip_suffix('$')?;
    let (mut pattern, mut path) = (inside.bytes(), path.bytes());
    let mut equal = true;
    while let Some(byte) = pattern.next() {
        let byte = match byte {
            // A backslash before a letter or a digit is a class or an assertion.
            b'\\' => pattern.next().filter(|next| next.is_ascii_punctuation())?,
            byte if SPECIAL.contains(&byte) => return None,
            byte => byte,
        };
        equal &= path.next() == Some(byte);
    }
    Some(equal && path.next().is_none())
}

#[cfg(test)]
mod tests {
    use regex::Regex;

    use super::*;

    #[test]
    fn a_pattern_of_one_path_matches_as_its_regular_expression() {
        let paths = ["a.b-c.weight", "axb-c.weight", "a.b-c.weight.more", "a.b-c.weigh", "", "a$"];
        let exact = paths.map(|path| format!("^{}$", regex::escape(path)));
        let others = ["^a.b$", "a\\.b", "^a|b$", r"^\w$", r"^a\$", "^$", "^", r"^[a]\.b$", "^a\\"];
        let others = others.map(str::to_owned);
        for pattern in exact.iter().chain(&others) {
            for path in paths {
                let Some(found) = matches_one_path(pattern, path) else { continue };
                let regex = Regex::new(pattern).expect("a pattern of one path");
                assert_eq!(found, regex.is_match(path), "{pattern} {path}");
            }
        }
        assert!(exact.iter().all(|pattern| matches_one_path(pattern, "a.b").is_some()));
        assert_eq!(others.iter().filter(|other| matches_one_path(other, "").is_some()).count(), 1);
    }
}
