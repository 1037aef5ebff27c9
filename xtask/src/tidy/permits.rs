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
        places: &["crates/soda-kernels/src/cpu/", "crates/soda-linalg/src/"],
        rule: "only soda-kernels' CPU code and soda-linalg use faer",
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
            "crates/soda-linalg/src/cache",
            "crates/soda-models/src/pipeline/json.rs",
            "crates/soda-models/src/pipeline/save.rs",
            "crates/soda-models/src/weights/write.rs",
            "crates/soda-adapters/src/state.rs",
            "crates/soda-pipeline/src/interop/",
            "crates/soda-train/src/data/cache.rs",
            "crates/soda-train/src/data/prior.rs",
            "crates/soda-train/src/eval/sampling.rs",
            "crates/soda-train/src/output/",
            "crates/soda-train/src/run/checkpoint.rs",
            "crates/soda-compare/src/results/",
            "crates/soda-cli/src/",
        ],
        rule: "files are written in the places that ARCHITECTURE.md lists",
    },
    Permit {
        words: &["Device::flex", "Device::wgpu", "Device::cuda", "Device::ndarray"],
        places: &["crates/soda-cli/src/"],
        rule: "only soda-cli chooses a backend",
    },
    Permit {
        words: &["burn_cubecl", "cubecl_cuda", "cubecl_server", "cudarc", "backend::Flex"],
        places: &["crates/soda-kernels/src/", "crates/soda-linalg/src/"],
        rule: "only soda-kernels and soda-linalg name the types of a backend",
    },
    Permit {
        words: &["println!", "eprintln!", "print!("],
        places: &["crates/soda-cli/src/"],
        rule: "libraries print nothing; progress is an `Event`",
    },
    Permit { words: &["todo!(", "unimplemented!("], places: &[], rule: "no stubs" },
];

pub(crate) fn check(tree: &Tree, faults: &mut Faults) {
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
            "fn f() { Device::cuda(0) }",
            "use cudarc::driver;",
            "fn f() { println!() }",
            "fn f() { todo!() }",
        ] {
            assert_eq!(count(train, text), 1, "{text}");
        }
    }

    #[test]
    fn words_in_their_places_in_comments_and_in_tests_are_none() {
        assert_eq!(count("crates/soda-linalg/src/qr.rs", "use faer::Mat;"), 0);
        assert_eq!(count("crates/soda-train/src/lib.rs", "// faer::Mat\n"), 0);
        let test = "#[cfg(test)]\nmod tests { fn f() { fs::write(a, b) } }";
        assert_eq!(count("crates/soda-train/src/lib.rs", test), 0);
        assert_eq!(count("crates/soda-train/tests/a.rs", "fn f() { fs::write(a, b) }"), 0);
    }
}
