//! The safetensors container: a length, a JSON header, and the bytes of the tensors.
//!
//! Each tensor is read from its position in the file when it is needed. The memory is that of one tensor
//! beside the network, and a failure is an error. The pages of a mapped file would count as memory, and its
//! truncation would be a signal.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use crate::error::{ModelError, WeightsError};

/// The longest header that is read, in bytes. SDXL's has 0.3 MB.
///
/// The length is read before the file is known to be valid, so it must not decide how much memory is
/// allocated.
const LONGEST_HEADER: u64 = 64 << 20;

/// The first bytes of an archive (`torch.save`) and of a bare pickle.
const PICKLES: [&[u8]; 2] = [b"PK\x03\x04", b"\x80\x02"];

/// An open file.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    file: Mutex<File>,
}

/// The position and the type of a tensor in a file.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// The tensor's key in the file, for messages.
    pub(crate) key: String,
    pub(crate) source: Arc<Source>,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Position in the file, in bytes.
    begin: u64,
    /// Whether a matrix is stored `[columns, rows]`.
    pub(crate) transposed: bool,
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__")]
    #[expect(dead_code, reason = "it is no tensor")]
    metadata: Option<HashMap<String, String>>,
    #[serde(flatten)]
    tensors: BTreeMap<String, TensorInfo>,
}

/// Reads the header of a file.
///
/// # Errors
///
/// [`ModelError`] for a file that is missing, truncated or a pickle, or whose header contradicts itself.
pub(crate) fn open(path: &Path) -> Result<BTreeMap<String, Entry>, ModelError> {
    let io = |e| ModelError::io(path, "a weight file", e);
    let broken = |reason: String| {
        ModelError::from(WeightsError::Safetensors { path: path.to_path_buf(), reason })
    };
    let mut file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    if size < 8 {
        return Err(broken(format!("it has {size} bytes")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(io)?;
    // The length of a header can have the bytes of a pickle's: 640 is 0x80 0x02. Only a header goes on with
    // an object.
    let mut brace = [0; 1];
    let follows = file.read(&mut brace).map_err(io)?;
    let is_object = follows == 1 && brace == *b"{";
    if !is_object && PICKLES.iter().any(|magic| length.starts_with(magic)) {
        return Err(WeightsError::Pickle { path: path.to_path_buf() }.into());
    }
    file.seek(SeekFrom::Start(8)).map_err(io)?;
    let length = u64::from_le_bytes(length);
    if length > LONGEST_HEADER || length > size - 8 {
        return Err(broken(format!("its header claims {length} bytes of a file of {size}")));
    }
    // The length was checked above: it fits into memory and into the file.
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(io)?;
    let header: Header =
        serde_json::from_slice(&header).map_err(|e| broken(format!("its header: {e}")))?;

    let (data, source) =
        (size - 8 - length, Arc::new(Source { path: path.to_path_buf(), file: Mutex::new(file) }));
    let mut covered = 0;
    let mut entries = BTreeMap::new();
    for (key, info) in header.tensors {
        let (begin, end) = (info.data_offsets.0 as u64, info.data_offsets.1 as u64);
        let bits = info
            .shape
            .iter()
            .try_fold(info.dtype.bitsize() as u64, |bits, n| bits.checked_mul(*n as u64));
        let fits = end.checked_sub(begin).is_some_and(|length| bits == length.checked_mul(8));
        if !fits || end > data {
            let reason = format!("`{key}` claims the bytes {begin} to {end} of {data}");
            return Err(broken(reason));
        }
        covered += end - begin;
        let entry = Entry {
            key: key.clone(),
            source: source.clone(),
            dtype: info.dtype,
            shape: info.shape,
            begin: 8 + length + begin,
            transposed: false,
        };
        entries.insert(key, entry);
    }
    // Overlapping tensors, or bytes of no tensor, are signs of a damaged file.
    if covered != data {
        return Err(broken(format!("its tensors have {covered} bytes and it holds {data}")));
    }
    Ok(entries)
}

impl Entry {
    /// Reads the tensor's bytes, in the order of the file.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub(crate) fn read(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; self.bytes()];
        // A panic during a read leaves only the position behind, which is set here.
        let mut file = self.source.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.begin))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }

    /// The part `index` of `parts` equal parts along the first axis. `None` if the axis cannot be divided.
    pub(crate) fn part(&self, index: usize, parts: usize) -> Option<Self> {
        let rows = *self.shape.first()?;
        if !rows.is_multiple_of(parts) {
            return None;
        }
        let mut entry = self.clone();
        entry.shape[0] = rows / parts;
        entry.begin += (entry.bytes() * index) as u64;
        Some(entry)
    }
}
