//! A comparison that several machines share: each writes a results file of its own and reads those of the
//! others.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use soda_compare::{ResultsFile, Shard, StoredResult, Task, results_files};
use soda_files::Lock;

use crate::usage::UsageError;

/// The time that the processes of a killed comparison have to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// The value of `--shard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ShardChoice {
    /// That of the environment.
    Auto,
    Shard(Shard),
}

/// Reads the value of `--shard`.
pub(crate) fn shard_choice(text: &str) -> Result<ShardChoice, String> {
    match text {
        "auto" => Ok(ShardChoice::Auto),
        text => text.parse().map(ShardChoice::Shard),
    }
}

impl ShardChoice {
    /// The shard of this process.
    ///
    /// # Errors
    /// `auto` outside of an array of Slurm.
    pub(crate) fn shard(self) -> Result<Shard> {
        let variable = |name: &str| std::env::var(name).ok();
        match self {
            Self::Shard(shard) => Ok(shard),
            Self::Auto => Shard::of_slurm_array(variable).ok_or_else(|| {
                UsageError::new(
                    "--shard auto needs the variables of a Slurm array (SLURM_ARRAY_TASK_ID, _MIN, _COUNT); give \
                     --shard 1/4 for the first of four parts",
                )
                .into()
            }),
        }
    }
}

/// Locks the results of one shard, or those of a comparison without shards, against a second process.
pub(crate) fn lock(out: &Path, shard: Option<Shard>) -> Result<Lock> {
    if shard.is_none() {
        refuse_running_shards(out)?;
    }
    let name = shard.map_or_else(|| ".lock".to_owned(), |shard| shard.file_name(".lock", ""));
    let lock = Lock::wait(&out.join(&name), PATIENCE)
        .with_context(|| format!("cannot lock {}", out.join(&name).display()))?;
    lock.with_context(|| {
        format!("another comparison is working on {}; wait for it, or stop it", out.display())
    })
}

/// Refuses to do the runs of shards that are being done.
fn refuse_running_shards(out: &Path) -> Result<()> {
    for entry in std::fs::read_dir(out).with_context(|| format!("cannot read {}", out.display()))? {
        let path = entry.with_context(|| format!("cannot read {}", out.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(".lock-") && matches!(Lock::try_new(&path), Ok(None)) {
            let shard = name.trim_start_matches(".lock-").replacen("-of-", "/", 1);
            bail!("shard {shard} is working on {}; wait for it, or stop it", out.display());
        }
    }
    Ok(())
}

/// Opens the results of this process, with those of all other shards in `out`.
pub(crate) fn open_results<R: StoredResult>(
    out: &Path,
    stem: &str,
    shard: Option<Shard>,
) -> Result<ResultsFile<R>> {
    let plain = || format!("{stem}.jsonl");
    let name = shard.map_or_else(plain, |shard| shard.file_name(stem, ".jsonl"));
    let mut results = ResultsFile::open(&out.join(name))?;
    include_others(&mut results, &[out.to_owned()], stem)?;
    Ok(results)
}

/// Reads what the other shards have done until now.
pub(crate) fn include_others<R: StoredResult>(
    results: &mut ResultsFile<R>,
    folders: &[PathBuf],
    stem: &str,
) -> Result<()> {
    for folder in folders {
        for file in results_files(folder, stem)? {
            results.include(&file)?;
        }
    }
    Ok(())
}

/// The tasks of this process.
pub(crate) fn own<T: Task>(mut tasks: Vec<T>, shard: Option<Shard>) -> Vec<T> {
    if let Some(shard) = shard {
        tasks.retain(|task| shard.has(task.id()));
    }
    tasks
}
