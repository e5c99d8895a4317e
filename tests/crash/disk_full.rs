//! The disk of the data directory is full, at every step of what programs do: they hear of it, nothing that was answered
//! is lost, and everything works again when there is space.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::torture::Programs;
use super::workload::{Habits, check_stored};
use super::world::Guarantee;
use crate::common::disk::Disk;
use crate::common::files::{bytes, seed, write_closed};
use crate::common::mount::{Mount, Place, oncefs_ended};
use crate::common::run::{counted, eventually};

fn small(mkfs: &str, options: &[&str]) -> (Mount, Disk) {
    let place = Place::new();
    let disk = Disk::new(&place.data(), &place.work().join("disk"), 100, mkfs);
    let m = Mount::start_at(place, options);
    reserved(&m);
    (m, disk)
}

/// Waits until there is space to remove files with.
fn reserved(m: &Mount) {
    eventually(Duration::from_secs(20), "space to be set aside", || {
        m.data().join("tree.reserve").exists().then_some(())
    });
}

/// Something else takes all space of the disk but this much.
fn take_space(m: &Mount, left: u64) {
    let disk = statvfs(m.data().as_path()).unwrap();
    let free = disk.f_bavail * disk.f_frsize;
    let ballast = File::create(m.data().join("ballast")).unwrap();
    if free > left {
        fallocate(&ballast, FallocateFlags::empty(), 0, free - left).unwrap();
    }
}

/// Something else takes every block of the disk.
fn take_all_space(m: &Mount) {
    let ballast = File::create(m.data().join("ballast")).unwrap();
    let mut at = 0;
    for size in [1 << 20, 64 << 10, 4 << 10] {
        while fallocate(&ballast, FallocateFlags::empty(), at, size).is_ok() {
            at += size;
        }
    }
}

fn full(options: &[&str]) {
    let seed = seed("full");
    let (m, _disk) = small("mkfs.ext4", options);
    let mut programs = Programs::new(&m, 3, Habits::default(), Guarantee::Answered);
    let mut refused = 0;
    let lefts = [0, 4, 8, 16, 40, 100, 300, 1000].map(|k| k << 10);
    for (n, left) in (0u64..).zip(lefts) {
        if n % 4 > 1 {
            // Else the disk is full again at once, with nothing set aside.
            reserved(&m);
        }
        take_space(&m, left);
        for part in 0..4 {
            programs.run(seed + 10 * n + part, 60, || ());
            for error in programs.errors.drain(..) {
                assert_eq!(error, Some(libc::ENOSPC), "with {left} bytes left");
                refused += 1;
            }
            assert!(m.is_running());
            programs.check();
        }
        if n % 2 == 1 {
            // It starts on a full disk, too.
            m.kill9();
            m.remount();
            programs.check();
        }
        fs::remove_file(m.data().join("ballast")).unwrap();
        programs.run(seed + 10 * n + 9, 60, || ());
        assert_eq!(programs.errors, [], "with space again after {left} bytes");
        programs.check();
        check_stored(&m, &programs.worlds);
    }
    assert!(refused > 0, "the disk was never full");
    counted(refused, "refusals of a full disk");
}

#[test]
fn passthrough() {
    full(&["--gc-grace", "0s"]);
}

#[test]
fn through_the_daemon() {
    full(&["--gc-grace", "0s", "--no-passthrough"]);
}

#[test]
fn without_inodes() {
    let (m, _disk) = small("mkfs.ext4 -N 700", &["--gc-grace", "0s"]);
    let mut closed = Vec::new();
    let error = (0..2000).find_map(|n| {
        let content = bytes(n, 500);
        match write_closed(&m.at(format!("f{n}")), &content) {
            Ok(()) => closed.push((format!("f{n}"), content)),
            Err(e) => return Some(e),
        }
        None
    });
    let error = error.expect("there is no end of inodes").raw_os_error();
    assert_eq!(error, Some(libc::ENOSPC));
    assert!(closed.len() > 100);
    m.kill9();
    m.remount();
    for (name, content) in &closed {
        assert!(fs::read(m.at(name)).unwrap() == *content, "{name}");
    }
    m.wait_stored();
    for (name, _) in closed.drain(..closed.len() / 2) {
        fs::remove_file(m.at(name)).unwrap();
    }
    eventually(Duration::from_secs(30), "an inode", || {
        write_closed(&m.at("again"), b"again").ok()
    });
    m.wait_stored();
    for (name, content) in &closed {
        assert!(fs::read(m.at(name)).unwrap() == *content, "{name}");
    }
}

/// What frees space, and what only looks, works on a full disk.
#[test]
fn regression_a_full_disk_can_be_collected_and_inspected() {
    let (m, _disk) = small("mkfs.ext4 -m 0", &[]);
    for n in 0..300 {
        write_closed(&m.at(format!("f{n}")), &bytes(n, 3000)).unwrap();
    }
    m.wait_stored();
    let remove = |names: std::ops::Range<u64>| {
        for n in names {
            fs::remove_file(m.at(format!("f{n}"))).unwrap();
        }
    };
    remove(0..100);
    reserved(&m);
    take_all_space(&m);
    let args = ["gc", "--delete", "--grace", "0s"];
    let ended = oncefs_ended(args.map(PathBuf::from).into_iter().chain([m.path()]));
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stdout.contains("100 removed"), "{ended:?}");
    assert_eq!(m.contents().len(), 200);
    fs::remove_file(m.data().join("ballast")).unwrap();
    reserved(&m);
    take_all_space(&m);
    remove(100..200);
    m.kill9();
    let ended = oncefs_ended([PathBuf::from("fsck"), m.data()]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    m.remount();
    assert_eq!(fs::read_dir(m.path()).unwrap().count(), 100);
}
