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
    /// `None` for results that are only read.
    file: Option<File>,
    results: BTreeMap<String, R>,
}

impl<R: StoredResult> ResultsFile<R> {
    /// Opens the file `path`, or creates it. Drops a last line that an interruption cut short.
    ///
    /// # Errors
    /// The file cannot be read or written, or a complete line does not parse.
    pub fn open(path: &Path) -> Result<Self, CompareError> {
        let (results, whole) = read_lines(path)?;
        let write = CompareError::io("write", path);
        let open = || -> std::io::Result<File> {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            file.set_len(whole as u64)?;
            Ok(file)
        };
        Ok(Self { path: path.to_owned(), file: Some(open().map_err(write)?), results })
    }

    /// No results, of no file: [`ResultsFile::include`] reads some.
    pub fn in_memory() -> Self {
        Self { path: PathBuf::new(), file: None, results: BTreeMap::new() }
    }

    /// Takes the results of another file, which another process may append to.
    ///
    /// # Errors
    /// The file cannot be read, or a complete line does not parse.
    pub fn include(&mut self, path: &Path) -> Result<(), CompareError> {
        if path != self.path {
            self.results.extend(read_lines(path)?.0);
        }
        Ok(())
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
        if let Some(file) = &mut self.file {
            file.write_all(format!("{text}\n").as_bytes())
                .and_then(|()| file.sync_data())
                .map_err(CompareError::io("write", &self.path))?;
        }
        self.results.insert(result.id().to_owned(), result);
        Ok(())
    }

    /// Returns the result of the task `id`, or `None` if that task has not finished.
    pub fn get(&self, id: &str) -> Option<&R> {
        self.results.get(id)
    }
}

/// The results of the complete lines of a file, and the length of these. A missing file has none.
fn read_lines<R: StoredResult>(path: &Path) -> Result<(BTreeMap<String, R>, usize), CompareError> {
    let text = match read_text(path, SizeLimit::LIST) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        text => text.map_err(CompareError::io("read", path))?,
    };
    // Only complete lines count. The process died while it wrote the rest, or still writes it.
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    let mut results = BTreeMap::new();
    for (line, text) in text[..whole].lines().enumerate() {
        let parsed: R = serde_json::from_str(text).map_err(|error| CompareError::ReadResults {
            path: path.to_owned(),
            line: line + 1,
            reason: error.to_string(),
        })?;
        results.insert(parsed.id().to_owned(), parsed);
    }
    Ok((results, whole))
}
