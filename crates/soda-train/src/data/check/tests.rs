//! Laws of the check: it finds what was made wrong, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use image::{Rgb, RgbImage, imageops};

use super::*;

/// A picture of waves that differs for each `seed` in its low frequencies.
fn picture(seed: u32, width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let (x, y) = (f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
        let (a, b) = (f64::from(seed % 5) + 1.5, f64::from(seed % 7) + 0.5);
        let wave = (a * 6.0 * x + f64::from(seed)).sin() + (b * 6.0 * y * x).cos();
        Rgb([(64.0 + 60.0 * wave).clamp(0.0, 255.0) as u8, 90, 140])
    })
}

struct Folder(tempfile::TempDir);

impl Folder {
    /// A folder of three pictures with captions that are right.
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for (name, seed) in [("a.png", 1), ("b.png", 2), ("c.png", 8)] {
            picture(seed, 96, 80).save(folder.at(name)).unwrap();
            std::fs::write(folder.at(name).with_extension("txt"), "a sks mug").unwrap();
        }
        folder
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn check(&self, config: &DataCheckConfig<'_>) -> DataCheck {
        DataCheck::new(self.0.path(), config, &mut |_, _| ()).unwrap()
    }

    /// The names of the files and of the findings.
    fn found(&self, config: &DataCheckConfig<'_>) -> Vec<(String, &'static str)> {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let findings = self.check(config).findings;
        findings.iter().map(|finding| (name(&finding.path), finding.kind.name())).collect()
    }
}

const ALL: DataCheckConfig<'_> = DataCheckConfig {
    prompt: None,
    trigger: Some("sks"),
    resolution: Some(64),
    tokenizers: None,
    checked: None,
};

