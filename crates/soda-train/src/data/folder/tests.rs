//! Data folders as people and other programs leave them.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use super::*;
use crate::testing::folder;

/// The captions and repeats of the images.
#[track_caller]
fn read(files: &[(&str, &str)]) -> (Vec<(String, usize)>, Vec<String>) {
    let folder = folder(files);
    let contents = FolderContents::read(folder.path(), None).unwrap();
    let examples = contents.examples.into_iter().map(|e| (e.caption, e.repeats)).collect();
    (examples, contents.skipped.iter().map(ToString::to_string).collect())
}

#[track_caller]
fn refused(files: &[(&str, &str)], needles: &[&str]) {
    let folder = folder(files);
    let message = FolderContents::read(folder.path(), None).err().unwrap().to_string();
    for needle in needles {
        assert!(message.contains(needle), "`{needle}` is not in: {message}");
    }
}

#[test]
fn hidden_files_are_no_images_captions_or_folders() {
    let (examples, skipped) = read(&[
        ("0.png", ""),
        ("0.txt", "a mug"),
        ("._0.png", ""),
        ("._0.txt", "\u{5}"),
        (".trashed-1.png", ""),
        ("Thumbs.db", ""),
        (".cache/2.png", ""),
        ("3_.x/._2.png", ""),
        ("__MACOSX/._0.png", ""),
        ("__MACOSX/0.png", ""),
    ]);
    assert_eq!(examples, [("a mug".to_owned(), 1)]);
    assert!(skipped.is_empty(), "{skipped:?}");
}

#[test]
fn folders_that_are_not_read_are_named() {
    let (examples, skipped) = read(&[
        ("2_red mug/0.png", ""),
        ("2_red mug/more/1.png", ""),
        ("0_unused thing/0.png", ""),
        ("0_unused thing/1.png", ""),
        ("more/deep/0.png", ""),
        ("notes/a.txt", ""),
        ("-1_x/0.png", ""),
        ("truth/0.png", ""),
        ("masks/0.png", ""),
        ("metadata.csv", ""),
    ]);
    assert_eq!(examples, [("red mug".to_owned(), 2)]);
    let expected = [
        ("metadata.csv", "is not read"),
        ("2_red mug/more", "1 picture is"),
        ("-1_x", "1 picture is"),
        ("0_unused thing", "2 pictures are"),
        ("more", "such as `3_sks mug`"),
    ];
    for (path, text) in expected {
        let found = skipped.iter().any(|line| line.contains(path) && line.contains(text));
        assert!(found, "{path} {text}: {skipped:?}");
    }
    assert_eq!(skipped.len(), expected.len(), "{skipped:?}");
    refused(&[("more/0.png", "")], &["holds no picture that is read", "more", "`3_sks mug`"]);
    refused(&[("0_x/0.png", "")], &["0 repeats"]);
    refused(&[("more/notes.txt", "")], &["holds no picture (png"]);
}

