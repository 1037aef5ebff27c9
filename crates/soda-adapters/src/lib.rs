//! Parameter-efficient adapters for any burn module.
//!
//! A [`Method`] turns each targeted weight into a frozen base plus a few trainable numbers. It knows no
//! network, no optimizer and no trainer: weights are found by path ([`Targets`]), read as matrices
//! ([`Weight`]; linear layers and convolutions), attached through burn's reparameterizations (no layer
//! code changes), and told apart by [`Geometry`].
//!
//! | method | effective weight | paper | module |
//! |---|---|---|---|
//! | SODA-SVD | `U diag(relu(s + δ)) Vᵀ Rᵀ`, `R = R1 ⊗ … ⊗ Rm` | arXiv 2405.21050 | [`soda`] |
//! | SODA-QR | `(T + ΔT)ᵀ Qᵀ Rᵀ` | the same | [`soda`] |
//! | SVDiff | `U diag(relu(s + δ)) Vᵀ` | arXiv 2303.11305 | [`soda`] without rotation |
//! | Kronecker rotation | `W0 Rᵀ` | | [`soda`] without spectrum |
//! | LoRA, PiSSA | `W0 + s B A` | arXiv 2106.09685, 2404.02948 | [`lora`] |
//! | DoRA | `m (W0 + s B A) / ‖W0 + s B A‖` | arXiv 2402.09353 | [`dora`] |
//! | LoHa | `W0 + s (W1a W1b) ∘ (W2a W2b)` | arXiv 2108.06098 | [`loha`] |
//! | LoKr | `W0 + s W1 ⊗ W2` | arXiv 2212.10650 | [`lokr`] |
//! | OFT, COFT | `W0 Rᵀ`, `R` block-diagonal | arXiv 2306.07280, 2506.19847 | [`oft`] |
//! | BOFT | `diag(s) W0 (B_m … B_1)ᵀ` | arXiv 2311.06243 | [`boft`] |
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
//! let plan = SodaConfig::default().plan(&Targets(vec![r"to_q\.weight$".into()]), &net)?; // the step that can fail
//! let net = plan.attach(net).train();                                          // now train it
//! let merged = net.valid().materialize();                                      // plain weights again
//! # let _ = merged;
//! # Ok::<(), soda_adapters::AdapterError>(())
//! ```

mod adaptation;
mod attach;
pub mod blocks;
pub mod boft;
mod component;
mod cost;
pub mod dora;
mod error;
mod file;
mod fingerprint;
mod fold;
pub mod full;
mod init;
pub mod interop;
mod leaf;
pub mod loha;
pub mod lokr;
pub mod lora;
pub mod merge;
mod method;
pub mod oft;
mod prepare;
pub mod soda;
mod table;
mod target;
mod tensors;

pub use adaptation::{Adaptation, Recipe};
pub use attach::{Attached, Plan, attach_all, detach, without_adapters};
pub use component::Component;
pub use error::AdapterError;
pub use file::{AdapterFile, Header, WordVectors};
pub use fingerprint::fingerprint;
pub use fold::Weight;
pub use leaf::{Leaf, leaves, map_leaves};
pub use method::{Adapter, Geometry, Method};
pub use soda_linalg::{LinalgError, SvdCache};
pub use table::{AnyAdapter, METHOD_PRESETS, MethodConfig};
pub use target::{PRESETS, Preset, Targets};
