//! Parameter-efficient adapters for any burn module.
//!
//! A [`Method`] turns each selected weight into a frozen base and a few trainable values. The crate knows no
//! network, no optimizer and no trainer. Four steps use it:
//!
//! 1. [`Targets`] select weights by path, and each is read as a matrix ([`Weight`]; linear layers and
//!    convolutions).
//! 2. [`Method::plan`] makes an adapter for each weight. Only this step can fail.
//! 3. [`Plan::attach`] attaches the adapters as burn reparameterizations, without a change of any layer.
//! 4. [`AdapterState::capture`] copies the trained tensors; `materialize` of burn replaces the weights by
//!    adapted ones.
//!
//! [`Geometry`] tells an optimizer which tensors are rotations. The crate `soda-pipeline` has adapter files
//! and the formats of other tools.
//!
//! | method | effective weight | paper | module |
//! |---|---|---|---|
//! | SODA-SVD | `U diag(relu(s + δ)) Vᵀ Rᵀ`, `R = R1 ⊗ … ⊗ Rm` | arXiv 2405.21050 | [`soda`] |
//! | SODA-QR | `(T + ΔT)ᵀ Qᵀ Rᵀ` | arXiv 2405.21050 | [`soda`] |
//! | SVDiff | `U diag(relu(s + δ)) Vᵀ` | arXiv 2303.11305 | [`soda`] without rotation |
//! | Kronecker rotation | `W0 Rᵀ` | | [`soda`] without spectrum |
//! | LoRA, PiSSA | `W0 + s B A` | arXiv 2106.09685, 2404.02948 | [`lora`] |
//! | DoRA | `m (W0 + s B A) / ‖W0 + s B A‖` | arXiv 2402.09353 | [`dora`] |
//! | LoHa | `W0 + s (W1a W1b) ∘ (W2a W2b)` | arXiv 2108.06098 | [`loha`] |
//! | LoKr | `W0 + s W1 ⊗ W2` | arXiv 2212.10650 | [`lokr`] |
//! | OFT, COFT | `W0 Rᵀ`, `R` block-diagonal | arXiv 2306.07280, 2506.19847 | [`oft`] |
//! | BOFT | `diag(s) W0 (B_m … B_1)ᵀ` | arXiv 2311.06243 | [`boft`] |
//! | GSOFT | `diag(c) W0 Rᵀ`, `R` of two block-diagonal levels and a shuffle | arXiv 2406.10019 | [`soda`] |
//! | PSOFT | `W0 (I + Q (diag(a) R diag(b) - I) Qᵀ)` | arXiv 2505.11235 | [`soda`] |
//! | HRA | `W0 H_1 ⋯ H_r` | arXiv 2405.17484 | [`soda`] |
//! | full fine-tuning | `W0 + Δ` | | [`full`] |
//!
//! ```
//! use burn::{module::Module, nn::{Linear, LinearConfig}, tensor::Device};
//! use soda_adapters::{Method, Targets, soda::SodaConfig};
//!
//! #[derive(Module, Debug)]
//! struct Net { to_q: Linear }
//!
//! let net = Net { to_q: LinearConfig::new(12, 8).init(&Device::default()) };
//! let plan = SodaConfig::default().plan(&Targets(vec![r"to_q\.weight$".into()]), &net)?;
//! let net = plan.attach(net).train();          // train it with any optimizer that knows `Geometry`
//! let merged = net.valid().materialize();      // a network with plain weights
//! # let _ = merged;
//! # Ok::<(), soda_adapters::AdapterError>(())
//! ```

mod adapter;
mod attached;
mod base_weight;
mod directions;
mod error;
mod fingerprint;
mod fuse;
mod method;
mod methods;
mod named_params;
mod path_pattern;
mod plan;
mod probe;
mod rotation_merge;
mod seeded_init;
mod state;
mod targets;
mod weight;

pub use adapter::Adapter;
pub use attached::{Attached, attach_all, detach, for_inference, without_adapters};
pub use base_weight::BaseWeight;
pub use directions::{Calibration, CalibrationRequest};
pub use error::{AdapterError, StateError, TargetError};
pub use fingerprint::fingerprint;
pub use fuse::fuse_all;
pub use method::{Geometry, Method};
pub use methods::{
    AnyAdapter, BlockRotation, CayleyForm, METHOD_PRESETS, MethodConfig, MethodPreset,
    TimestepMask, boft, dora, full, loha, lokr, lora, oft, soda,
};
pub use named_params::{NamedParam, map_params, named_params, read_params};
pub use plan::{DivideDecompositions, Plan, PlanOptions};
pub use probe::Probe;
pub use rotation_merge::MergeRule;
pub use state::{AdapterState, Recipe};
pub use targets::{TargetPreset, Targets};
pub use weight::Weight;

/// Names that the expansion of [`methods!`] needs in another crate.
#[doc(hidden)]
pub mod macro_support {
    pub use soda_linalg::LinalgError;
}
