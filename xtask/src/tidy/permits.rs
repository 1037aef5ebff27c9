//! Which files may name faer, hold `unsafe`, write to disk, name a backend or print.

use super::rust::{code, is_library, without_tests};
use super::{Faults, tree::Tree};

/// Words that only some places may hold.
struct Permit {
    /// The words, as they stand in code.
    words: &'static [&'static str],
    /// Beginnings of paths that may hold one.
    places: &'static [&'static str],
    /// The rule, for the message.
    rule: &'static str,
}

const PERMITS: &[Permit] = &[
    Permit {
        words: &["faer::"],
        places: &["crates/soda-kernels/src/cpu/", "crates/soda-linalg/src/host/"],
        rule: "only soda-kernels' CPU code and soda-linalg's host code use faer",
    },
    Permit {
        words: &["unsafe "],
        places: &["crates/soda-kernels/src/cuda/"],
        rule: "`unsafe` stands in soda-kernels' CUDA code only",
    },
    Permit {
        words: &[
            "fs::write(",
            "File::create",
            "fs::rename(",
            "fs::copy(",
            "OpenOptions",
            "NamedTempFile",
            "create_dir",
            "fs::remove_",
        ],
        places: &[
            "crates/soda-files/src/",
            "crates/soda-hub/src/cache/",
            "crates/soda-linalg/src/svd/cache_file.rs",
            "crates/soda-models/src/pipeline/json.rs",
            "crates/soda-models/src/pipeline/save.rs",
            "crates/soda-models/src/weights/write.rs",
            "crates/soda-pipeline/src/interop/",
            "crates/soda-train/src/output/",
            "crates/soda-compare/src/results/file.rs",
            "crates/soda-ui/src/jobs/",
            "crates/soda-cli/src/command/",
            "crates/soda-cli/src/memory_meter.rs",
        ],
        rule: "files are written in the places that ARCHITECTURE.md lists",
    },
    Permit {
        words: &["fs::read(", "fs::read_to_string(", "File::open(", "image::open("],
        places: &[
            "crates/soda-cli/src/memory_meter.rs",
            "crates/soda-distributed/src/host.rs",
            "crates/soda-files/src/",
            "crates/soda-hub/src/",
            "crates/soda-linalg/src/svd/cache_file.rs",
            "crates/soda-models/src/input_file.rs",
            "crates/soda-testing/src/watch.rs",
        ],
        rule: "files from outside are read by soda_models::input_file, which checks kind and size",
    },
    Permit {
        words: &["Device::flex", "Device::wgpu", "Device::cuda", "Device::ndarray"],
        places: &["crates/soda-cli/src/"],
        rule: "only soda-cli chooses a backend",
    },
    Permit {
        words: &["burn_cubecl", "cubecl_cuda", "cubecl_server", "cudarc", "backend::Flex"],
        places: &["crates/soda-kernels/src/", "crates/soda-linalg/src/backend/"],
        rule: "only soda-kernels and soda-linalg's backend code name the types of a backend",
    },
    Permit {
        words: &["println!", "eprintln!", "print!("],
        places: &["crates/soda-cli/src/"],
        rule: "libraries print nothing; progress is an `Event`",
    },
    Permit {
        words: &[".matmul("],
        places: &["crates/soda-kernels/src/"],
        rule: "products are soda_kernels::matmul, because burn's round to TF32 on some GPUs",
    },
    Permit { words: &["todo!(", "unimplemented!("], places: &[], rule: "no stubs" },
];

/// The document that lists all places.
const DOCUMENT: &str = "docs/ARCHITECTURE.md";

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
    check_document(tree, faults);
    for (path, text) in tree.with_extension("rs").filter(|(path, _)| is_library(path)) {
        let code = without_tests(&code(text));
        for permit in PERMITS {
            if permit.places.iter().any(|place| path.starts_with(place)) {
                continue;
            }
            for word in permit.words.iter().filter(|word| contains_word(&code, word)) {
                faults.push(format!("{path}: has `{}`: {}", word.trim(), permit.rule));
            }
        }
    }
}

/// Adds places that do not exist, and those that the document does not list.
fn check_document(tree: &Tree, faults: &mut Faults) {
    let Some(text) = tree.text(DOCUMENT) else { return };
    for place in PERMITS.iter().flat_map(|permit| permit.places) {
        if !tree.has(place) {
            faults.push(format!("{place}: has a permit and does not exist"));
        }
        if !text.contains(place.trim_end_matches('/')) {
            faults.push(format!("{DOCUMENT}: does not list {place}, which has a permit"));
        }
    }
}

/// Whether `code` holds `word`, not as the end of a longer name.
fn contains_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        !code[..at].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::super::faults_of;

    fn count(path: &str, text: &str) -> usize {
        faults_of(super::check, &[(path, text)]).len()
    }

    #[test]
    fn words_outside_their_places_are_faults() {
        let train = "crates/soda-train/src/lib.rs";
        for text in [
            "use faer::Mat;",
            "fn f() { unsafe { g() } }",
            "fn f() { std::fs::write(a, b) }",
            "fn f() { File::create_new(a) }",
            "fn f() { std::fs::read(a) }",
            "fn f() { File::open(a) }",
            "fn f() { Device::cuda(0) }",
            "use cudarc::driver;",
            "fn f() { println!() }",
            "fn f() { todo!() }",
        ] {
            assert_eq!(count(train, text), 1, "{text}");
        }
    }

    #[test]
    fn a_place_that_is_gone_or_not_listed_is_a_fault() {
        let files = [("docs/ARCHITECTURE.md", "`crates/soda-linalg/src/host`")];
        let faults = faults_of(super::check, &files);
        assert!(
            faults
                .iter()
                .any(|fault| fault.starts_with("crates/soda-linalg/src/host/: has a permit"))
        );
        assert!(
            !faults
                .iter()
                .any(|fault| fault.contains("does not list crates/soda-linalg/src/host/,"))
        );
        assert!(faults.iter().any(|fault| fault.contains("does not list crates/soda-cli/src/")));
    }

    #[test]
    fn words_in_their_places_in_comments_and_in_tests_are_none() {
        assert_eq!(count("crates/soda-linalg/src/host/qr.rs", "use faer::Mat;"), 0);
        assert_eq!(count("crates/soda-train/src/lib.rs", "// faer::Mat\n"), 0);
        let test = "#[cfg(test)]\nmod tests { fn f() { fs::write(a, b) } }";
        assert_eq!(count("crates/soda-train/src/lib.rs", test), 0);
        assert_eq!(count("crates/soda-train/tests/a.rs", "fn f() { fs::write(a, b) }"), 0);
    }
}