#[test]
fn metadata_names_images_in_folders() {
    let lines = r#"{"file_name": "./0.png", "text": "here"}
{"file_name": "images/train/1.png", "text": "nested", "repeats": 2}
{"file_name": "3_mug/2.png", "text": "outer"}
{"file_name": "3_mug/3.png", "text": "outer"}"#;
    let (examples, skipped) = read(&[
        ("0.png", ""),
        ("images/train/1.png", ""),
        ("images/train/9.png", ""),
        ("3_mug/2.png", ""),
        ("3_mug/3.png", ""),
        ("3_mug/4.png", ""),
        ("3_mug/metadata.jsonl", r#"{"file_name": "3.png", "text": "own"}"#),
        ("metadata.jsonl", lines),
    ]);
    let found: Vec<_> = examples.iter().map(|(text, n)| (text.as_str(), *n)).collect();
    assert_eq!(found, [("here", 1), ("outer", 3), ("own", 3), ("mug", 3), ("nested", 2)]);
    assert!(skipped.len() == 1 && skipped[0].contains("1 picture is"), "{skipped:?}");

    let line = |name: &str| format!(r#"{{"file_name": "{name}", "text": "x"}}"#);
    let check = |name: &str, needle: &str| {
        let files =
            [("a/0.png", ""), ("0.png", ""), ("0.txt", "x"), ("metadata.jsonl", &*line(name))];
        refused(&files, &["metadata.jsonl, line 1", needle]);
    };
    check("a/1.png", "there is no picture a/1.png");
    check("a", "there is no picture a ");
    check("a/0.png/1.png", "there is no picture");
    check("/a/0.png", "absolute path");
    check("../0.png", "leads out");
    let twice = format!("{}\n{}", line("0.png"), line("./0.png"));
    refused(&[("0.png", ""), ("metadata.jsonl", &twice)], &["line 2", "line 1 names 0.png"]);
}

/// macOS stores `é` as two characters. Lists, captions and masks written elsewhere have one.
#[test]
fn names_match_in_any_normal_form() {
    let (nfd, nfc) = ("cafe\u{301}", "caf\u{e9}");
    for (disk, list) in [(nfd, nfc), (nfc, nfd)] {
        let line = format!(r#"{{"file_name": "{list}.png", "text": "listed"}}"#);
        let below = format!(r#"{{"file_name": "{list}/{list}.png", "text": "below"}}"#);
        let (image, inner) = (format!("{disk}.png"), format!("{disk}/{disk}.png"));
        let lines = format!("{line}\n{below}");
        let files = [(&*image, ""), (&*inner, ""), ("metadata.jsonl", &*lines)];
        assert_eq!(read(&files).0, [("listed".to_owned(), 1), ("below".to_owned(), 1)]);

        let (text, mask) = (format!("{list}.txt"), format!("{list}.mask.png"));
        let files = [(&*image, ""), (&*text, "beside"), (&*mask, "")];
        assert_eq!(read(&files).0, [("beside".to_owned(), 1)]);
        let folder = folder(&files);
        let found = masks::mask_file(&folder.path().join(&image)).unwrap();
        assert!(found.is_file() && found.ends_with(&mask), "{found:?}");
    }
    // Where both forms exist, each has its own line.
    let line = |name: &str| format!(r#"{{"file_name": "{name}.png", "text": "{}"}}"#, name.len());
    let lines = format!("{}\n{}", line(nfc), line(nfd));
    let names = [nfc, nfd].map(|name| format!("{name}.png"));
    let files = [(&*names[0], ""), (&*names[1], ""), ("metadata.jsonl", &*lines)];
    let mut captions: Vec<_> = read(&files).0.into_iter().map(|(caption, _)| caption).collect();
    captions.sort();
    assert_eq!(captions, ["5", "6"]);
}

#[test]
fn absurd_repeats_are_refused() {
    let listed = r#"{"file_name": "a.png", "text": "x", "repeats": 5}"#;
    for name in ["20240115_party", "18446744073709551615_mug", "99999999999999999999999_mug"] {
        let (image, list) = (format!("{name}/a.png"), format!("{name}/metadata.jsonl"));
        refused(&[(&*image, ""), (&*list, listed)], &[name, "repeats"]);
    }
    let listed = r#"{"file_name": "a.png", "text": "x", "repeats": 10000001}"#;
    refused(&[("a.png", ""), ("metadata.jsonl", listed)], &["a.png", "repeats"]);
    let listed = r#"{"file_name": "a.png", "text": "x", "repeats": 10000000}"#;
    assert_eq!(read(&[("a.png", ""), ("metadata.jsonl", listed)]).0[0].1, MAX_SAMPLES);
}

/// kohya's scripts read `.caption` files by default, and Windows saves JPEG files as `.jfif`.
#[test]
fn captions_and_images_of_kohya_and_windows_are_read() {
    let (mut examples, skipped) = read(&[
        ("0.png", ""),
        ("0.caption", "a mug\r\n"),
        ("1.jfif", ""),
        ("1.txt", "a cup"),
        ("1.caption", "another"),
        ("2.JPE", ""),
        ("2.caption", "a bowl"),
    ]);
    examples.sort();
    assert_eq!(examples, ["a bowl", "a cup", "a mug"].map(|caption| (caption.to_owned(), 1)));
    assert!(skipped.is_empty(), "{skipped:?}");
}

#[test]
fn images_and_captions_that_cannot_be_read_are_named() {
    refused(&[("0.avif", ""), ("0.txt", "a mug")], &["no picture that is read", "0.avif"]);
    let (_, skipped) = read(&[("0.png", ""), ("0.txt", "a mug"), ("meta_cap.json", "{}")]);
    assert!(skipped.len() == 1 && skipped[0].contains("meta_cap.json is not read"), "{skipped:?}");
}

/// Listing without reading captions finds what the check of the folder reads.
#[test]
fn a_list_of_images_has_the_captions_of_the_folder_when_they_are_asked_for() {
    let folder = folder(&[
        ("0.png", ""),
        ("0.txt", " beside\n"),
        ("1.png", ""),
        ("1.txt", "beside, and not read"),
        ("2.png", ""),
        (".3.png", ""),
        ("metadata.jsonl", r#"{"file_name": "1.png", "text": "listed", "repeats": 3}"#),
    ]);
    let inside = folder.path().join("10_sks mug");
    std::fs::create_dir(&inside).unwrap();
    for (name, text) in [("4.png", ""), ("4.txt", "inside"), ("5.png", "")] {
        std::fs::write(inside.join(name), text).unwrap();
    }
    let listed = ListedImage::list(folder.path()).unwrap();
    let found: Vec<Example> = listed
        .iter()
        .map(|one| Example {
            image: one.image.clone(),
            caption: one.caption().unwrap(),
            repeats: one.repeats,
        })
        .collect();
    assert_eq!(found, FolderContents::read_for_check(folder.path(), None).unwrap().examples);
    let captions: Vec<_> = found.iter().map(|one| &*one.caption).collect();
    assert_eq!(captions, ["beside", "listed", "", "inside", "sks mug"]);
    // A text file that changed afterwards is read as it is.
    std::fs::write(folder.path().join("0.txt"), "changed").unwrap();
    assert_eq!(listed[0].caption().unwrap(), "changed");
    std::fs::write(folder.path().join("0.txt"), [0x80, 0x81]).unwrap();
    assert!(listed[0].caption().unwrap_err().to_string().contains("0.txt"));
}
