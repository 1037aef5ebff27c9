//! The part of a comparison that one of several machines does.
//!
//! A task belongs to the shard that a hash of its identifier chooses. The identifier is a hash of the content
//! of the task, so that every machine finds the same shard, whatever the others have done.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use crate::error::CompareError;

/// The most shards of a comparison.
const MOST: u32 = 10_000;

/// One part of a comparison, `number/count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// From 1.
    number: u32,
    count: u32,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').and_then(|(number, count)| {
            Some(Self { number: number.parse().ok()?, count: count.parse().ok()? })
        });
        parts.filter(Self::is_valid).ok_or_else(|| {
            format!("give the number of this shard and their count, such as 1/4, up to {MOST}")
        })
    }
}

/// Writes the shard as it is read.
impl fmt::Display for Shard {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.number, self.count)
    }
}

impl Shard {
    /// The shard of a task of a Slurm array, by the variables of its environment. `None` outside of an array.
    pub fn of_slurm_array(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let number =
            |name: &str| variable(&format!("SLURM_ARRAY_TASK_{name}"))?.parse::<u32>().ok();
        let step = number("STEP").unwrap_or(1).max(1);
        let index = number("ID")?.checked_sub(number("MIN")?)? / step;
        let shard = Self { number: index.checked_add(1)?, count: number("COUNT")? };
        shard.is_valid().then_some(shard)
    }

    /// Whether a task belongs to this shard.
    pub fn has(&self, id: &str) -> bool {
        let hash = Sha256::digest(id);
        let hash = hash.iter().take(8).fold(0, |hash, byte| hash << 8 | u64::from(*byte));
        hash % u64::from(self.count) == u64::from(self.number - 1)
    }

    /// The name of a file of this shard, `<stem>-<number>-of-<count><suffix>`.
    pub fn file_name(&self, stem: &str, suffix: &str) -> String {
        format!("{stem}-{}-of-{}{suffix}", self.number, self.count)
    }

    fn is_valid(&self) -> bool {
        (1..=MOST).contains(&self.count) && (1..=self.count).contains(&self.number)
    }
}

/// The files of all shards in `folder`, `<stem>.jsonl` and `<stem>-…-of-….jsonl`, in order.
///
/// # Errors
/// A folder that cannot be read.
pub fn results_files(folder: &Path, stem: &str) -> Result<Vec<PathBuf>, CompareError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(CompareError::io("read", folder))? {
        let path = entry.map_err(CompareError::io("read", folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let rest = name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(".jsonl"));
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    #[test]
    fn every_task_belongs_to_one_shard() {
        for count in [1, 2, 3, 7] {
            let shards: Vec<Shard> =
                (1..=count).map(|number| format!("{number}/{count}").parse().unwrap()).collect();
            let mut sizes = vec![0; shards.len()];
            for task in 0..300 {
                let id = format!("soda-mug-{task}");
                let owners: Vec<usize> =
                    (0..shards.len()).filter(|at| shards[*at].has(&id)).collect();
                assert_eq!(owners.len(), 1);
                sizes[owners[0]] += 1;
            }
            assert!(sizes.iter().all(|size| *size > 300 / count / 2), "{sizes:?}");
        }
        // Another machine finds the same shard: the bits of SHA-256, as Python's hashlib gives them.
        let first: Shard = "1/2".parse().unwrap();
        assert_eq!(["a", "b", "c", "d"].map(|id| first.has(id)), [true, true, true, false]);
    }

    #[test]
    fn a_shard_is_written_as_it_is_read() {
        for text in ["1/1", "2/4", "10000/10000"] {
            assert_eq!(text.parse::<Shard>().unwrap().to_string(), text);
        }
        for text in ["", "1", "0/2", "3/2", "1/0", "-1/2", "1/10001", "a/b", "1/2/3"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
        assert_eq!(
            "2/4".parse::<Shard>().unwrap().file_name("results", ".jsonl"),
            "results-2-of-4.jsonl"
        );
    }

    #[test]
    fn the_variables_of_a_slurm_array() {
        let read = |values: [&str; 4]| {
            Shard::of_slurm_array(|name| {
                let names = ["ID", "MIN", "COUNT", "STEP"];
                let at = names.iter().position(|end| name == format!("SLURM_ARRAY_TASK_{end}"))?;
                Some(values[at].to_owned()).filter(|value| !value.is_empty())
            })
        };
        assert_eq!(read(["3", "0", "8", "1"]).unwrap().to_string(), "4/8");
        assert_eq!(read(["9", "1", "5", "2"]).unwrap().to_string(), "5/5");
        assert_eq!(read(["1", "1", "4", ""]).unwrap().to_string(), "1/4");
        for wrong in
            [["", "0", "8", "1"], ["9", "0", "8", "1"], ["0", "1", "8", "1"], ["a", "0", "8", "1"]]
        {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
    }
}
