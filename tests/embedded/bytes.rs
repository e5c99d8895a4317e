//! Reading and writing.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::common::files::{self, close, sha256, write_closed, xattr};
use crate::common::map::Map;
use crate::common::mount::Mount;

both_ways!(
    truncating_and_appending,
    random_writes,
    syncing,
    mappings,
    open_without_a_name,
    sparse_files,
    copying_ranges,
);

fn reopen(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// truncate(2), with no descriptor.
fn truncate(path: &Path, len: i64) {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: a string that ends with NUL.
    assert_eq!(unsafe { libc::truncate(path.as_ptr(), len) }, 0);
}

fn truncating_and_appending(m: &Mount) {
    let path = m.at("file");
    write_closed(&path, b"0123456789").unwrap();
    for stored in [false, true] {
        let settle = || {
            if stored {
                m.wait_stored();
            }
        };
        settle();
        truncate(&path, 4);
        assert_eq!(fs::read(&path).unwrap(), b"0123");
        settle();
        truncate(&path, 6);
        assert_eq!(fs::read(&path).unwrap(), b"0123\0\0");
        settle();
        let mut append = OpenOptions::new().append(true).open(&path).unwrap();
        append.write_all(b"ab").unwrap();
        let mut other = OpenOptions::new().append(true).open(&path).unwrap();
        other.write_all(b"cd").unwrap();
        append.write_all(b"ef").unwrap();
        close(append).unwrap();
        close(other).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"0123\0\0abcdef");
        settle();
        let open = reopen(&path);
        open.set_len(3).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 3);
        open.write_all_at(b"zz", 5).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 7);
        close(open).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"012\0\0zz");
        settle();
        // Opened for writing and truncated, nothing written.
        close(File::create(&path).unwrap()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        settle();
        write_closed(&path, b"0123456789").unwrap();
    }
    m.wait_stored();
    let before = fs::metadata(&path).unwrap();
    // Opened for writing, nothing done: nothing changes.
    close(reopen(&path)).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!(before.mtime_nsec(), after.mtime_nsec());
    assert_ne!(m.status("file"), "queued");
    assert_eq!(
        xattr(&path, "user.oncefs.sha256").unwrap(),
        sha256(b"0123456789")
    );
}

/// Random operations, compared with a vector of bytes after each reopening.
fn random_writes(m: &Mount) {
    let mut rng = StdRng::seed_from_u64(files::seed("random writes"));
    let path = m.at("file");
    write_closed(&path, b"").unwrap();
    let mut model: Vec<u8> = Vec::new();
    for round in 0..40 {
        let file = reopen(&path);
        for _ in 0..rng.random_range(0..12) {
            let at = rng.random_range(0..600_000usize);
            let len = rng.random_range(0..150_000usize);
            match rng.random_range(0..10) {
                0 => {
                    file.set_len(at as u64).unwrap();
                    model.resize(at, 0);
                }
                1..=5 => {
                    let data = files::bytes(rng.random(), len);
                    file.write_all_at(&data, at as u64).unwrap();
                    if len > 0 {
                        model.resize(model.len().max(at + len), 0);
                        model[at..at + len].copy_from_slice(&data);
                    }
                }
                _ => {
                    let mut got = vec![0; len];
                    let n = read_at_most(&file, &mut got, at as u64);
                    let expected = model.get(at..).unwrap_or_default();
                    assert!(
                        got[..n] == expected[..n.min(expected.len())],
                        "round {round}"
                    );
                    assert_eq!(n, expected.len().min(len), "round {round}");
                }
            }
        }
        assert_eq!(file.metadata().unwrap().len(), model.len() as u64);
        close(file).unwrap();
        if round % 4 == 0 {
            m.wait_stored();
            assert_eq!(xattr(&path, "user.oncefs.sha256").unwrap(), sha256(&model));
        }
        assert!(fs::read(&path).unwrap() == model, "round {round}");
    }
}

fn read_at_most(file: &File, buffer: &mut [u8], at: u64) -> usize {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64).unwrap() {
            0 => break,
            n => done += n,
        }
    }
    done
}

fn syncing(m: &Mount) {
    for n in 0..10u64 {
        let path = m.at(format!("f{n}"));
        let mut file = File::create(&path).unwrap();
        file.write_all(&files::bytes(n, 10_000)).unwrap();
        file.sync_data().unwrap();
        file.write_all(b"more").unwrap();
        file.sync_all().unwrap();
        assert_eq!(m.status(&format!("f{n}")), "writing");
        close(file).unwrap();
    }
    File::open(m.path()).unwrap().sync_all().unwrap();
    rustix::fs::syncfs(File::open(m.path()).unwrap()).unwrap();
    m.wait_stored();
    // Syncing what is only open for reading.
    File::open(m.at("f3")).unwrap().sync_all().unwrap();
}

