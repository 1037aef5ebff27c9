//! The place of this process among the ranks, by the variables of a launcher.
//!
//! | launcher | rank | ranks | of its machine |
//! |---|---|---|---|
//! | torchrun | `RANK` | `WORLD_SIZE` | `LOCAL_RANK` |
//! | Slurm | `SLURM_PROCID` | `SLURM_STEP_NUM_TASKS` | `SLURM_LOCALID` |
//! | Open MPI | `OMPI_COMM_WORLD_RANK` | `OMPI_COMM_WORLD_SIZE` | `OMPI_.._LOCAL_RANK` |
//!
//! Rank 0 listens on `MASTER_ADDR` and `MASTER_PORT`. Without them it is on the first host of Slurm's step,
//! or on this machine if Open MPI's ranks all are.
//!
//! The first convention that is set counts. Slurm sets `SLURM_NTASKS` and `SLURM_PROCID` in a batch script as
//! well, which is one process; only `srun` sets `SLURM_STEP_NUM_TASKS`.

use crate::error::LaunchError;
use crate::slurm::first_host;

/// The most ranks. Rank 0 has a connection to each of the others.
const MOST_RANKS: usize = 4096;

/// The port of rank 0 where none is given: that of torchrun.
const PORT: u16 = 29500;

/// The variable of the token, which every rank must have alike.
const TOKEN: &str = "SODA_JOB_TOKEN";

/// The place of a process among the ranks of a training.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// This rank, from 0.
    pub rank: usize,
    /// The number of ranks, at least 2.
    pub world: usize,
    /// This rank among those of its machine, from 0.
    pub local_rank: usize,
    /// The name or address of the host of rank 0.
    pub address: String,
    /// The port that rank 0 listens on.
    pub port: u16,
    /// What a process must know to take part.
    pub token: String,
}

/// The variables of a convention.
struct Convention {
    launcher: &'static str,
    rank: &'static str,
    world: &'static str,
    local_rank: &'static str,
}

const TORCHRUN: Convention = Convention {
    launcher: "torchrun",
    rank: "RANK",
    world: "WORLD_SIZE",
    local_rank: "LOCAL_RANK",
};
const SLURM: Convention = Convention {
    launcher: "srun",
    rank: "SLURM_PROCID",
    world: "SLURM_STEP_NUM_TASKS",
    local_rank: "SLURM_LOCALID",
};
const OPEN_MPI: Convention = Convention {
    launcher: "mpirun",
    rank: "OMPI_COMM_WORLD_RANK",
    world: "OMPI_COMM_WORLD_SIZE",
    local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
};

const ADDRESS: &str = "MASTER_ADDR";
const MASTER_PORT: &str = "MASTER_PORT";

impl Launch {
    /// The variables that make a process a rank. A process that is none must not inherit them.
    pub const VARIABLES: [&str; 6] =
        ["RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", TOKEN];

    /// Reads the place of this process from variables. `None` for a training of one process.
    ///
    /// # Errors
    /// Variables of which some are missing, or that are no numbers of their range.
    pub fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, LaunchError> {
        // An empty variable is how shells and job files leave one out.
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let is_set = |name: &str| variable(name).is_some();
        let Convention { rank, world, local_rank, .. } = TORCHRUN;
        if [rank, world, local_rank].iter().any(|name| is_set(name)) {
            return Self::read(&TORCHRUN, &variable);
        }
        let is_step = is_set(SLURM.world) && is_set(SLURM.rank);
        for convention in [is_step.then_some(&SLURM), is_set(OPEN_MPI.world).then_some(&OPEN_MPI)] {
            let launch = convention.map(|convention| Self::read(convention, &variable));
            if let Some(launch) = launch.transpose()?.flatten() {
                return Ok(Some(launch));
            }
        }
        Ok(None)
    }

    /// The place of rank `rank` of `world` on this machine, for a process that starts all of them.
    pub fn local(rank: usize, world: usize, port: u16, token: &str) -> Self {
        let (address, token) = ("127.0.0.1".to_owned(), token.to_owned());
        Self { rank, world, local_rank: rank, address, port, token }
    }

