//! fallocate(2), holes, and what files take on the disk.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::common::files::{bytes, close, disk_usage, sha256, write_closed};
use crate::common::mount::Mount;
use crate::common::run::{becomes, needs, sh};

both_ways!(
    allocating_in_every_state,
    holes_are_found_and_kept,
    programs_that_make_holes,
    a_huge_hole_does_not_hold_up_small_files,
);

const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;

/// A file open for reading and writing that holds `content`, as it was a while after it was made.
fn opened(m: &Mount, name: &str, state: &str, content: &[u8]) -> File {
    let path = m.at(name);
    if state == "fresh" {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        file.write_all_at(content, 0).unwrap();
        return file;
    }
    write_closed(&path, content).unwrap();
    if state != "closed" {
        m.wait_stored();
    }
    // Opened for reading before: then the daemon serves the writers, too.
    let reader = (state == "read before").then(|| File::open(&path).unwrap());
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    drop(reader);
    file
}

fn allocating_in_every_state(m: &Mount) {
    const LEN: u64 = 40_000;
    let punch = FallocateFlags::PUNCH_HOLE | KEEP;
    let zero = FallocateFlags::ZERO_RANGE;
    for state in ["fresh", "closed", "stored", "read before"] {
        // Flags, place, length; the length of the file then, and whether the bytes there become zero.
        let table = [
            (FallocateFlags::empty(), 30_000, 20_000, 50_000, false),
            (KEEP, 30_000, 20_000, LEN, false),
            (punch, 5000, 12_345, LEN, true),
            (punch, 39_000, 10_000, LEN, true),
            (zero, 5000, 12_345, LEN, true),
            (zero, 39_000, 10_000, 49_000, true),
            (zero | KEEP, 39_000, 10_000, LEN, true),
        ];
        for (n, (flags, at, len, end, zeroed)) in table.into_iter().enumerate() {
            let name = format!("{state}{n}");
            let mut expected = bytes(n as u64, LEN as usize);
            let file = opened(m, &name, state, &expected);
            // Pages of it are in the kernel's cache.
            let mut got = vec![0; LEN as usize];
            file.read_exact_at(&mut got, 0).unwrap();
            let before = file.metadata().unwrap();
            becomes(Duration::from_secs(10), true, || {
                std::time::SystemTime::now()
                    > before.modified().unwrap() + Duration::from_millis(20)
            });
            fallocate(&file, flags, at, len).unwrap();
            if zeroed {
                let to = expected.len().min((at + len) as usize);
                expected[at as usize..to].fill(0);
            }
            expected.resize(end as usize, 0);
            let after = file.metadata().unwrap();
            assert_eq!(after.len(), end, "{name}");
            assert!(
                after.modified().unwrap() > before.modified().unwrap(),
                "{name}"
            );
            let mut got = vec![1; expected.len()];
            file.read_exact_at(&mut got, 0).unwrap();
            assert!(got == expected, "{name}");
            close(file).unwrap();
            assert!(fs::read(m.at(&name)).unwrap() == expected, "{name}");
        }
        for refused in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
            let file = opened(m, &format!("{state}-refused"), state, &bytes(0, 16384));
            assert_eq!(fallocate(&file, refused, 0, 4096), Err(Errno::OPNOTSUPP));
            drop(file);
            fs::remove_file(m.at(format!("{state}-refused"))).unwrap();
        }
    }
    m.wait_stored();
    write_closed(&m.at("r"), b"read only").unwrap();
    let read = File::open(m.at("r")).unwrap();
    assert_eq!(fallocate(&read, KEEP, 0, 10), Err(Errno::BADF));
    let write = OpenOptions::new().write(true).open(m.at("r")).unwrap();
    assert_eq!(fallocate(&write, KEEP, 0, 0), Err(Errno::INVAL));
}

/// 10 MiB, with 64 KiB of data in the middle.
fn with_holes(m: &Mount, name: &str) -> Vec<u8> {
    let mut content = vec![0; 10 << 20];
    content[5 << 20..(5 << 20) + 65536].copy_from_slice(&bytes(1, 65536));
    let file = File::create(m.at(name)).unwrap();
    file.set_len(10 << 20).unwrap();
    file.write_all_at(&content[5 << 20..(5 << 20) + 65536], 5 << 20)
        .unwrap();
    close(file).unwrap();
    content
}

