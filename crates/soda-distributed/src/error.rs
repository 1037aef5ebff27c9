//! Errors. Each is one sentence that names the rank, its host or the variable.

use std::io;

/// Variables of the environment that do not say which rank this process is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// Some variables of a convention are set and others are not.
    #[error("{set} is set and {missing} is not: set all of them, as {launcher} does, or none")]
    HalfSet {
        /// A variable that is set.
        set: &'static str,
        /// The variables that are missing, joined by `, `.
        missing: String,
        /// The program that sets all of them.
        launcher: &'static str,
    },
    /// A variable is not a number of its range.
    #[error("the variable {name} is `{}`: give {range}", .value.escape_debug())]
    Range {
        /// The variable.
        name: &'static str,
        /// Its value, at most some dozen characters of it.
        value: String,
        /// What is allowed.
        range: String,
    },
    /// The operating system gives no random bytes for a token.
    #[error("cannot make a token for the ranks: {0}")]
    Random(String),
}

/// Why the ranks of a training cannot meet, or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DistributedError {
    /// Rank 0 cannot listen on its address.
    #[error(
        "rank 0 cannot listen on {address}: {source}; {}",
        match source.kind() {
            io::ErrorKind::AddrInUse => "another program uses the port, give another MASTER_PORT",
            _ => "MASTER_ADDR must be an address of the machine of rank 0",
        }
    )]
    Listen {
        /// Host and port.
        address: String,
        /// The reason of the operating system.
        source: io::Error,
    },
    /// The name of the host of rank 0 has no address.
    #[error("MASTER_ADDR is `{}`, which has no address: {source}", .name.escape_debug())]
    Resolve {
        /// The value of `MASTER_ADDR`.
        name: String,
        /// The reason of the operating system.
        source: io::Error,
    },
    /// Nobody answers at the address of rank 0.
    #[error(
        "rank {rank} on {host} found no rank 0 at {address} within {seconds} s ({reason}); check MASTER_ADDR and \
         MASTER_PORT, and that rank 0 runs"
    )]
    Unreachable {
        /// This rank.
        rank: usize,
        /// This host.
        host: String,
        /// Host and port.
        address: String,
        /// The time that was waited.
        seconds: u64,
        /// The reason of the operating system.
        reason: String,
    },
    /// Ranks that have not connected.
    #[error(
        "rank {ranks} did not connect to rank 0 on {host} ({address}) within {seconds} s{refused}; start all ranks \
         with one MASTER_ADDR and MASTER_PORT"
    )]
    Missing {
        /// The ranks, joined by `, `.
        ranks: String,
        /// The host of rank 0.
        host: String,
        /// Host and port.
        address: String,
        /// The time that was waited.
        seconds: u64,
        /// What came instead.
        refused: String,
    },
    /// Rank 0 refused this rank, or a rank does not fit the others.
    #[error("{0}")]
    Refused(String),
    /// The connection to a rank has ended.
    #[error("rank {rank} on {host} has gone: its process ended or was killed")]
    Gone {
        /// The rank.
        rank: usize,
        /// Its host.
        host: String,
    },
    /// A rank has not answered in time.
    #[error(
        "rank {rank} on {host} has not answered for {seconds} s: it hangs, or its machine or network is down"
    )]
    Silent {
        /// The rank.
        rank: usize,
        /// Its host.
        host: String,
        /// The time that was waited.
        seconds: u64,
    },
    /// A rank sent something else than the others.
    #[error(
        "rank {rank} on {host} sent an unexpected message; start all ranks with the same command"
    )]
    Protocol {
        /// The rank.
        rank: usize,
        /// Its host.
        host: String,
    },
    /// A rank sent bytes that are damaged, or that belong to another training.
    #[error(
        "rank {rank} on {host} sent {what} that cannot be used here; give all ranks one base model, one data \
         folder and one build of soda"
    )]
    Foreign {
        /// The rank.
        rank: usize,
        /// Its host.
        host: String,
        /// What the bytes should be.
        what: String,
    },
    /// A connection failed in another way.
    #[error("the connection to rank {rank} on {host} failed: {source}")]
    Connection {
        /// The rank.
        rank: usize,
        /// Its host.
        host: String,
        /// The reason of the operating system.
        source: io::Error,
    },
    /// A rank has another value than rank 0.
    #[error("rank {rank} on {host} differs from rank 0 in {what}")]
    Differs {
        /// The rank.
        rank: usize,
        /// Its host.
        host: String,
        /// What differs, and what to do.
        what: String,
    },
    /// Another rank ended the training, with this sentence.
    #[error("{0}")]
    Ended(String),
}
