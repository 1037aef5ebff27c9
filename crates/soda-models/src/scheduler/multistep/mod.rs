//! Multistep solvers in the half logarithm of the SNR, `lambda = ln(alpha / sigma)`.

mod deis;
mod dpm_solver;
mod history;
mod plan;
mod unipc;

pub(crate) use deis::Deis;
pub(crate) use dpm_solver::DpmSolver;
pub(crate) use history::History;
pub(crate) use unipc::UniPc;
