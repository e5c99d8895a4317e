//! What this crate does with files, written once: copying with holes, whole-file hashing, durable small files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{SeekFrom, seek};

use super::sums::{Digest, Digester};
use crate::types::Time;

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
    while let Some((start, end)) = data_after(from, at, len)? {
        copy_range(from, to, start, end)?;
        at = end;
    }
    Ok(())
}

/// The next stretch of `file` that is no hole, from `at` on, before `len`. A disk that knows no holes has one of them.
fn data_after(file: &File, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= len {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None),
        Err(rustix::io::Errno::INVAL) => at,
        Err(e) => return Err(e.into()),
    };
    let end = seek(file, SeekFrom::Hole(start)).unwrap_or(len);
    Ok((start < len).then_some((start, end.min(len))))
}

fn copy_range(from: &File, to: &File, mut start: u64, end: u64) -> io::Result<()> {
    while start < end {
        match copy_part((from, start), (to, start), end - start)? {
            0 => break,
            n => start += n,
        }
    }
    Ok(())
}

/// Copies up to `len` bytes and says how many they were; 0 at the end of `from`. The disk shares blocks or moves the
/// bytes by itself where it can.
pub fn copy_part((from, at): (&File, u64), (to, to_at): (&File, u64), len: u64) -> io::Result<u64> {
    use rustix::io::Errno;
    let (mut src, mut dst) = (at, to_at);
    let want = len.min(1 << 30) as usize;
    match rustix::fs::copy_file_range(from, Some(&mut src), to, Some(&mut dst), want) {
        Ok(n) => return Ok(n as u64),
        Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
        Err(e) => return Err(e.into()),
    }
    let mut buffer = vec![0; CHUNK.min(want)];
    let n = from.read_at(&mut buffer, at)?;
    to.write_all_at(&buffer[..n], to_at)?;
    Ok(n as u64)
}

static ZEROS: [u8; CHUNK] = [0; CHUNK];

/// The digest of all of `file`, from its start whatever its position. `go_on` is asked between chunks; once it says no,
/// the answer is `None`. Holes are not read, only hashed.
pub fn hash(file: &File, go_on: impl Fn() -> bool) -> io::Result<Option<Digest>> {
    hash_paced(file, |_| go_on())
}

/// The same, telling `pace` how many bytes came since it was asked last.
pub fn hash_paced(file: &File, pace: impl Fn(u64) -> bool) -> io::Result<Option<Digest>> {
    let meta = file.metadata()?;
    let size = meta.len();
    let sparse = meta.blocks() * 512 < size;
    let mut buffer = vec![0; CHUNK.min(size as usize + 1)];
    let mut digester = Digester::default();
    let (mut at, mut n) = (0, 0);
    // The stretch of data under way; the last one goes on to the end of the file, wherever that is by then.
    let mut data = (0, if sparse { 0 } else { u64::MAX });
    loop {
        if !pace(n as u64) {
            return Ok(None);
        }
        if at == data.1 {
            data = data_after(file, at, size)?.unwrap_or((size, u64::MAX));
        }
        if at < data.0 {
            n = (data.0 - at).min(CHUNK as u64) as usize;
            digester.update(&ZEROS[..n]);
            at += n as u64;
            continue;
        }
        let want = (data.1 - at).min(buffer.len() as u64) as usize;
        n = file.read_at(&mut buffer[..want], at)?;
        if n == 0 {
            return Ok(Some(digester.finish()));
        }
        digester.update(&buffer[..n]);
        at += n as u64;
    }
}

/// Reads until `buffer` is full or the file ends.
pub fn read_full(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
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
    fn holes_are_hashed_as_the_zeros_they_are() {
        let file = tempfile::tempfile().unwrap();
        for (len, data) in [(0, 0), (1, 0), (9 << 20, 3 << 20), (5_000_000, 4_999_000)] {
            file.set_len(0).unwrap();
            file.set_len(len).unwrap();
            if data > 0 {
                file.write_all_at(b"data", data).unwrap();
            }
            let mut all = vec![0; len as usize];
            file.read_exact_at(&mut all, 0).unwrap();
            let mut expected = Digester::default();
            expected.update(&all);
            assert_eq!(hash(&file, || true).unwrap(), Some(expected.finish()));
        }
    }

    #[test]
    fn hashing_stops_when_told() {
        let file = tempfile::tempfile().unwrap();
        assert!(hash(&file, || false).unwrap().is_none());
        let empty = hash(&file, || true).unwrap().unwrap();
        assert!(empty.hash.to_string().starts_with("e3b0c442"));
        assert_eq!(empty.size, 0);
    }
}