    /// A token of 128 random bits.
    ///
    /// # Errors
    /// The operating system gives no random bytes.
    pub fn random_token() -> Result<String, LaunchError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| LaunchError::Random(error.to_string()))?;
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The variables from which [`Launch::from_variables`] reads this place.
    pub fn variables(&self) -> [(&'static str, String); 6] {
        [
            (TORCHRUN.rank, self.rank.to_string()),
            (TORCHRUN.world, self.world.to_string()),
            (TORCHRUN.local_rank, self.local_rank.to_string()),
            (ADDRESS, self.address.clone()),
            (MASTER_PORT, self.port.to_string()),
            (TOKEN, self.token.clone()),
        ]
    }

    fn read(
        convention: &Convention,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, LaunchError> {
        let Convention { launcher, rank, world, local_rank } = *convention;
        let address = variable(ADDRESS).or_else(|| default_address(convention, variable));
        let port = variable(MASTER_PORT).or_else(|| default_port(convention, variable));
        let found = [
            (rank, variable(rank)),
            (world, variable(world)),
            (local_rank, variable(local_rank)),
            (ADDRESS, address.clone()),
            (MASTER_PORT, port.clone()),
        ];
        let missing: Vec<_> = found.iter().filter(|(_, value)| value.is_none()).collect();
        // A step of one task needs no address.
        let is_alone = launcher != TORCHRUN.launcher
            && found[1].1.as_deref().is_some_and(|world| world.trim() == "1");
        if !missing.is_empty() && !is_alone {
            let set = found.iter().find(|(_, value)| value.is_some()).map_or(rank, |(set, _)| *set);
            let missing: Vec<_> = missing.into_iter().map(|(name, _)| *name).collect();
            return Err(LaunchError::HalfSet { set, missing: missing.join(", "), launcher });
        }
        let [rank_text, world_text, local_text, address, port] =
            found.map(|(_, value)| value.unwrap_or_default());
        let world = number(world, &world_text, 1, MOST_RANKS)?;
        if world == 1 {
            return Ok(None);
        }
        let name = address.trim();
        if name.len() > 255 || name.contains(|c: char| c.is_control() || c.is_whitespace()) {
            let range = "the name or address of the host of rank 0".to_owned();
            return Err(LaunchError::Range { name: ADDRESS, value: cut(name), range });
        }
        Ok(Some(Self {
            rank: number(rank, &rank_text, 0, world - 1)?,
            world,
            local_rank: number(local_rank, &local_text, 0, world - 1)?,
            address: name.to_owned(),
            port: number(MASTER_PORT, &port, 1, usize::from(u16::MAX))? as u16,
            token: variable(TOKEN).or_else(|| job(convention, variable)).unwrap_or_default(),
        }))
    }
}

/// The address of rank 0 where the launcher says it in another way than by `MASTER_ADDR`.
fn default_address(
    convention: &Convention,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Option<String> {
    match convention.launcher {
        "srun" => ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"]
            .iter()
            .find_map(|name| first_host(&variable(name)?)),
        "mpirun" => {
            let here = variable("OMPI_COMM_WORLD_LOCAL_SIZE")?;
            (here == variable(convention.world)?).then(|| "127.0.0.1".to_owned())
        }
        _ => None,
    }
}

/// The port of rank 0 without `MASTER_PORT`. Jobs of Slurm that share a machine have different ones.
fn default_port(
    convention: &Convention,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Option<String> {
    match convention.launcher {
        "srun" => {
            let job: u64 = variable("SLURM_JOB_ID")?.trim().parse().ok()?;
            Some((15_000 + job % 15_000).to_string())
        }
        "mpirun" => Some(PORT.to_string()),
        _ => None,
    }
}

/// What the launcher calls the job, which keeps ranks of two jobs apart. It is no secret.
fn job(convention: &Convention, variable: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    match convention.launcher {
        "srun" => Some(format!(
            "{}.{}",
            variable("SLURM_JOB_ID")?,
            variable("SLURM_STEP_ID").unwrap_or_default()
        )),
        "mpirun" => variable("PMIX_NAMESPACE"),
        _ => variable("TORCHELASTIC_RUN_ID"),
    }
}

fn number(name: &'static str, text: &str, least: usize, most: usize) -> Result<usize, LaunchError> {
    let number = text.trim().parse::<usize>().ok().filter(|n| (least..=most).contains(n));
    number.ok_or_else(|| LaunchError::Range {
        name,
        value: cut(text),
        range: format!("a number from {least} to {most}"),
    })
}

/// The beginning of a value, for a message.
fn cut(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Launch>, String> {
        let find = |name: &str| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Launch::from_variables(find).map_err(|error| error.to_string())
    }

    const ALL: [(&str, &str); 5] = [
        ("RANK", "1"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "gpu1"),
        ("MASTER_PORT", "2222"),
    ];

    #[test]
    fn the_variables_of_torchrun() {
        let launch = read(&ALL).unwrap().unwrap();
        assert_eq!((launch.rank, launch.world, launch.local_rank), (1, 4, 1));
        assert_eq!((&*launch.address, launch.port, &*launch.token), ("gpu1", 2222, ""));
        let variables = launch.variables();
        let again: Vec<_> = variables.iter().map(|(name, value)| (*name, &**value)).collect();
        assert_eq!(read(&again).unwrap().unwrap(), launch);
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("MASTER_ADDR", "gpu1"), ("RANK", "")]), Ok(None));
        let alone = ALL.map(|(name, value)| if value == "4" { (name, "1") } else { (name, value) });
        assert_eq!(read(&alone), Ok(None));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (missing, _) in ALL {
            let some: Vec<_> = ALL.into_iter().filter(|(name, _)| *name != missing).collect();
            let message = read(&some).unwrap_err();
            assert!(message.contains(&format!("and {missing} is not")), "{message}");
        }
        let message = read(&[("WORLD_SIZE", "2")]).unwrap_err();
        assert!(message.contains("RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT"), "{message}");
    }

    #[test]
    fn numbers_are_in_their_ranges() {
        for (name, value) in [
            ("RANK", "4"),
            ("RANK", "-1"),
            ("RANK", "one"),
            ("WORLD_SIZE", "0"),
            ("WORLD_SIZE", "5000"),
            ("WORLD_SIZE", "99999999999999999999999"),
            ("LOCAL_RANK", "4"),
            ("MASTER_PORT", "0"),
            ("MASTER_PORT", "65536"),
            ("MASTER_ADDR", "a b"),
        ] {
            let wrong = ALL.map(|(other, old)| (other, if other == name { value } else { old }));
            let message = read(&wrong).unwrap_err();
            assert!(message.contains(name) && message.contains(value), "{message}");
        }
    }

    #[test]
    fn the_variables_of_slurm() {
        let step = [
            ("SLURM_PROCID", "3"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_LOCALID", "3"),
            ("SLURM_JOB_ID", "123456"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_STEP_NODELIST", "node[07-08]"),
        ];
        let launch = read(&step).unwrap().unwrap();
        assert_eq!((launch.rank, launch.world, launch.local_rank), (3, 8, 3));
        assert_eq!((&*launch.address, &*launch.token), ("node07", "123456.0"));
        assert_eq!(launch.port, 15_000 + (123_456 % 15_000_u32) as u16);
        let batch = [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_LOCALID", "0")];
        assert_eq!(read(&batch), Ok(None));
        assert_eq!(read(&[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")]), Ok(None));
        let message = read(&[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "2")]).unwrap_err();
        assert!(message.contains("SLURM_LOCALID") && message.contains("srun"), "{message}");
        // torchrun inside a job of Slurm.
        let both = [&ALL[..], &step].concat();
        assert_eq!(read(&both).unwrap().unwrap().world, 4);
    }

    #[test]
    fn the_variables_of_open_mpi() {
        let here = [
            ("OMPI_COMM_WORLD_RANK", "1"),
            ("OMPI_COMM_WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        let launch = read(&here).unwrap().unwrap();
        assert_eq!((launch.rank, &*launch.address, launch.port), (1, "127.0.0.1", 29500));
        let message = read(&here[..3]).unwrap_err();
        assert!(message.contains("MASTER_ADDR is not"), "{message}");
    }

    #[test]
    fn tokens_differ() {
        let token = Launch::random_token().unwrap();
        assert_eq!(token.len(), 32);
        assert_ne!(token, Launch::random_token().unwrap());
    }
}
