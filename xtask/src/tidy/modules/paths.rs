//! The paths that a source names: `use` trees and paths in code.

/// One path in a source.
#[derive(Debug, PartialEq)]
pub(crate) struct Reference {
    /// Its parts, `crate`, `self` and `super` among them; a glob's path without the `*`.
    pub(crate) path: Vec<String>,
    /// The name that a `use` gives to it in its file; `None` for a path in code.
    pub(crate) name: Option<String>,
}

/// All paths of `code`, which has no comments and no strings.
pub(crate) fn references(code: &str) -> Vec<Reference> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at] {
            // `use<T>` in a bound names what a type captures.
            "use" if tokens.get(at + 1) != Some(&"<") => {
                at = tree(&tokens, at + 1, &[], &mut found)
            }
            token if is_word(token) && tokens.get(at + 1) == Some(&"::") => {
                let mut path = vec![token.to_owned()];
                at += 1;
                while tokens.get(at) == Some(&"::")
                    && tokens.get(at + 1).is_some_and(|t| is_word(t))
                {
                    path.push(tokens[at + 1].to_owned());
                    at += 2;
                }
                found.push(Reference { path, name: None });
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Reads a `use` tree from `at` and returns where it ends.
fn tree(tokens: &[&str], mut at: usize, prefix: &[String], found: &mut Vec<Reference>) -> usize {
    let mut path = prefix.to_vec();
    let mut name = None;
    while let Some(token) = tokens.get(at) {
        match *token {
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| *token != "}") {
                    at = tree(tokens, at, &path, found);
                    if tokens.get(at) == Some(&",") {
                        at += 1;
                    }
                }
                return at + 1;
            }
            "," | "}" | ";" => break,
            "as" => {
                name = tokens.get(at + 1).map(|alias| (*alias).to_owned());
                at += 1;
            }
            "self" if !path.is_empty() => {}
            word if is_word(word) => path.push(word.to_owned()),
            _ => {}
        }
        at += 1;
    }
    if path.len() > prefix.len() || !path.is_empty() {
        let name = name.or_else(|| path.last().cloned());
        found.push(Reference { path, name });
    }
    at
}

/// Words, `::` and single characters.
fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        tokens.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    tokens
}

fn is_word(token: &str) -> bool {
    token.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::references;

    #[test]
    fn captures_of_a_type_are_no_use() {
        let found = references("fn f() -> impl Fn() + use<N> { let a = { [b::c(); 2] }; }");
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].path, ["b", "c"]);
    }

    #[test]
    fn use_trees_are_opened() {
        let found =
            references("pub use crate::a::{self, b::{C, D as E}, f::*};\nfn g() { h::i::<J>(); }");
        let shown: Vec<_> = found
            .iter()
            .map(|found| {
                format!("{} {}", found.path.join("::"), found.name.as_deref().unwrap_or("-"))
            })
            .collect();
        let expected =
            ["crate::a a", "crate::a::b::C C", "crate::a::b::D E", "crate::a::f f", "h::i -"];
        assert_eq!(shown, expected);
    }
}
