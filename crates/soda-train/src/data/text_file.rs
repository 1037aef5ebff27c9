//! Text files that people write: UTF-8 or UTF-16, with or without a byte order mark.

use std::path::Path;

use soda_models::input_file::{self, SizeLimit};

use crate::error::{DataError, TrainError};

/// Reads a regular text file that is not larger than `limit`: UTF-8, or UTF-16 with a byte order mark.
/// The mark is no part of the text.
///
/// Editors and shells of Windows write both marks: Notepad that of UTF-8, `>` of PowerShell that of UTF-16.
///
/// # Errors
/// Returns [`DataError::Encoding`] for another encoding, or [`TrainError::Io`] for a file that cannot be read
/// or is too large.
///
/// ```
/// use soda_models::input_file::SizeLimit;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("00.txt");
/// std::fs::write(&path, "\u{feff}a photo of a mug")?;
/// assert_eq!(soda_train::read_text(&path, SizeLimit::CAPTION)?, "a photo of a mug");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_text(path: &Path, limit: SizeLimit) -> Result<String, TrainError> {
    let bytes = input_file::read(path, limit).map_err(TrainError::io("read", path))?;
    decode(bytes).map_err(|encoding| DataError::Encoding { path: path.to_owned(), encoding }.into())
}

/// The text of `bytes`, or the name of the encoding that is not read.
fn decode(mut bytes: Vec<u8>) -> Result<String, &'static str> {
    match bytes.as_slice() {
        [0xef, 0xbb, 0xbf, ..] => {
            bytes.drain(..3);
        }
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => return Err("UTF-32"),
        [0xff, 0xfe, units @ ..] => return utf16(units, u16::from_le_bytes),
        [0xfe, 0xff, units @ ..] => return utf16(units, u16::from_be_bytes),
        _ => {}
    }
    // No text has NUL. In UTF-16, every second byte of English text is one.
    if bytes.contains(&0) {
        return Err("UTF-16 without a byte order mark, or no text");
    }
    String::from_utf8(bytes).map_err(|error| {
        let bytes = error.as_bytes();
        // ISO 8859-1 has no printable characters from 0x80 to 0x9f. Windows-1252 and most others have.
        match bytes.iter().any(|byte| (0x80..0xa0).contains(byte)) {
            true => "Windows-1252 or another encoding that is not UTF-8",
            false => "Latin-1 or another encoding that is not UTF-8",
        }
    })
}

/// The text of UTF-16 code units, two bytes each.
fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, &'static str> {
    const DAMAGED: &str = "damaged UTF-16";
    let pairs = bytes.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(DAMAGED);
    }
    let units = pairs.map(|pair| unit([pair[0], pair[1]]));
    let text: String = char::decode_utf16(units).collect::<Result<_, _>>().map_err(|_| DAMAGED)?;
    if text.contains('\0') { Err(DAMAGED) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    fn utf16_of(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn marks_are_no_part_of_the_text() {
        let text = "ein Krug, grün 🍵\r\n";
        let marked = format!("\u{feff}{text}");
        for bytes in [
            text.as_bytes().to_vec(),
            marked.as_bytes().to_vec(),
            utf16_of(&marked, u16::to_le_bytes),
            utf16_of(&marked, u16::to_be_bytes),
        ] {
            assert_eq!(decode(bytes).unwrap(), text);
        }
        for mark in [&b"\xef\xbb\xbf"[..], b"\xff\xfe", b"\xfe\xff", b""] {
            assert_eq!(decode(mark.to_vec()).unwrap(), "");
        }
        // Only the first mark is one. A file of two files keeps the second.
        assert_eq!(decode("\u{feff}\u{feff}a".into()).unwrap(), "\u{feff}a");
    }

    #[test]
    fn other_encodings_are_named() {
        let odd = [&b"\xff\xfe"[..], b"abc"].concat();
        let lone = [&b"\xff\xfe"[..], b"\x00\xd8a\x00"].concat();
        for (bytes, name) in [
            (utf16_of("a mug", u16::to_le_bytes), "UTF-16 without"),
            (b"caf\xe9".to_vec(), "Latin-1"),
            (b"caf\xe9 \x80 5".to_vec(), "Windows-1252"),
            (b"\xff\xfe\x00\x00a\x00\x00\x00".to_vec(), "UTF-32"),
            (odd, "damaged UTF-16"),
            (lone, "damaged UTF-16"),
            (b"\xff\xfea\x00\x00\x00".to_vec(), "damaged UTF-16"),
        ] {
            let encoding = decode(bytes).unwrap_err();
            assert!(encoding.contains(name), "{encoding}");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.txt");
        std::fs::write(&path, b"caf\xe9").unwrap();
        let message = read_text(&path, SizeLimit::CAPTION).unwrap_err().to_string();
        assert!(message.contains("0.txt is Latin-1") && message.contains("UTF-8"), "{message}");
    }
}
