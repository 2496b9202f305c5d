//! TensorBoard's event files: records of length, checksum and a protobuf `Event`, written by hand because six fields of it are all that is needed.
//!
//! Formats: tensorflow/core/lib/io/record_writer.h (records), tensorflow/core/util/event.proto and framework/summary.proto (messages).

use super::metrics::{EvalRecord, StepRecord};
use crate::error::{Result, write_error};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Names of event files begin so.
pub const PREFIX: &str = "events.out.tfevents.";

/// One event file.
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Begins a file in `folder` for a run whose next step is `step`: what earlier files there say of it and of later steps no longer counts.
    pub fn create(folder: &Path, step: usize) -> Result<Events> {
        let now = wall_time();
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let path = folder.join(format!("{PREFIX}{:010}.{host}.{}", now as u64, std::process::id()));
        let file = File::create(&path).map_err(|e| write_error(&path, e))?;
        let mut events = Events { path, file };
        // Event.file_version = 3
        events.record(&[field_f64(1, now), field_bytes(3, b"brain.Event:2")].concat())?;
        // Event.session_log = 7 with SessionLog.status = 1 being START: TensorBoard drops what it has from this step on.
        let start = field_bytes(7, &field_varint(1, 1));
        events.record(&[field_f64(1, now), field_varint(2, step as u64), start].concat())?;
        Ok(events)
    }

    pub fn step(&mut self, record: &StepRecord) -> Result<()> {
        let mut values = vec![
            ("train/loss", record.loss),
            ("train/grad_norm", record.grad_norm),
            ("train/lr", record.lr),
            ("train/epoch", record.epoch),
            ("train/tokens_per_s", record.tokens_per_s),
        ];
        values.extend(record.mfu.map(|mfu| ("train/mfu", mfu)));
        self.scalars(record.step, &values)
    }

    pub fn evaluation(&mut self, record: &EvalRecord) -> Result<()> {
        self.scalars(record.step, &[("eval/loss", record.eval_loss)])
    }

    /// One event with several values; those that are not finite are left out.
    fn scalars(&mut self, step: usize, values: &[(&str, f64)]) -> Result<()> {
        // Summary.value = 1, of which Value.tag = 1 and Value.simple_value = 2.
        let value = |&(tag, value): &(&str, f64)| {
            field_bytes(1, &[field_bytes(1, tag.as_bytes()), field_f32(2, value as f32)].concat())
        };
        let summary: Vec<u8> = values.iter().filter(|(_, value)| value.is_finite()).flat_map(value).collect();
        self.record(&[field_f64(1, wall_time()), field_varint(2, step as u64), field_bytes(5, &summary)].concat())
    }

    fn record(&mut self, event: &[u8]) -> Result<()> {
        let length = (event.len() as u64).to_le_bytes();
        let record = [&length[..], &masked_crc(&length), event, &masked_crc(event)].concat();
        self.file.write_all(&record).map_err(|e| write_error(&self.path, e))
    }
}