fn check_holes(m: &Mount, name: &str, when: &str) {
    let file = File::open(m.at(name)).unwrap();
    let at = |from| seek(&file, from);
    assert_eq!(at(SeekFrom::Data(0)), Ok(5 << 20), "{when}");
    assert_eq!(at(SeekFrom::Hole(0)), Ok(0), "{when}");
    assert_eq!(at(SeekFrom::Hole(5 << 20)), Ok((5 << 20) + 65536), "{when}");
    assert_eq!(at(SeekFrom::Data(6 << 20)), Err(Errno::NXIO), "{when}");
    assert_eq!(at(SeekFrom::Hole(10 << 20)), Err(Errno::NXIO), "{when}");
    let blocks = fs::metadata(m.at(name)).unwrap().blocks();
    assert!((128..1024).contains(&blocks), "{when}: {blocks} blocks");
}

fn holes_are_found_and_kept(m: &Mount) {
    let mut content = with_holes(m, "f");
    check_holes(m, "f", "closed");
    m.wait_stored();
    check_holes(m, "f", "stored");
    assert!(fs::read(m.at("f")).unwrap() == content);
    // The first write to stored content makes a copy of it.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(m.at("f"))
        .unwrap();
    file.write_all_at(b"changed", (5 << 20) + 100).unwrap();
    content[(5 << 20) + 100..][..7].copy_from_slice(b"changed");
    check_holes(m, "f", "while it is written");
    assert_eq!(seek(&file, SeekFrom::Data(0)), Ok(5 << 20));
    close(file).unwrap();
    m.wait_stored();
    check_holes(m, "f", "stored again");
    m.kill9();
    m.remount();
    check_holes(m, "f", "after a kill");
    assert!(fs::read(m.at("f")).unwrap() == content);
    assert_eq!(
        m.contents()
            .iter()
            .filter(|h| **h == sha256(&content))
            .count(),
        1
    );
    assert!(disk_usage(&m.data().join("content")) < 1 << 20);
    // A file without a byte, and one that is nothing but a hole.
    write_closed(&m.at("empty"), b"").unwrap();
    let empty = File::open(m.at("empty")).unwrap();
    assert_eq!(seek(&empty, SeekFrom::Data(0)), Err(Errno::NXIO));
    assert_eq!(seek(&empty, SeekFrom::Hole(0)), Err(Errno::NXIO));
    assert_eq!(empty.metadata().unwrap().blocks(), 0);
    sh(&m.path(), "truncate -s 1M hole");
    m.wait_stored();
    assert_eq!(fs::metadata(m.at("hole")).unwrap().blocks(), 0);
}

fn programs_that_make_holes(m: &Mount) {
    needs(&["cp", "dd", "du", "fallocate", "tar"]);
    let content = with_holes(m, "f");
    m.wait_stored();
    let script = "
        cp f copied; cp --sparse=always f always; dd if=f of=dug bs=64k conv=sparse status=none
        cat f > filled; fallocate -d filled; tar -cSf t.tar f; mkdir x; tar -xSf t.tar -C x
        for f in copied always dug filled x/f; do cmp f $f; test $(du -k $f | cut -f1) -lt 512; done";
    sh(&m.path(), script);
    m.wait_stored();
    assert!(fs::read(m.at("x/f")).unwrap() == content);
    let script = "
        for f in f copied always dug filled x/f; do test $(du -k $f | cut -f1) -lt 512; done
        cp --sparse=never f never; cmp f never";
    sh(&m.path(), script);
    // Written without holes, it is the same content all the same.
    m.wait_stored();
    assert_eq!(m.status("never"), "duplicate");
}

fn a_huge_hole_does_not_hold_up_small_files(m: &Mount) {
    // As many as there are workers and more, each of another content.
    for n in 0..6u64 {
        let file = File::create(m.at(format!("huge{n}"))).unwrap();
        file.set_len(300 << 30).unwrap();
        file.write_all_at(b"data", n << 20).unwrap();
        close(file).unwrap();
    }
    becomes(Duration::from_secs(20), true, || {
        m.health()["queue"]["busy"].as_u64() > Some(0)
    });
    for n in 0..50u64 {
        write_closed(&m.at(format!("small{n}")), &bytes(n, 1000)).unwrap();
    }
    becomes(Duration::from_secs(60), true, || {
        (0..50).all(|n| m.status(&format!("small{n}")) == "done")
    });
    for n in 0..6 {
        assert_eq!(m.status(&format!("huge{n}")), "queued");
        assert_eq!(fs::metadata(m.at(format!("huge{n}"))).unwrap().blocks(), 8);
        fs::remove_file(m.at(format!("huge{n}"))).unwrap();
    }
    // With their names gone nobody goes on hashing them.
    m.wait_spool_empty();
    m.wait_stored();
}