fn mappings(m: &Mount) {
    const LEN: usize = 100_000;
    let write = libc::PROT_READ | libc::PROT_WRITE;
    let path = m.at("file");
    write_closed(&path, &files::bytes(1, LEN)).unwrap();
    m.wait_stored();
    let mut expected = files::bytes(1, LEN);

    // Read only, of stored content.
    let file = File::open(&path).unwrap();
    let mut map = Map::new(&file, LEN, libc::PROT_READ);
    drop(file);
    assert!(*map.bytes() == *expected);
    drop(map);

    // Written through the mapping, synced, seen by read(2) in another descriptor.
    let file = reopen(&path);
    let mut map = Map::new(&file, LEN, write);
    map.bytes()[10..20].copy_from_slice(b"0123456789");
    expected[10..20].copy_from_slice(b"0123456789");
    map.sync();
    assert!(fs::read(&path).unwrap() == expected);
    // Written by write(2), seen in the mapping.
    file.write_all_at(b"xyz", 70_000).unwrap();
    expected[70_000..70_003].copy_from_slice(b"xyz");
    assert!(*map.bytes() == *expected);
    // Written after the close of the descriptor: the mapping keeps the file open.
    close(file).unwrap();
    map.bytes()[LEN - 4..].copy_from_slice(b"late");
    expected[LEN - 4..].copy_from_slice(b"late");
    drop(map);
    m.wait_stored();
    assert!(fs::read(&path).unwrap() == expected);
    assert_eq!(
        xattr(&path, "user.oncefs.sha256").unwrap(),
        sha256(&expected)
    );

    // A new file, made large, filled through a mapping only.
    let new = m.at("new");
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&new)
        .unwrap();
    file.set_len(LEN as u64).unwrap();
    let mut map = Map::new(&file, LEN, write);
    close(file).unwrap();
    map.bytes().copy_from_slice(&expected);
    drop(map);
    m.wait_stored();
    assert!(fs::read(&new).unwrap() == expected);
    assert_eq!(
        xattr(&new, "user.oncefs.sha256").unwrap(),
        sha256(&expected)
    );
}

fn open_without_a_name(m: &Mount) {
    // Made and removed while open.
    let path = m.at("temporary");
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    file.write_all(b"before").unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all(b" after").unwrap();
    file.set_len(9).unwrap();
    file.sync_all().unwrap();
    file.rewind().unwrap();
    assert_eq!(std::io::read_to_string(&mut file).unwrap(), "before af");
    assert_eq!(file.metadata().unwrap().len(), 9);
    drop(file);
    // Stored, opened, removed, read and written.
    write_closed(&path, &files::bytes(5, 300_000)).unwrap();
    m.wait_stored();
    let reader = File::open(&path).unwrap();
    let writer = reopen(&path);
    fs::remove_file(&path).unwrap();
    // The name is free for something else meanwhile.
    write_closed(&path, b"something else").unwrap();
    let mut expected = files::bytes(5, 300_000);
    let mut got = vec![0; 300_000];
    reader.read_exact_at(&mut got, 0).unwrap();
    assert!(got == expected);
    writer.write_all_at(b"changed", 1000).unwrap();
    expected[1000..1007].copy_from_slice(b"changed");
    reader.read_exact_at(&mut got, 0).unwrap();
    assert!(got == expected);
    drop((reader, writer));
    assert_eq!(fs::read(&path).unwrap(), b"something else");
    m.wait_stored();
    m.wait_spool_empty();
}

fn sparse_files(m: &Mount) {
    let path = m.at("sparse");
    let mut file = File::create(&path).unwrap();
    file.set_len(64 << 20).unwrap();
    file.write_all_at(b"middle", 32 << 20).unwrap();
    file.seek(SeekFrom::Start((64 << 20) + 5)).unwrap();
    file.write_all(b"end").unwrap();
    close(file).unwrap();
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(meta.len(), (64 << 20) + 8);
    m.wait_stored();
    assert!(
        files::disk_usage(&m.data()) < 16 << 20,
        "holes take no room: {}",
        files::disk_usage(&m.data())
    );
    let file = File::open(&path).unwrap();
    let mut got = [9; 10];
    file.read_exact_at(&mut got, (32 << 20) - 2).unwrap();
    assert_eq!(&got, b"\0\0middle\0\0");
    let mut hasher = <sha2::Sha256 as sha2::Digest>::new();
    std::io::copy(&mut (&file).take(1 << 30), &mut hasher).unwrap();
    let hash = hex::encode(sha2::Digest::finalize(hasher));
    assert_eq!(xattr(&path, "user.oncefs.sha256").unwrap(), hash);
    let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(0)).unwrap();
    assert!(data <= 32 << 20);
}

fn copying_ranges(m: &Mount) {
    let content = files::bytes(9, 2_000_000);
    write_closed(&m.at("a"), &content).unwrap();
    for stored in [false, true] {
        if stored {
            m.wait_stored();
        }
        // std uses copy_file_range(2).
        let to = m.at(format!("b{stored}"));
        assert_eq!(fs::copy(m.at("a"), &to).unwrap(), 2_000_000);
        assert!(fs::read(&to).unwrap() == content);
    }
    m.wait_stored();
    assert_eq!(m.contents().len(), 1);
    // Room made beforehand.
    let file = File::create(m.at("room")).unwrap();
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 10_000).unwrap();
    close(file).unwrap();
    assert_eq!(fs::read(m.at("room")).unwrap(), vec![0; 10_000]);
}
