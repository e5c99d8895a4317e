//! What was answered but is not in the database yet, for a tree without a shared log.
//!
//! One small record per submission, written with one system call before the answer, so that it survives the daemon being
//! killed; the database itself is committed for many submissions at once. The file is written from its start again after
//! every commit: records are numbered without gaps, so what is left of an earlier round ends the reading. Power loss may
//! tear it; whoever needs more than a killed daemon commits the database and syncs that.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Length, checksum and number come before each record's bytes.
const HEADER: usize = 16;
/// A record longer than this is damage: ops are bounded by what the kernel sends.
const RECORD_MAX: usize = 16 << 20;

/// The file.
pub(super) struct Journal {
    file: File,
    at: u64,
    buffer: Vec<u8>,
}

impl Journal {
    /// Opens or makes the file at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Journal> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        Ok(Journal {
            file,
            at: 0,
            buffer: Vec::new(),
        })
    }

    /// The records from number `next` on, in order, up to the first that is missing or damaged.
    pub(super) fn read(&self, mut next: u64) -> io::Result<Vec<Vec<u8>>> {
        let mut records = Vec::new();
        let (mut at, end) = (0, self.file.metadata()?.len());
        while at + HEADER as u64 <= end {
            let mut header = [0; HEADER];
            self.file.read_exact_at(&mut header, at)?;
            let [l0, l1, l2, l3, c0, c1, c2, c3, number @ ..] = header;
            let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
            let number = u64::from_le_bytes(number);
            at += HEADER as u64;
            if length > RECORD_MAX || at + length as u64 > end {
                break;
            }
            let mut payload = vec![0; length];
            self.file.read_exact_at(&mut payload, at)?;
            at += length as u64;
            if checksum(number, &payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
                break;
            }
            // Records before `next` were committed; a kill came between the commit and the new round.
            if number == next {
                records.push(payload);
                next += 1;
            } else if number > next || !records.is_empty() {
                break;
            }
        }
        Ok(records)
    }

    /// Writes record `number`. After an error it is not there.
    pub(super) fn append(&mut self, number: u64, payload: &[u8]) -> io::Result<()> {
        self.buffer.clear();
        self.buffer
            .extend_from_slice(&(payload.len() as u32).to_le_bytes());
        self.buffer
            .extend_from_slice(&checksum(number, payload).to_le_bytes());
        self.buffer.extend_from_slice(&number.to_le_bytes());
        self.buffer.extend_from_slice(payload);
        self.file.write_all_at(&self.buffer, self.at)?;
        self.at += self.buffer.len() as u64;
        Ok(())
    }

    /// Forgets every record, also of earlier rounds: after power loss their numbers may be given out again.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.at = 0;
        self.file.set_len(0)
    }

    /// Begins a new round: everything so far is committed.
    pub(super) fn restart(&mut self) {
        self.at = 0;
    }

    /// Takes back what was written beyond the first `bytes` of this round: it was not answered.
    pub(super) fn rewind(&mut self, bytes: u64) {
        self.at = bytes;
    }

    /// How many bytes this round has.
    pub(super) fn bytes(&self) -> u64 {
        self.at
    }
}

fn checksum(number: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> (tempfile::TempDir, Journal) {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(&dir.path().join("j")).unwrap();
        (dir, journal)
    }

    #[test]
    fn a_round_hides_what_is_left_of_the_one_before() {
        let (_d, mut j) = journal();
        for n in 1..=5 {
            j.append(n, b"first round").unwrap();
        }
        assert_eq!(j.read(1).unwrap().len(), 5);
        assert_eq!(j.read(4).unwrap().len(), 2);
        j.restart();
        j.append(6, b"second").unwrap();
        assert_eq!(j.read(6).unwrap(), [b"second".to_vec()]);
        assert!(j.read(7).unwrap().is_empty());
    }

    #[test]
    fn a_gap_or_a_damaged_record_ends_the_reading() {
        let (dir, mut j) = journal();
        j.append(1, b"one").unwrap();
        j.append(2, b"two").unwrap();
        assert!(j.read(0).unwrap().is_empty());
        let path = dir.path().join("j");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(j.read(1).unwrap(), [b"one".to_vec()]);
    }

    #[test]
    fn a_torn_record_is_not_there() {
        let (dir, mut j) = journal();
        j.append(1, b"one").unwrap();
        j.append(2, b"a longer record").unwrap();
        let path = dir.path().join("j");
        let whole = std::fs::read(&path).unwrap();
        for cut in 19..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(j.read(1).unwrap().len(), 1, "cut at {cut}");
        }
    }
}
