//! Relative links of the documents lead somewhere, with their anchors.

use super::Faults;
use super::tree::{Tree, folder_of};

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
    for (path, text) in tree.with_extension("md") {
        for link in links(text) {
            let (target, anchor) = link.split_once('#').unwrap_or((link, ""));
            let file = if target.is_empty() { path.to_owned() } else { resolve(path, target) };
            if !tree.has(&file) {
                faults.push(format!("{path}: links to {link}, which does not exist"));
            } else if !anchor.is_empty() && !has_anchor(tree.text(&file), anchor) {
                faults.push(format!("{path}: links to {link}, a heading that does not exist"));
            }
        }
    }
}

/// The relative targets of the links and pictures in a document.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target).filter(|target| {
        !target.contains("://") && !target.starts_with("mailto:") && !target.contains(' ')
    })
}

/// The path from the root of what `target` names beside the file `path`.
fn resolve(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = folder_of(path).split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Whether a document has a heading with the anchor, by the rule of code hosts.
fn has_anchor(text: Option<&str>, anchor: &str) -> bool {
    let headings = text.unwrap_or_default().lines().filter(|line| line.starts_with('#'));
    headings.map(|line| slug(line.trim_start_matches('#').trim())).any(|slug| slug == anchor)
}

fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[cfg(test)]
mod tests {
    use super::super::faults_of;

    #[test]
    fn links_must_lead_to_files_and_headings() {
        let count = |link: &str| {
            let text = format!("[x]({link})");
            let files = [("docs/a.md", text.as_str()), ("docs/guide/b.md", "# Two words, here\n")];
            faults_of(super::check, &files).len()
        };
        for link in ["guide/b.md", "guide", "guide/b.md#two-words-here", "https://example.org/x"] {
            assert_eq!(count(link), 0, "{link}");
        }
        for link in ["b.md", "guide/b.md#other", "../guide/b.md"] {
            assert_eq!(count(link), 1, "{link}");
        }
    }
}
