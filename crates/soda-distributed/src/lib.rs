//! Ranks of a data-parallel training: several processes, on one machine or several, that do the same steps.
//!
//! | module | contents |
//! |---|---|
//! | `launch` | [`Launch`]: the place of this process, by the variables of torchrun, Slurm or Open MPI |
//! | `slurm` | the first host of a list of nodes |
//! | `rendezvous` | [`connect`]: the ranks find each other and compare versions |
//! | `hello` | the first message of a rank |
//! | `frame` | messages on a connection, with limits |
//! | `reduce` | [`Reduce`]: sums, broadcasts, gathers and comparisons; [`Alone`] for one process |
//! | `tcp` | [`Tcp`]: all of it over TCP |
//! | `host` | the name of this machine |
//! | `error` | [`LaunchError`], [`DistributedError`] |
//!
//! # Topology
//!
//! Rank 0 has a connection to every other rank. It receives their values, adds them **in the order of the
//! ranks in f64**, and sends the sum back. The bits therefore do not depend on which rank is faster.
//!
//! # Trust
//!
//! Connections are neither encrypted nor signed: use a network that the job's machines share with nobody
//! else. A process that connects must know the token of the job. All lengths are checked before memory is
//! taken for them.
//!
//! # Failures
//!
//! A rank that ends, hangs or differs ends all others with one sentence that names the rank and its host.

mod error;
mod frame;
#[cfg(test)]
mod fuzz;
mod hello;
mod host;
mod launch;
mod reduce;
mod rendezvous;
mod slurm;
mod tcp;

pub use error::{DistributedError, LaunchError};
pub use launch::Launch;
pub use reduce::{Alone, Item, Reduce};
pub use rendezvous::connect;
pub use tcp::Tcp;
