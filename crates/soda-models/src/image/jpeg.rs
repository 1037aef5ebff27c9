//! The check that a JPEG file is whole.
//!
//! The decoder fills the missing part of a truncated file with grey and reports no error, so a trainer would
//! learn half an image. Entropy-coded data does not state its length; only the end marker shows that the file
//! is whole (ITU-T T.81, annex B).

/// Marker of the start of a scan, after which entropy-coded bytes follow.
const SCAN: u8 = 0xda;
const END: u8 = 0xd9;

/// Whether `bytes` reach the end marker of the image. The end marker of an embedded preview does not count.
pub(super) fn has_end(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[first, marker]) = bytes.get(at..at + 2) {
        match (first, marker) {
            (0xff, END) => return true,
            // Markers without a segment: fill bytes, restarts and stray markers.
            (0xff, 0xff) => at += 1,
            (0xff, 0x01 | 0xd0..=0xd8) => at += 2,
            (0xff, 0x02..) => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low]));
                if marker == SCAN {
                    at += entropy_coded(bytes.get(at..).unwrap_or_default());
                }
            }
            _ => at += 1,
        }
    }
    false
}

/// The length of a scan's entropy-coded data, in which 0xff is followed by 0 or by a restart marker.
fn entropy_coded(bytes: &[u8]) -> usize {
    let ends = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7);
    bytes.windows(2).position(ends).unwrap_or(bytes.len())
}