/// Seconds since 1970.
fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// CRC32C (Castagnoli), rotated and shifted so that a checksum of data with checksums in it stays one.
fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Wire types of protobuf: 0 a varint, 1 eight bytes, 2 bytes with their length, 5 four bytes.
fn key(field: u64, wire: u64) -> Vec<u8> {
    varint(field << 3 | wire)
}
fn field_varint(field: u64, value: u64) -> Vec<u8> {
    [key(field, 0), varint(value)].concat()
}
fn field_f64(field: u64, value: f64) -> Vec<u8> {
    [&key(field, 1)[..], &value.to_le_bytes()].concat()
}
fn field_bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [&key(field, 2)[..], &varint(value.len() as u64), value].concat()
}
fn field_f32(field: u64, value: f32) -> Vec<u8> {
    [&key(field, 5)[..], &value.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC32C bit by bit, from its polynomial.
    fn crc32c_by_definition(data: &[u8]) -> u32 {
        !data.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
        })
    }

    /// The payloads of a file's records, each with its checksums compared.
    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let masked = |data: &[u8]| crc32c_by_definition(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes();
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            assert_eq!(bytes[8..12], masked(&bytes[..8]));
            assert_eq!(bytes[12 + length..16 + length], masked(&bytes[12..12 + length]));
            found.push(bytes[12..12 + length].to_vec());
            bytes = &bytes[16 + length..];
        }
        found
    }

    /// The fields of a message: number and content.
    fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
        fn read_varint(bytes: &mut &[u8]) -> u64 {
            let mut value = 0;
            for shift in (0..).step_by(7) {
                let byte = bytes[0];
                *bytes = &bytes[1..];
                value |= u64::from(byte & 0x7f) << shift;
                if byte < 0x80 {
                    break;
                }
            }
            value
        }
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = read_varint(&mut bytes);
            let content = match key & 7 {
                0 => read_varint(&mut bytes).to_le_bytes().to_vec(),
                wire => {
                    let length = match wire {
                        1 => 8,
                        5 => 4,
                        _ => read_varint(&mut bytes) as usize,
                    };
                    let (content, rest) = bytes.split_at(length);
                    bytes = rest;
                    content.to_vec()
                }
            };
            found.push((key >> 3, content));
        }
        found
    }

    #[test]
    fn checksums_are_castagnolis() {
        // RFC 3720, B.4
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c_by_definition(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
    }

    /// Tags and values of the last record of the only file in a folder.
    fn last_values(folder: &Path) -> Vec<(String, f32)> {
        let entry = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap();
        let records = records(&std::fs::read(entry.path()).unwrap());
        let event = fields(records.last().unwrap());
        let (_, summary) = event.iter().find(|(field, _)| *field == 5).unwrap();
        let value = |(_, value): &(u64, Vec<u8>)| {
            let value = fields(value);
            (String::from_utf8(value[0].1.clone()).unwrap(), f32::from_le_bytes(value[1].1[..].try_into().unwrap()))
        };
        fields(summary).iter().map(value).collect()
    }

    #[test]
    fn every_number_has_its_tag() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path(), 1).unwrap();
        let record = StepRecord {
            step: 3,
            epoch: 0.5,
            loss: 2.0,
            grad_norm: 3.0,
            skipped: false,
            lr: 4.0,
            tokens: 1,
            supervised_tokens: 1,
            tokens_per_s: 5.0,
            mfu: Some(0.25),
            memory: 1,
            seconds: 1.0,
        };
        events.step(&record).unwrap();
        let expected = [("loss", 2.0), ("grad_norm", 3.0), ("lr", 4.0), ("epoch", 0.5), ("tokens_per_s", 5.0), ("mfu", 0.25)];
        let expected = expected.map(|(name, value)| (format!("train/{name}"), value));
        assert_eq!(last_values(folder.path()), expected);
        events.evaluation(&EvalRecord { step: 3, epoch: 0.5, eval_loss: 1.5, tokens: 1, supervised_tokens: 1 }).unwrap();
        assert_eq!(last_values(folder.path()), [("eval/loss".to_string(), 1.5)]);
    }

    #[test]
    fn what_is_written_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::create(folder.path(), 301).unwrap();
        events.scalars(301, &[("train/loss", 0.25), ("train/grad_norm", f64::NAN), ("train/lr", 5e-6)]).unwrap();
        let entry = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap();
        assert!(entry.file_name().to_str().unwrap().starts_with("events.out.tfevents."));
        let records = records(&std::fs::read(entry.path()).unwrap());
        let [version, start, scalars] = &records[..] else { panic!("{} records", records.len()) };
        assert_eq!(fields(version)[1], (3, b"brain.Event:2".to_vec()));
        assert_eq!(fields(start)[1], (2, 301u64.to_le_bytes().to_vec()));
        assert_eq!(fields(&fields(start)[2].1), [(1, 1u64.to_le_bytes().to_vec())]);
        let event = fields(scalars);
        let time = f64::from_le_bytes(event[0].1[..].try_into().unwrap());
        assert!((wall_time() - time).abs() < 60.0);
        assert_eq!(event[1], (2, 301u64.to_le_bytes().to_vec()));
        let values: Vec<_> = fields(&event[2].1).iter().map(|(_, value)| fields(value)).collect();
        let expected = [("train/loss", 0.25f32), ("train/lr", 5e-6)];
        assert_eq!(values, expected.map(|(tag, v)| vec![(1, tag.as_bytes().to_vec()), (2, v.to_le_bytes().to_vec())]));
    }
}
