//! The safetensors container: a length, a JSON header, and the bytes of the tensors.
//!
//! Each tensor is read from its position in the file, by several threads at once, and a failure is an error.
//! The pages of a mapped file would count as memory, and its truncation would be a signal.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Error, ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use crate::error::{ModelError, WeightsError};
use crate::input_file;

/// The longest header that is read, in bytes. SDXL's has 0.3 MB.
///
/// The length is read before the file is known to be valid, so it must not decide how much memory is
/// allocated.
const LONGEST_HEADER: u64 = 64 << 20;

/// The most bits that a tensor without elements would have if its empty dimension were 1.
const LARGEST_EMPTY: u64 = 1 << 24;

/// The first bytes of an archive (`torch.save`), and of bare pickles by their protocols.
const PICKLES: [&[u8]; 5] = [b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"];

/// An open file.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    file: File,
}

impl Source {
    /// Fills `bytes` from a position of the file. Several threads may read at once.
    #[cfg(unix)]
    fn read_exact_at(&self, bytes: &mut [u8], position: u64) -> std::io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, position)
    }

    /// Fills `bytes` from a position of the file. Several threads may read at once.
    #[cfg(windows)]
    fn read_exact_at(&self, mut bytes: &mut [u8], mut position: u64) -> std::io::Result<()> {
        while !bytes.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(&self.file, bytes, position)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                read => {
                    bytes = &mut bytes[read..];
                    position += read as u64;
                }
            }
        }
        Ok(())
    }
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
    /// Whether the second half of the rows is stored before the first.
    pub(crate) halves_swapped: bool,
}

#[derive(Deserialize)]
struct Header {
    #[serde(rename = "__metadata__", default)]
    metadata: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    tensors: BTreeMap<String, TensorInfo>,
}

/// An open safetensors file. Its header is checked, and each tensor is read when it is asked for.
///
/// ```no_run
/// use soda_models::weights::SafetensorsReader;
///
/// let file = SafetensorsReader::open("adapter.safetensors".as_ref())?;
/// for (key, dtype, shape) in file.tensors() {
///     println!("{key} {dtype} {shape:?}");
/// }
/// # Ok::<(), soda_models::ModelError>(())
/// ```
#[derive(Debug)]
pub struct SafetensorsReader {
    metadata: BTreeMap<String, String>,
    entries: BTreeMap<String, Entry>,
}

impl SafetensorsReader {
    /// Opens a file and checks its header: the tensors follow one another and fill the file.
    ///
    /// # Errors
    ///
    /// [`ModelError`] for a file that is missing, no regular file, truncated or a pickle, or whose header
    /// contradicts itself.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |e| ModelError::io(path, "a weight file", e);
        let broken = |reason: String| {
            ModelError::from(WeightsError::Safetensors { path: path.to_path_buf(), reason })
        };
        let mut file = input_file::open(path).map_err(io)?;
        let size = file.metadata().map_err(io)?.len();
        if size <= 8 {
            return Err(broken(format!("it has {size} bytes")));
        }
        let mut start = [0; 8];
        file.read_exact(&mut start).map_err(io)?;
        let length = u64::from_le_bytes(start);
        // A header is a JSON object. A length of 640 has the first bytes of a pickle.
        let mut header = vec![0];
        file.read_exact(&mut header).map_err(io)?;
        if header != b"{" {
            return Err(foreign(path, &start));
        }
        if length > LONGEST_HEADER || length > size - 8 {
            return Err(broken(format!("its header claims {length} bytes of a file of {size}")));
        }
        // The length was checked above: it fits into memory and into the file.
        header.resize(length as usize, 0);
        let rest = header.get_mut(1..).unwrap_or_default();
        file.read_exact(rest).map_err(io)?;
        let header: Header =
            serde_json::from_slice(&header).map_err(|e| broken(format!("its header: {e}")))?;
        let source = Arc::new(Source { path: path.to_path_buf(), file });
        let entries = entries(header.tensors, &source, 8 + length, size - 8 - length);
        Ok(Self {
            metadata: header.metadata.unwrap_or_default(),
            entries: entries.map_err(broken)?,
        })
    }

    /// The texts of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Key, element type and shape of each tensor, by key.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Dtype, &[usize])> {
        self.entries.iter().map(|(key, entry)| (key.as_str(), entry.dtype, &entry.shape[..]))
    }

    /// Reads the bytes of a tensor, in the order of the file. The result is empty if there is no such key.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn read(&self, key: &str) -> std::io::Result<Vec<u8>> {
        self.entries.get(key).map_or_else(|| Ok(Vec::new()), Entry::read)
    }

    /// The tensors by key.
    pub(crate) fn into_entries(self) -> BTreeMap<String, Entry> {
        self.entries
    }
}

