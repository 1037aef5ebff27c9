//! Prompts in the syntax of other programs, which this one encodes as words.

/// The first part of a prompt that AUTOMATIC1111's web UI or ComfyUI would not take as words, and what to do.
///
/// These are weights in brackets, as in `(mug:1.3)`, and tags of files, as in `<lora:mug:0.8>`.
pub(crate) fn foreign_part(prompt: &str) -> Option<String> {
    if let Some(tag) = tag(prompt) {
        return Some(format!(
            "`{tag}` is read as words; give the file by --adapter and --strength"
        ));
    }
    weight(prompt).map(|part| format!("`{part}` is read as words; prompts have no weights here"))
}

/// A tag that names a file, `<lora:...>` for example.
fn tag(prompt: &str) -> Option<&str> {
    let kinds = ["<lora:", "<lyco:", "<hypernet:"];
    let start = kinds.iter().filter_map(|kind| prompt.find(kind)).min()?;
    let end = prompt[start..].find('>')?;
    Some(&prompt[start..=start + end])
}

/// Words in brackets with a number behind a colon.
fn weight(prompt: &str) -> Option<&str> {
    prompt.match_indices('(').find_map(|(start, _)| {
        let end = start + prompt[start..].find(')')?;
        let (words, number) = prompt[start + 1..end].rsplit_once(':')?;
        let is_weight = number.trim().parse::<f32>().is_ok_and(f32::is_finite);
        (is_weight && !words.trim().is_empty()).then(|| &prompt[start..=end])
    })
}

#[cfg(test)]
mod tests {
    use super::foreign_part;

    #[test]
    fn weights_and_tags_are_found_and_other_brackets_are_not() {
        for (prompt, named) in [
            ("a (red mug:1.3) on a beach", "`(red mug:1.3)`"),
            ("a mug (é: 0.5)", "`(é: 0.5)`"),
            ("a mug ((red:1.2))", "`((red:1.2)`"),
            ("a mug <lora:castle:0.8> (red:1.2)", "`<lora:castle:0.8>`"),
        ] {
            let message = foreign_part(prompt).unwrap_or_default();
            assert!(message.contains(named), "{prompt}: {message}");
        }
        for prompt in
            ["a mug (red)", "at 12:30", "(at noon: red)", "(:1.2)", "a <mug>", "<lora:a", ") (", ""]
        {
            assert_eq!(foreign_part(prompt), None, "{prompt}");
        }
    }
}
