//! A JSON Lines file of finished tasks. Each line is appended and synced as a task finishes, so that an
//! interruption loses none.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use soda_models::input_file::{SizeLimit, read_text};

use crate::error::CompareError;

/// One line of a results file.
pub trait StoredResult: Serialize + DeserializeOwned {
    /// The identifier of the task that gave this result.
    fn id(&self) -> &str;
}

/// A results file: the results of one kind of task, by the identifier of the task.
#[derive(Debug)]
pub struct ResultsFile<R> {
    path: PathBuf,
    file: File,
    results: BTreeMap<String, R>,
}

impl<R: StoredResult> ResultsFile<R> {
    /// Opens the file `path`, or creates it. Drops a last line that an interruption cut short.
    ///
    /// # Errors
    /// The file cannot be read or written, or a complete line does not parse.
    pub fn open(path: &Path) -> Result<Self, CompareError> {
        let text = match read_text(path, SizeLimit::LIST) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.map_err(CompareError::io("read", path))?,
        };
        // Only complete lines count. The process died while it wrote the rest.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut results = BTreeMap::new();
        for (line, text) in text[..whole].lines().enumerate() {
            let parsed: R =
                serde_json::from_str(text).map_err(|error| CompareError::ReadResults {
                    path: path.to_owned(),
                    line: line + 1,
                    reason: error.to_string(),
                })?;
            results.insert(parsed.id().to_owned(), parsed);
        }
        let write = CompareError::io("write", path);
        let open = || -> std::io::Result<File> {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            file.set_len(whole as u64)?;
            Ok(file)
        };
        Ok(Self { path: path.to_owned(), file: open().map_err(write)?, results })
    }

    /// Appends a result. The line is on the disk when this returns.
    ///
    /// # Errors
    /// The result cannot be written as JSON, or the operating system refuses the write.
    pub fn append(&mut self, result: R) -> Result<(), CompareError> {
        let text = serde_json::to_string(&result).map_err(|error| CompareError::ReadResults {
            path: self.path.clone(),
            line: self.results.len() + 1,
            reason: error.to_string(),
        })?;
        self.file
            .write_all(format!("{text}\n").as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(CompareError::io("write", &self.path))?;
        self.results.insert(result.id().to_owned(), result);
        Ok(())
    }

    /// Returns the result of the task `id`, or `None` if that task has not finished.
    pub fn get(&self, id: &str) -> Option<&R> {
        self.results.get(id)
    }
}
