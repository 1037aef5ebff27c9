//! Event files of TensorBoard, to which a run appends.
//!
//! A file is a sequence of records, each with its length and two checksums (TensorFlow's `record_writer.h`).
//! A record is an `Event` in protocol buffers (`event.proto`, `summary.proto`), of which six fields are
//! written here.
//!
//! A resumed run begins another file in the same folder, as TensorBoard expects. Steps that are repeated
//! after a stop have the same values in both files.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::TrainError;
use crate::output::files::create_folder;

/// An event file that is open for appending.
#[derive(Debug)]
pub(crate) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Creates a file in `folder`, which is created if it is missing.
    pub(crate) fn create(folder: &Path) -> Result<Self, TrainError> {
        create_folder(folder)?;
        let seconds = now() as u64;
        // Two starts in the same second create two files.
        let mut number = 0;
        let (path, file) = loop {
            let path = folder.join(format!("events.out.tfevents.{seconds:010}.soda.{number}"));
            match OpenOptions::new().append(true).create_new(true).open(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
                file => break (path.clone(), file.map_err(TrainError::io("create", &path))?),
            }
        };
        let mut events = Self { path, file };
        events.append(&Message::default().double(1, now()).bytes(3, b"brain.Event:2"))?;
        Ok(events)
    }

    /// Appends the values after `step` steps, by tag.
    pub(crate) fn scalars(
        &mut self,
        step: usize,
        values: &[(&str, f32)],
    ) -> Result<(), TrainError> {
        let summary = values.iter().fold(Message::default(), |summary, (tag, value)| {
            let value = Message::default().bytes(1, tag.as_bytes()).float(2, *value);
            summary.bytes(1, &value.0)
        });
        self.event(step, &summary)
    }

    /// Appends an image of `size` (width, height) pixels, as the bytes of a PNG file.
    pub(crate) fn image(
        &mut self,
        step: usize,
        tag: &str,
        (width, height): (u32, u32),
        png: &[u8],
    ) -> Result<(), TrainError> {
        const RGB: u64 = 3;
        let image = Message::default()
            .varint(1, height.into())
            .varint(2, width.into())
            .varint(3, RGB)
            .bytes(4, png);
        let value = Message::default().bytes(1, tag.as_bytes()).bytes(4, &image.0);
        self.event(step, &Message::default().bytes(1, &value.0))
    }

    fn event(&mut self, step: usize, summary: &Message) -> Result<(), TrainError> {
        let event = Message::default().double(1, now()).varint(2, step as u64);
        self.append(&event.bytes(5, &summary.0))
    }

    /// Appends a record in one write, so that a reader never sees a part of one.
    fn append(&mut self, Message(data): &Message) -> Result<(), TrainError> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(data.len() + 16);
        record.extend(length);
        record.extend(masked(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked(data).to_le_bytes());
        self.file.write_all(&record).map_err(TrainError::io("write", &self.path))
    }
}

/// The seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// The masked checksum of a record. The mask keeps checksums of data with checksums in it meaningful.
fn masked(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Builds a message of protocol buffers, field by field.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn key(mut self, field: u8, wire: u8) -> Self {
        self.0.push(field << 3 | wire);
        self
    }

    fn number(mut self, mut value: u64) -> Self {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
        self
    }

    fn varint(self, field: u8, value: u64) -> Self {
        self.key(field, 0).number(value)
    }

    fn double(self, field: u8, value: f64) -> Self {
        let mut message = self.key(field, 1);
        message.0.extend(value.to_le_bytes());
        message
    }

    fn bytes(self, field: u8, bytes: &[u8]) -> Self {
        let mut message = self.key(field, 2).number(bytes.len() as u64);
        message.0.extend(bytes);
        message
    }

    fn float(self, field: u8, value: f32) -> Self {
        let mut message = self.key(field, 5);
        message.0.extend(value.to_le_bytes());
        message
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

    use super::*;

    /// The records of a file, after comparison with their checksums.
    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let sum = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            assert_eq!(sum(8), masked(&bytes[..8]));
            assert_eq!(sum(12 + length), masked(&bytes[12..12 + length]));
            records.push(bytes[12..12 + length].to_vec());
            bytes = &bytes[16 + length..];
        }
        records
    }

    #[test]
    fn each_start_is_a_file_and_each_call_a_record() {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let mut events = Events::create(&folder.path().join("tensorboard")).unwrap();
            events.scalars(300, &[("loss", 0.25), ("rate", 1.0)]).unwrap();
            events.image(300, "samples", (2, 1), b"png").unwrap();
        }
        let files: Vec<_> = std::fs::read_dir(folder.path().join("tensorboard")).unwrap().collect();
        assert_eq!(files.len(), 2);
        for file in files {
            let records = records(&std::fs::read(file.unwrap().path()).unwrap());
            assert_eq!(records.len(), 3);
            assert!(records[0].ends_with(b"brain.Event:2"));
            // After the time, an event has the step 300 (two bytes of seven bits) and a summary of two
            // values.
            let event = &records[1][9..];
            let loss = b"\x0a\x0b\x0a\x04loss\x15\x00\x00\x80\x3e";
            let rate = b"\x0a\x0b\x0a\x04rate\x15\x00\x00\x80\x3f";
            assert_eq!(event, [&b"\x10\xac\x02\x2a\x1a"[..], loss, rate].concat());
            let image = b"\x0a\x16\x0a\x07samples\x22\x0b\x08\x01\x10\x02\x18\x03\x22\x03png";
            assert_eq!(&records[2][9..], [&b"\x10\xac\x02\x2a\x18"[..], image].concat());
        }
    }

    /// The expected value is in RFC 3720, B.4.
    #[test]
    fn checksums_are_crc32c() {
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked(&[0; 32]), 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }
}
