//! Ways to damage what lies on the disk, and to see what a reader gets.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::common::files::{files_below, sha256};
use crate::common::mount::{Mount, oncefs_ended};
use crate::common::run::Ended;

/// Where the content of these bytes lies.
pub fn content_path(m: &Mount, bytes: &[u8]) -> PathBuf {
    let hash = sha256(bytes);
    m.data().join("content").join(&hash[..2]).join(hash)
}

/// Where its sums lie.
pub fn sums_path(m: &Mount, bytes: &[u8]) -> PathBuf {
    content_path(m, bytes).with_extension("sums")
}

/// Flips one bit.
pub fn flip(path: &Path, at: u64, bit: u32) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 1 << bit;
    file.write_all_at(&byte, at).unwrap();
}

/// Sets the length.
pub fn set_len(path: &Path, len: u64) {
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(len)
        .unwrap();
}

/// Changes the tables of a mount that is stopped, with right checksums.
pub fn sql(m: &Mount, statements: &str) {
    let path = m.data().join("tree.sqlite");
    // Makes the layer known that sets them.
    let (_workshop, journal) = oncefs::tree::check::Workshop::open(&path, true).unwrap();
    assert_eq!(journal, None);
    let conn = rusqlite::Connection::open_with_flags_and_vfs(
        path,
        rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE,
        c"oncefs-checked",
    )
    .unwrap();
    conn.execute_batch(statements).unwrap();
}

/// Runs a command of the program on this mount's data directory or mount point.
pub fn run(args: &[&str], target: &Path) -> Ended {
    let target = target.to_str().unwrap();
    oncefs_ended(args.iter().copied().chain([target]))
}

/// Fails unless it is an input/output error.
pub fn is_eio<T>(result: io::Result<T>) {
    let error = result.err().expect("damage was not noticed");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
}

/// The names in quarantine.
pub fn quarantined(m: &Mount) -> Vec<String> {
    match fs::metadata(m.data().join("quarantine")) {
        Ok(_) => files_below(&m.data().join("quarantine"))
            .iter()
            .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
            .collect(),
        Err(_) => Vec::new(),
    }
}

/// The count of damaged contents that the daemon shows.
pub fn damaged(m: &Mount) -> u64 {
    m.health()["damaged"].as_u64().unwrap()
}
