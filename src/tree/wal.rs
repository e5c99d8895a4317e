//! Whether SQLite's write-ahead log is damaged or only ends.
//!
//! After a killed daemon SQLite takes the log up to the first frame that is not right, and silently nothing behind it.
//! That is the end of what was committed, unless a later commit is there: then bits flipped in between, and going on
//! would lose changes that were answered. After the machine went down it can also be what was never synced, which nobody
//! was promised; so [`Boot`] is asked first.
//!
//! The format: <https://sqlite.org/fileformat2.html#the_write_ahead_log>.

use std::fs::{self, File};
use std::io::{self, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::op::TreeError;
use super::writer::wal_path;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Which start of the machine wrote the database last.
pub(super) struct Boot {
    note: PathBuf,
    id: String,
    /// It is this one.
    pub(super) same: bool,
}

impl Boot {
    /// Compares this start with the note beside the database at `path`.
    pub(super) fn look(path: &Path) -> Boot {
        let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        let id = read(Path::new("/proc/sys/kernel/random/boot_id"));
        let note = path.with_extension("boot");
        Boot {
            same: !id.is_empty() && read(&note) == id,
            note,
            id,
        }
    }

    /// Notes this start. A note that gets lost only means that less is noticed.
    pub(super) fn note(&self) {
        if !self.same
            && let Err(e) = fs::write(&self.note, &self.id)
        {
            tracing::debug!("{}: {e}", self.note.display());
        }
    }
}

/// Fails when the log of the database at `path` holds a commit behind a frame that is not right.
pub(super) fn check(path: &Path) -> Result<(), TreeError> {
    let wal = wal_path(path);
    let broken = match File::open(&wal).and_then(|file| broken_at(BufReader::new(file))) {
        Ok(broken) => broken,
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(TreeError::Database(format!("{}: {e}", wal.display()))),
    };
    match broken {
        None => Ok(()),
        Some(frame) => Err(TreeError::Database(format!(
            "the write-ahead log (tree.sqlite-wal) is damaged: frame {frame} is wrong and a later one is right. Restore the \
             data directory from a copy, or remove tree.boot to go on with what comes before"
        ))),
    }
}

/// The number of the first frame that is not right, 0 for the header, when a commit comes behind it.
fn broken_at(mut log: impl Read) -> io::Result<Option<u64>> {
    let mut header = [0; HEADER];
    if !fill(&mut log, &mut header)? {
        return Ok(None);
    }
    let swapped = (header[3] & 1 == 1) != cfg!(target_endian = "big");
    let page = be(&header, 8) as usize;
    let magic = be(&header, 0) & !1 == 0x377f_0682;
    let right = sum(&header[..24], swapped, (0, 0)) == (be(&header, 24), be(&header, 28));
    if !magic || !right {
        // It is written in one piece, before any frame.
        return Ok(Some(0));
    }
    let mut frame = vec![0; FRAME_HEADER + page];
    let (mut before, mut number, mut broken) = ((be(&header, 24), be(&header, 28)), 0, None);
    while fill(&mut log, &mut frame)? {
        number += 1;
        let noted = (be(&frame, 16), be(&frame, 20));
        let sums = sum(&frame[..8], swapped, before);
        let right =
            sum(&frame[FRAME_HEADER..], swapped, sums) == noted && frame[8..16] == header[16..24];
        match (right, broken) {
            (false, None) => broken = Some(number),
            // What an unfinished commit left there has no such mark, since the mark comes last.
            (true, Some(_)) if be(&frame, 4) != 0 => return Ok(broken),
            _ => {}
        }
        before = noted;
    }
    Ok(None)
}

/// False when the log ends before `buffer` is full.
fn fill(log: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match log.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

fn be(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(word)
}

/// The checksum of `bytes`, going on from `sums`.
fn sum(bytes: &[u8], swapped: bool, sums: (u32, u32)) -> (u32, u32) {
    let word = |b: &[u8]| {
        let word = u32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
        if swapped { word.swap_bytes() } else { word }
    };
    bytes.chunks_exact(8).fold(sums, |(a, b), pair| {
        let a = a.wrapping_add(word(pair)).wrapping_add(b);
        let b = b.wrapping_add(word(&pair[4..])).wrapping_add(a);
        (a, b)
    })
}
