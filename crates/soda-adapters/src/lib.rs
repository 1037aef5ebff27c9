//! Parameter-efficient adapters for any burn module.
//!
//! A [`Method`] turns each targeted weight into a frozen base plus a few trainable numbers. It knows no
//! network, no optimizer and no trainer: weights are found by path ([`Targets`]), attached through
//! burn's reparameterizations (no layer code changes), and told apart by [`Geometry`].
//!
//! | method | effective weight | paper | module |
//! |---|---|---|---|
//! | SODA-SVD | `U diag(relu(s + δ)) Vᵀ Rᵀ`, `R = R1 ⊗ … ⊗ Rm` | arXiv 2405.21050 | [`soda`] |
//! | SVDiff | `U diag(relu(s + δ)) Vᵀ` | arXiv 2303.11305 | [`soda`] without rotation |
//! | Kronecker rotation | `W0 Rᵀ` | | [`soda`] without spectrum |
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

mod error;
mod file;
mod fingerprint;
mod leaf;
mod method;
pub mod soda;
mod target;

pub use error::AdapterError;
pub use file::{AdapterFile, Header};
pub use fingerprint::fingerprint;
pub use leaf::{Leaf, leaves, map_leaves};
pub use method::{Geometry, Method, Plan};
pub use target::{PRESETS, Targets};
