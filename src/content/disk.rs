//! What this crate does with files, written once: copying with holes, whole-file hashing, durable small files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use sha2::{Digest, Sha256};

use crate::types::{ContentHash, Time};

/// How many bytes are read at once while hashing or copying.
pub const CHUNK: usize = 1 << 20;

/// Makes `to` (empty) equal to `from`: shares the blocks where the disk can, else copies and leaves holes as holes.
pub fn copy(from: &File, to: &File) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let len = from.metadata()?.len();
    rustix::fs::ftruncate(to, len)?;
    let mut at = 0;
    while at < len {
        // A disk that knows no holes reports the whole file as data.
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(rustix::io::Errno::INVAL) => at,
            Err(e) => return Err(e.into()),
        };
        let end = seek(from, SeekFrom::Hole(start)).unwrap_or(len).min(len);
        copy_range(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut src, mut dst) = (start, start);
    while src < end {
        let want = (end - src).min(1 << 30) as usize;
        match rustix::fs::copy_file_range(from, Some(&mut src), to, Some(&mut dst), want) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(_) => return copy_by_hand(from, to, src, end),
        }
    }
    Ok(())
}

fn copy_by_hand(from: &File, to: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    while at < end {
        let want = (end - at).min(CHUNK as u64) as usize;
        let n = from.read_at(&mut buffer[..want], at)?;
        if n == 0 {
            break;
        }
        to.write_all_at(&buffer[..n], at)?;
        at += n as u64;
    }
    Ok(())
}

/// The SHA-256 and the length of all of `file`, from its start whatever its position. `go_on` is asked between chunks;
/// once it says no, the answer is `None`.
pub fn hash(file: &File, go_on: impl Fn() -> bool) -> io::Result<Option<(ContentHash, u64)>> {
    let size = file.metadata()?.len();
    let mut buffer = vec![0; CHUNK.min(size as usize + 1)];
    let mut hasher = Sha256::new();
    let mut at = 0;
    loop {
        if !go_on() {
            return Ok(None);
        }
        let n = file.read_at(&mut buffer, at)?;
        if n == 0 {
            return Ok(Some((ContentHash(hasher.finalize().into()), at)));
        }
        hasher.update(&buffer[..n]);
        at += n as u64;
    }
}

/// Whether the file that `file` (opened for reading only) refers to is certainly open for writing nowhere, not even in
/// the kernel. "No" may also mean that this disk cannot tell.
pub fn has_no_writer(file: &File) -> bool {
    // The kernel grants a read lease exactly when nobody can write. It ends with the next line, or with the descriptor.
    // SAFETY: fcntl with these commands takes an integer and touches no memory of ours.
    unsafe {
        let fd = file.as_raw_fd();
        let granted = libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK) == 0;
        granted && libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK) == 0
    }
}

/// The modification time of a file.
pub fn mtime(meta: &std::fs::Metadata) -> Time {
    Time::from_parts(meta.mtime(), meta.mtime_nsec())
}

/// The change time of a file.
pub fn ctime(meta: &std::fs::Metadata) -> Time {
    Time::from_parts(meta.ctime(), meta.ctime_nsec())
}

/// Sets the modification time of a file, and its access time to the same.
pub fn set_mtime(file: &File, time: Time) -> io::Result<()> {
    let (secs, nanos) = time.parts();
    let stamp = rustix::fs::Timespec {
        tv_sec: secs,
        tv_nsec: nanos.into(),
    };
    rustix::fs::futimens(
        file,
        &rustix::fs::Timestamps {
            last_access: stamp,
            last_modification: stamp,
        },
    )?;
    Ok(())
}

/// Writes a small private file (mode 0600) so that it is there whole or not at all, also after power loss.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let tmp = path.with_extension("new");
    let _ = std::fs::remove_file(&tmp);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&tmp)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&tmp, path)?;
    sync_dir(path.parent().unwrap_or(Path::new("/")))
}

/// Makes the entries of a directory survive power loss.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads a small text file, trimmed; `None` when there is none.
pub fn read_text(path: &Path) -> io::Result<Option<String>> {
    let mut text = String::new();
    match File::open(path) {
        Ok(mut file) => {
            file.read_to_string(&mut text)?;
            Ok(Some(text.trim().to_owned()))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_equal_and_keeps_its_holes() {
        let dir = tempfile::tempdir().unwrap();
        let open = |n: &str| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(dir.path().join(n))
                .unwrap()
        };
        let (a, b) = (open("a"), open("b"));
        a.write_all_at(b"start", 0).unwrap();
        a.write_all_at(b"end", 50 << 20).unwrap();
        copy(&a, &b).unwrap();
        let same = |f: &File| hash(f, || true).unwrap().unwrap();
        assert_eq!(same(&a), same(&b));
        assert!(b.metadata().unwrap().blocks() * 512 < 1 << 20);
    }

    #[test]
    fn hashing_stops_when_told() {
        let file = tempfile::tempfile().unwrap();
        assert!(hash(&file, || false).unwrap().is_none());
        let (empty, size) = hash(&file, || true).unwrap().unwrap();
        assert!(empty.to_string().starts_with("e3b0c442"));
        assert_eq!(size, 0);
    }
}
