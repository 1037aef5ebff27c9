//! The examples of the crates' READMEs, as documentation tests: each crate is used from outside.

/// The examples of one README.
macro_rules! readme {
    ($name:ident, $path:literal) => {
        #[doc = include_str!($path)]
        pub mod $name {}
    };
}

readme!(kernels, "../crates/soda-kernels/README.md");
readme!(linalg, "../crates/soda-linalg/README.md");
readme!(optim, "../crates/soda-optim/README.md");
readme!(models, "../crates/soda-models/README.md");
readme!(adapters, "../crates/soda-adapters/README.md");
readme!(pipeline, "../crates/soda-pipeline/README.md");
readme!(train, "../crates/soda-train/README.md");
readme!(compare, "../crates/soda-compare/README.md");
readme!(hub, "../crates/soda-hub/README.md");
readme!(testing, "../crates/soda-testing/README.md");
