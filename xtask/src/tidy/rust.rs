//! Rust sources as the checks read them: without comments, strings and unit tests.

/// The code of a source: comments, strings and characters become spaces, so that positions and lines stay.
pub(crate) fn code(text: &str) -> String {
    let source: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < source.len() {
        let end = skipped(&source, at);
        if end == at {
            out.push(source[at]);
            at += 1;
        } else {
            out.extend(source[at..end].iter().map(|&c| if c == '\n' { c } else { ' ' }));
            at = end;
        }
    }
    out
}

/// Code without the modules under `#[cfg(test)]`; what [`code`] made goes in.
pub(crate) fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    while let Some(start) = out.find("#[cfg(test)]") {
        let end = item_end(&out, start);
        let blank: String =
            out[start..end].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        out.replace_range(start..end, &blank);
    }
    out
}

/// Whether a path is a file of library code: not a test, an example, a bench or a build script.
pub(crate) fn is_library(path: &str) -> bool {
    path.starts_with("crates/")
        && path.contains("/src/")
        && !path.ends_with("tests.rs")
        && !path.ends_with("/testing.rs")
}

/// Where the item that follows an attribute ends: after its closing brace or its semicolon.
fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0_i32;
    for (at, c) in code[start..].char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth -= 1;
                if depth == 0 && c == '}' {
                    return start + at + 1;
                }
            }
            ';' if depth == 0 => return start + at + 1,
            _ => {}
        }
    }
    code.len()
}

/// The end of the comment, string or character that starts at `at`; `at` itself where none does.
fn skipped(source: &[char], at: usize) -> usize {
    let next = source.get(at + 1).copied();
    match source[at] {
        '/' if next == Some('/') => line_end(source, at),
        '/' if next == Some('*') => block_end(source, at),
        '"' => string_end(source, at + 1),
        'r' if !continues_word(source, at) => raw_end(source, at),
        '\'' => char_end(source, at),
        _ => at,
    }
}

fn line_end(source: &[char], at: usize) -> usize {
    source[at..].iter().position(|&c| c == '\n').map_or(source.len(), |length| at + length)
}

fn block_end(source: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < source.len() {
        match (source[at], source.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => {
                (depth, at) = (depth - 1, at + 2);
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

/// The end of a string whose first character is at `at`.
fn string_end(source: &[char], mut at: usize) -> usize {
    while at < source.len() {
        match source[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    source.len()
}

/// The end of a raw string that starts with the `r` at `at`.
fn raw_end(source: &[char], at: usize) -> usize {
    let hashes = source[at + 1..].iter().take_while(|&&c| c == '#').count();
    let open = at + 1 + hashes;
    if source.get(open) != Some(&'"') {
        return at;
    }
    let closes = |end: usize| {
        source[end] == '"'
            && source[end + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes
    };
    (open + 1..source.len()).find(|&end| closes(end)).map_or(source.len(), |end| end + 1 + hashes)
}

/// The end of a character; `at` for a lifetime.
fn char_end(source: &[char], at: usize) -> usize {
    if source.get(at + 1) == Some(&'\\') {
        let rest = &source[(at + 3).min(source.len())..];
        return rest.iter().position(|&c| c == '\'').map_or(at, |length| at + 4 + length);
    }
    if source.get(at + 2) == Some(&'\'') { at + 3 } else { at }
}

/// Whether the character at `at` is inside a word, so that it starts no literal.
fn continues_word(source: &[char], at: usize) -> bool {
    at > 0 && (source[at - 1].is_alphanumeric() || source[at - 1] == '_')
}

#[cfg(test)]
mod tests {
    use super::{code, without_tests};

    #[test]
    fn comments_and_strings_become_spaces_and_lifetimes_stay() {
        let text = "a // x\n/* y /* z */ */ b \"c \\\" d\" r#\"e \" f\"# 'g' '\\'' '\"' &'h i";
        let kept: Vec<_> = code(text).split_whitespace().map(str::to_owned).collect();
        assert_eq!(kept, ["a", "b", "&'h", "i"]);
        assert_eq!(code(text).chars().count(), text.chars().count());
    }

    #[test]
    fn unit_tests_are_left_out_and_what_follows_stays() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() {}\n}\nfn c() {}\n";
        let kept = without_tests(text);
        assert!(kept.contains("fn a") && kept.contains("fn c") && !kept.contains("fn b"));
        assert!(!without_tests("#[cfg(test)]\nmod tests;\nfn c() {}").contains("tests"));
    }
}