/// The refusal of a file that begins with `start` and is no safetensors file.
fn foreign(path: &Path, start: &[u8; 8]) -> ModelError {
    let path = path.to_path_buf();
    let broken = |path, reason: &str| WeightsError::Safetensors { path, reason: reason.to_owned() };
    let error = match start {
        _ if PICKLES.iter().any(|magic| start.starts_with(magic)) => WeightsError::Pickle { path },
        b"version " => broken(path, "it is a pointer of Git LFS, and `git lfs pull` gets the file"),
        [b'<', ..] => broken(path, "it is a web page"),
        _ => WeightsError::NotSafetensors { path },
    };
    error.into()
}

/// The tensors of a header, whose bytes begin at `start` and fill `data` bytes.
fn entries(
    tensors: BTreeMap<String, TensorInfo>,
    source: &Arc<Source>,
    start: u64,
    data: u64,
) -> Result<BTreeMap<String, Entry>, String> {
    let mut ranges = Vec::with_capacity(tensors.len());
    let mut entries = BTreeMap::new();
    for (key, TensorInfo { dtype, shape, data_offsets }) in tensors {
        let (begin, end) = (data_offsets.0 as u64, data_offsets.1 as u64);
        let bits = checked_bits(dtype, &shape)
            .ok_or_else(|| format!("`{key}` claims the shape {shape:?}, which no file can hold"))?;
        let fits = end.checked_sub(begin).is_some_and(|length| length.checked_mul(8) == Some(bits));
        if !fits || end > data {
            return Err(format!("`{key}` claims the bytes {begin} to {end} of {data}"));
        }
        ranges.push((begin, end, key.clone()));
        let entry = Entry {
            key: key.clone(),
            source: source.clone(),
            dtype,
            shape,
            begin: start + begin,
            transposed: false,
            halves_swapped: false,
        };
        entries.insert(key, entry);
    }
    // Overlapping tensors, or bytes of no tensor, are signs of a damaged file.
    ranges.sort_unstable();
    let mut covered = 0;
    for (begin, end, key) in ranges {
        if begin != covered {
            return Err(format!(
                "`{key}` begins at {begin}, and the tensor before ends at {covered}"
            ));
        }
        covered = end;
    }
    if covered != data {
        return Err(format!("its tensors have {covered} bytes and it holds {data}"));
    }
    Ok(entries)
}

/// The size of a tensor in bits. `None` if its shape is out of range.
///
/// A tensor without elements takes no space, whatever its other dimensions are. They are bounded too, since
/// readers take ranks and widths from them.
fn checked_bits(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    let mut others = shape.iter().filter(|n| **n > 0).map(|n| *n as u64);
    let others = others.try_fold(dtype.bitsize() as u64, u64::checked_mul)?;
    match shape.contains(&0) {
        true => (others <= LARGEST_EMPTY).then_some(0),
        false => (others <= i64::MAX as u64).then_some(others),
    }
}

impl Entry {
    /// Reads the tensor's bytes, in the order of the file but for swapped halves.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub(crate) fn read(&self) -> std::io::Result<Vec<u8>> {
        let length = self.bytes();
        let mut bytes = Vec::new();
        // The file has that many bytes, but the memory may not. An error is better than an abort.
        bytes.try_reserve_exact(length).map_err(|_| {
            let reason = format!("the {length} bytes of `{}` do not fit into memory", self.key);
            Error::new(ErrorKind::OutOfMemory, reason)
        })?;
        bytes.resize(length, 0);
        self.source.read_exact_at(&mut bytes, self.begin)?;
        if self.halves_swapped {
            bytes.rotate_left(length / 2);
        }
        Ok(bytes)
    }

    /// The number of elements.
    pub(crate) fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> usize {
        self.elements() * self.dtype.bitsize() / 8
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
