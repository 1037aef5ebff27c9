//! Large data folders, whose pictures are listed some at a time.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod common;

use std::collections::HashSet;

use common::{Desk, write};

/// The parts of a folder have each picture once, in the order of a run, with its caption.
#[test]
fn the_parts_of_a_folder_are_all_of_it() {
    let desk = Desk::new();
    // What is listed is not opened.
    for number in 1..=650 {
        let path = desk.path("mug").join(format!("{number:03}.png"));
        write(&path, "no picture");
        write(&path.with_extension("txt"), format!("caption {number}"));
    }
    let data = desk.get("/api/data").json()[0]["id"].as_str().unwrap().to_owned();
    let part = |query: &str| desk.get(&format!("/api/data/{data}{query}")).json();
    let (mut ids, mut captions) = (HashSet::new(), Vec::new());
    for (query, length) in [("", 300), ("?from=300", 300), ("?from=600", 51), ("?from=651", 0)] {
        let part = part(query);
        let pictures = part["pictures"].as_array().unwrap();
        assert_eq!((part["count"].as_u64(), pictures.len()), (Some(651), length), "{query}");
        ids.extend(pictures.iter().map(|one| one["id"].as_str().unwrap().to_owned()));
        captions.extend(pictures.iter().map(|one| one["caption"].as_str().unwrap().to_owned()));
    }
    assert_eq!(ids.len(), 651);
    // `00.png` stands before `001.png`.
    let numbered = (1..=650).map(|number| format!("caption {number}"));
    assert_eq!(captions, std::iter::once("a mug".to_owned()).chain(numbered).collect::<Vec<_>>());
    for query in ["?from=18446744073709551615", "?from=-1", "?from=x", "?from="] {
        assert!(part(query)["pictures"].as_array().unwrap().len() <= 300, "{query}");
    }
    // A picture that was removed is gone from the first part, which is read anew.
    std::fs::remove_file(desk.path("mug/001.png")).unwrap();
    assert_eq!(part("")["count"], 650);
}
