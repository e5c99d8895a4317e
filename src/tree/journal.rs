//! What was answered but is not in the database yet, for a tree without a shared log.
//!
//! One small record per submission, written with one system call before the answer, so that it survives the daemon being
//! killed; the database itself is committed for many submissions at once. The file is written from its start again after
//! every commit: records are numbered without gaps, so what is left of an earlier round ends the reading. Power loss may
//! tear it; whoever needs more than a killed daemon commits the database and syncs that.
//!
//! A killed daemon leaves a torn record at the end only. So a record that cannot be read and has a whole later one behind
//! it was answered and is damaged: [`Read::damaged`] tells, since taking it for the end would silently lose both.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Length, checksum and number come before each record's bytes.
const HEADER: usize = 16;
/// More records than a round ever has.
const NUMBERS: u64 = 1 << 20;

/// What the file holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Read {
    /// The records in order, up to the first that is missing or cannot be read.
    pub(super) records: Vec<Vec<u8>>,
    /// The number of a whole record that comes later than one that is missing.
    pub(super) damaged: Option<u64>,
}

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

    /// The records from number `next` on. What is appended afterwards comes behind them.
    pub(super) fn read(&mut self, mut next: u64) -> io::Result<Read> {
        let mut bytes = vec![0; self.file.metadata()?.len() as usize];
        self.file.read_exact_at(&mut bytes, 0)?;
        let mut read = Read::default();
        let mut rest = &bytes[..];
        while let Some((number, payload)) = record(rest, |_| true) {
            // Records before `next` were committed; a kill came between the commit and the new round.
            if number == next {
                read.records.push(payload.to_vec());
                next += 1;
                self.at = (bytes.len() - rest.len() + HEADER + payload.len()) as u64;
            } else if number > next || !read.records.is_empty() {
                break;
            }
            rest = &rest[HEADER + payload.len()..];
        }
        // Where the next one begins is lost with the length of the damaged one.
        read.damaged = (0..rest.len())
            .find_map(|at| record(&rest[at..], |n| (next..next + NUMBERS).contains(&n)))
            .map(|(number, _)| number);
        Ok(read)
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

    /// Forgets every record, also of earlier rounds: after power loss their numbers may be given out again. Synced, so
    /// that a second power loss does not bring them back.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.at = 0;
        if self.file.metadata()?.len() == 0 {
            return Ok(());
        }
        self.file.set_len(0)?;
        self.file.sync_all()
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

/// The record that `bytes` begin with, if its number `fits` and it is whole.
fn record(bytes: &[u8], fits: impl FnOnce(u64) -> bool) -> Option<(u64, &[u8])> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let [l0, l1, l2, l3, c0, c1, c2, c3, number @ ..] = *header;
    let number = u64::from_le_bytes(number);
    if !fits(number) {
        return None;
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let payload = rest.get(..length)?;
    let whole = checksum(number, payload) == u32::from_le_bytes([c0, c1, c2, c3]);
    whole.then_some((number, payload))
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
        let count = |j: &mut Journal, n| {
            let read = j.read(n).unwrap();
            assert_eq!(read.damaged, None);
            read.records.len()
        };
        assert_eq!(count(&mut j, 1), 5);
        assert_eq!(count(&mut j, 4), 2);
        j.restart();
        j.append(6, b"second").unwrap();
        assert_eq!(j.read(6).unwrap().records, [b"second".to_vec()]);
        assert_eq!(count(&mut j, 6), 1);
        assert_eq!(count(&mut j, 7), 0);
    }

    #[test]
    fn a_gap_or_a_damaged_record_ends_the_reading() {
        let (dir, mut j) = journal();
        j.append(1, b"one").unwrap();
        j.append(2, b"two").unwrap();
        let gap = j.read(0).unwrap();
        assert!(gap.records.is_empty());
        assert_eq!(gap.damaged, Some(1));
        let path = dir.path().join("j");
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let read = j.read(1).unwrap();
        assert_eq!(read.records, [b"one".to_vec()]);
        // The last one: it could as well be torn.
        assert_eq!(read.damaged, None);
    }

    /// As when the disk is full at the start, so that the database cannot take what the journal has.
    #[test]
    fn regression_what_was_read_is_not_written_over() {
        let (dir, mut j) = journal();
        j.append(1, b"one").unwrap();
        j.append(2, b"two").unwrap();
        let mut again = Journal::open(&dir.path().join("j")).unwrap();
        assert_eq!(again.read(1).unwrap().records.len(), 2);
        again.append(3, b"three").unwrap();
        assert_eq!(again.read(1).unwrap().records.len(), 3);
    }

    #[test]
    fn regression_damage_in_the_middle_is_not_the_end() {
        let (dir, mut j) = journal();
        for n in 1..=4 {
            j.append(n, b"some payload").unwrap();
        }
        let path = dir.path().join("j");
        let whole = std::fs::read(&path).unwrap();
        let one = whole.len() / 4;
        for bit in 0..3 * one * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &flipped).unwrap();
            let read = j.read(1).unwrap();
            assert_eq!(read.records.len(), bit / 8 / one, "bit {bit}");
            assert_eq!(read.damaged, Some(bit as u64 / 8 / one as u64 + 2));
        }
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
            let read = j.read(1).unwrap();
            assert_eq!(
                (read.records.len(), read.damaged),
                (1, None),
                "cut at {cut}"
            );
        }
    }
}