fn named(found: &[(&str, &'static str)]) -> Vec<(String, &'static str)> {
    found.iter().map(|(name, kind)| ((*name).to_owned(), *kind)).collect()
}

#[test]
fn a_good_folder_has_no_findings_and_says_what_was_not_checked() {
    let folder = Folder::new();
    let mut progress = Vec::new();
    let check = DataCheck::new(folder.0.path(), &ALL, &mut |done, all| progress.push((done, all)));
    let check = check.unwrap();
    assert_eq!(check.findings, []);
    assert_eq!(check.unchecked, [Unchecked::CaptionLength]);
    assert!(!check.prevents_training());
    assert_eq!(progress, [(3, 3)]);
    assert!(check.images.iter().all(|image| image.size == Some((96, 80))));
    let nothing = folder.check(&DataCheckConfig::default()).unchecked;
    assert_eq!(nothing, [Unchecked::Resolution, Unchecked::Trigger, Unchecked::CaptionLength]);
}

#[test]
fn each_fault_is_found_by_its_name_and_alone() {
    type Spoil = fn(&Folder);
    let cases: [(Spoil, &[(&str, &'static str)]); 9] = [
        (
            |folder| std::fs::write(folder.at("b.png"), "no picture").unwrap(),
            &[("b.png", "unreadable")],
        ),
        (|folder| picture(2, 63, 200).save(folder.at("b.png")).unwrap(), &[("b.png", "too_small")]),
        (
            |folder| std::fs::write(folder.at("b.txt"), " \n").unwrap(),
            &[("b.png", "empty_caption")],
        ),
        (|folder| std::fs::remove_file(folder.at("b.txt")).unwrap(), &[("b.png", "no_caption")]),
        (|folder| std::fs::write(folder.at("b.txt"), "a mug").unwrap(), &[("b.png", "no_trigger")]),
        (|folder| std::fs::write(folder.at("b.txt"), "a [trigger] MUG").unwrap(), &[]),
        (
            |folder| picture(1, 9, 9).save(folder.at("b.mask.png")).unwrap(),
            &[("b.png", "mask_size")],
        ),
        (
            |folder| picture(1, 9, 9).save(folder.at("x.mask.png")).unwrap(),
            &[("x.mask.png", "mask_without_image")],
        ),
        (
            |folder| {
                std::fs::create_dir(folder.at("masks")).unwrap();
                picture(1, 96, 80).save(folder.at("masks/b.png")).unwrap();
                picture(1, 96, 80).save(folder.at("masks/d.png")).unwrap();
            },
            &[("d.png", "mask_without_image")],
        ),
    ];
    for (spoil, expected) in cases {
        let folder = Folder::new();
        spoil(&folder);
        assert_eq!(folder.found(&ALL), named(expected));
        let check = folder.check(&ALL);
        let refused = crate::Dataset::read(folder.0.path(), None).is_err()
            || expected.iter().any(|(_, kind)| *kind == "unreadable");
        assert_eq!(check.prevents_training(), refused, "{expected:?}");
    }
}

/// A copy in another size, as JPEG, or a little darker is found. A mirror image is another picture.
#[test]
fn near_duplicates_are_found_by_what_they_show() {
    let folder = Folder::new();
    let original = picture(8, 96, 80);
    let darker = RgbImage::from_fn(96, 80, |x, y| {
        Rgb(original.get_pixel(x, y).0.map(|value| (u16::from(value) * 9 / 10) as u8))
    });
    imageops::resize(&original, 70, 64, imageops::FilterType::Triangle)
        .save(folder.at("d.jpg"))
        .unwrap();
    darker.save(folder.at("e.png")).unwrap();
    imageops::flip_horizontal(&original).save(folder.at("f.png")).unwrap();
    for name in ["d.txt", "e.txt", "f.txt"] {
        std::fs::write(folder.at(name), "a sks mug").unwrap();
    }
    let expected = named(&[("d.jpg", "near_duplicate"), ("e.png", "near_duplicate")]);
    assert_eq!(folder.found(&ALL), expected);
    let check = folder.check(&ALL);
    let of = check.findings.iter().map(|finding| match &finding.kind {
        FindingKind::NearDuplicate { of, distance } => (of.clone(), *distance <= 10),
        other => panic!("{other:?}"),
    });
    assert!(of.into_iter().all(|(of, near)| near && of != folder.at("f.png")));
    assert!(!check.prevents_training());
}

#[test]
fn the_distance_of_hashes_decides() {
    let bits = |count: u32| (1_u64 << count) - 1;
    let found = near_duplicates(&[Some(0), None, Some(bits(11)), Some(bits(10)), Some(bits(4))]);
    assert_eq!(found, [None, None, None, Some((2, 1)), Some((0, 4))]);
}

#[test]
fn a_caption_is_measured_by_the_tokenizers_of_the_base() {
    let base = soda_testing::workspace_path("examples/toybox/base");
    let tokenizers = CaptionTokenizers::from_dir(&base).unwrap();
    let caption = |words: usize| vec!["mug"; words].join(" ");
    assert_eq!(tokenizers.excess(""), None);
    let one = |words: usize| tokenizers.excess(&caption(words));
    // The number of tokens that a word has does not matter: the first excess is just above the limit.
    let first = (1..200).find(|words| one(*words).is_some()).unwrap();
    let (tokens, limit) = one(first).unwrap();
    assert!(tokens > limit, "{tokens} of {limit}");
    let pipeline_limit = match &tokenizers {
        CaptionTokenizers::Clip(all) => all[0].max_length() - 2,
        CaptionTokenizers::Qwen(..) => panic!("the toybox has CLIP's tokenizer"),
    };
    assert_eq!(limit, pipeline_limit);
    let folder = Folder::new();
    std::fs::write(folder.at("c.txt"), format!("sks {}", caption(first))).unwrap();
    let config = DataCheckConfig { tokenizers: Some(&tokenizers), ..ALL };
    assert_eq!(folder.found(&config), named(&[("c.png", "caption_too_long")]));
    assert_eq!(folder.check(&config).unchecked, []);
}

/// A check that knows the files finds what one that reads them finds, also after one of them changed.
#[test]
fn files_that_changed_are_read_again_and_others_are_not() {
    let folder = Folder::new();
    let checked = CheckedFiles::default();
    let config = DataCheckConfig { checked: Some(&checked), ..ALL };
    let alike = || {
        let (known, read) = (folder.found(&config), folder.found(&ALL));
        assert_eq!(known, read);
        known
    };
    assert_eq!(alike(), []);
    // Bytes of the same length and time are not looked at.
    let time = std::fs::metadata(folder.at("a.png")).unwrap().modified().unwrap();
    let damaged = vec![0; std::fs::read(folder.at("a.png")).unwrap().len()];
    let good = std::fs::read(folder.at("a.png")).unwrap();
    let write = |bytes: &[u8], time| {
        std::fs::write(folder.at("a.png"), bytes).unwrap();
        std::fs::File::options()
            .write(true)
            .open(folder.at("a.png"))
            .unwrap()
            .set_modified(time)
            .unwrap();
    };
    write(&damaged, time);
    assert_eq!(folder.found(&config), []);
    write(&damaged, time + std::time::Duration::from_secs(1));
    assert_eq!(alike(), named(&[("a.png", "unreadable")]));
    write(&good, time);
    picture(2, 63, 200).save(folder.at("b.png")).unwrap();
    assert_eq!(alike(), named(&[("b.png", "too_small")]));
    // A mask that appears, and one that is replaced.
    image::GrayImage::new(9, 9).save(folder.at("c.mask.png")).unwrap();
    assert_eq!(alike(), named(&[("b.png", "too_small"), ("c.png", "mask_size")]));
    image::GrayImage::new(96, 80).save(folder.at("c.mask.png")).unwrap();
    assert_eq!(alike(), named(&[("b.png", "too_small")]));
}

#[test]
fn the_trigger_of_the_subject_counts_where_none_is_given() {
    let folder = Folder::new();
    std::fs::write(folder.at("subject.json"), r#"{"identifier": "ohwx"}"#).unwrap();
    let config = DataCheckConfig { trigger: None, ..ALL };
    let expected = ["a.png", "b.png", "c.png"].map(|name| (name.to_owned(), "no_trigger"));
    assert_eq!(folder.found(&config), expected);
    assert_eq!(folder.found(&ALL), []);
}

#[test]
fn a_folder_that_cannot_be_read_is_an_error() {
    let check = |folder: &Path| {
        let check = DataCheck::new(folder, &DataCheckConfig::default(), &mut |_, _| ());
        check.unwrap_err().to_string()
    };
    assert!(check(Path::new("/nowhere")).contains("there is no data folder"));
    let folder = Folder::new();
    std::fs::write(folder.at("metadata.jsonl"), "{").unwrap();
    assert!(check(folder.0.path()).contains("metadata.jsonl, line 1"));
    assert!(check(tempfile::tempdir().unwrap().path()).contains("holds no picture"));
}
