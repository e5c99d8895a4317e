//! The power cut under the data directory: on ext4 and on XFS, with nothing flushed, at any moment.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::torture::{Programs, rounds};
use super::workload::{Habits, check_stored};
use super::world::Guarantee;
use crate::common::disk::Disk;
use crate::common::files::{bytes, close, files_below, seed, sha256, write_closed};
use crate::common::mount::{Mount, Place};
use crate::common::run::counted;

/// A mount whose data directory is on a disk of its own.
struct Machine {
    // In this order: the daemon lets go of the disk first.
    mount: Mount,
    disk: Disk,
    starts: u32,
}

impl Machine {
    fn new(mkfs: &str, options: &[&str]) -> Machine {
        let place = Place::new();
        let disk = Disk::new(&place.data(), &place.work().join("disk"), 320, mkfs);
        Machine {
            mount: Mount::start_at(place, options),
            disk,
            starts: 0,
        }
    }

    /// What a power cut and a new start of the machine do.
    fn restart(&mut self) {
        self.disk.cut_power();
        self.mount.kill9();
        self.disk.start_again();
        // The kernel is still the same one.
        self.starts += 1;
        let boot = self.mount.data().join("boot");
        fs::write(boot, format!("an earlier start, {}", self.starts)).unwrap();
        self.mount.remount();
    }
}

/// What a kernel does by itself: writes back any file of the data directory at any time, in no order.
fn write_back_something(m: &Mount, rng: &mut StdRng) {
    let files = files_below(&m.data());
    for _ in 0..rng.random_range(0..4) {
        let path = match rng.random_range(0..4) {
            0 => m.data().join("tree.sqlite-wal"),
            1 => m.data().join("tree.journal"),
            _ => files[rng.random_range(0..files.len())].clone(),
        };
        // It may be gone by now.
        if path.ends_with("control.sock") {
            continue;
        }
        if let Ok(file) = File::open(path) {
            let _ = file.sync_all();
        }
    }
}

fn cut(mkfs: &str, options: &[&str]) {
    let seed = seed(mkfs);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut machine = Machine::new(mkfs, options);
    let habits = [0, 5, 25, 60].map(|sync_percent| Habits {
        sync_percent,
        names: 10,
        ..Habits::default()
    });
    let rounds = rounds(20);
    let mut answered = 0;
    for round in 0..rounds {
        let m = &machine.mount;
        if round % 2 == 1 {
            // The store is out of reach for most, so that what is closed waits in the spool.
            m.kill9();
            assert!(m.try_remount(&[("FAILPOINTS", "lock=70%return(eio)")]));
        }
        let habits = habits[round % habits.len()];
        for entry in fs::read_dir(m.path()).unwrap().flatten() {
            fs::remove_dir_all(entry.path()).unwrap();
        }
        let mut programs = Programs::new(m, 2, habits, Guarantee::Synced);
        // The directories themselves.
        File::open(m.path()).unwrap().sync_all().unwrap();
        let changes = rng.random_range(1..120);
        let mut there = StdRng::seed_from_u64(seed + round as u64);
        answered += programs.run(seed + 100 * round as u64, changes, || {
            while there.random_range(0..6) > 0 {
                std::thread::sleep(Duration::from_micros(there.random_range(0..8000)));
                write_back_something(m, &mut there);
            }
        });
        std::thread::sleep(Duration::from_micros(rng.random_range(0..40_000)));
        machine.restart();
        programs.check();
        check_stored(&machine.mount, &programs.worlds);
    }
    assert!(
        !machine
            .mount
            .log()
            .contains("should be in the spool and is not")
    );
    counted(rounds, "power cuts");
    counted(answered, "changes answered before a power cut");
}

#[test]
fn ext4_passthrough() {
    cut("mkfs.ext4", &["--gc-grace", "0s"]);
}

#[test]
fn ext4_through_the_daemon() {
    cut("mkfs.ext4", &["--gc-grace", "0s", "--no-passthrough"]);
}

#[test]
fn xfs_passthrough() {
    cut("mkfs.xfs", &["--gc-grace", "0s"]);
}

#[test]
fn xfs_through_the_daemon() {
    cut("mkfs.xfs", &["--gc-grace", "0s", "--no-passthrough"]);
}

/// The namespace reached the disk and the bytes did not: the file is not there, or as it was, and no hash says otherwise.
#[test]
fn regression_bytes_that_never_reached_the_disk_are_nobodys_content() {
    let mut machine = Machine::new("mkfs.ext4", &["--no-passthrough"]);
    let m = &machine.mount;
    let (old, new) = (bytes(1, 50_000), bytes(2, 60_000));
    write_closed(&m.at("stored"), &old).unwrap();
    m.wait_stored();
    // Closed by one and still open for another, so that no worker stores them meanwhile.
    let names = ["stored", "new"].map(|name| m.at(name));
    let files = names.each_ref().map(|path| {
        let file = File::create(path).unwrap();
        // Its length lasts, its bytes do not: the worst that a disk leaves.
        file.set_len(new.len() as u64).unwrap();
        file.write_all_at(&new, 0).unwrap();
        close(file.try_clone().unwrap()).unwrap();
        file
    });
    // The names last, by way of another file.
    let other = File::create(m.at("other")).unwrap();
    other.sync_all().unwrap();
    machine.restart();
    drop(files);
    let m = &machine.mount;
    assert!(fs::read(m.at("stored")).unwrap() == old);
    assert!(!m.at("new").exists() || fs::read(m.at("new")).unwrap() == new);
    m.wait_stored();
    for hash in m.contents() {
        let path = m.data().join("content").join(&hash[..2]).join(&hash);
        assert_eq!(sha256(&fs::read(path).unwrap()), hash);
    }
}

/// What was synced goes only when what replaced it lasts as well.
#[test]
fn regression_a_synced_file_is_kept_until_its_removal_lasts() {
    let mut machine = Machine::new("mkfs.ext4", &["--no-passthrough"]);
    let m = &machine.mount;
    let content = bytes(3, 100_000);
    for name in ["removed", "replaced"] {
        let file = File::create(m.at(name)).unwrap();
        file.write_all_at(&content, 0).unwrap();
        file.sync_all().unwrap();
        // Still open, so that no worker stores it meanwhile.
        std::mem::forget(file);
    }
    write_closed(&m.at("other"), b"other").unwrap();
    fs::remove_file(m.at("removed")).unwrap();
    fs::rename(m.at("other"), m.at("replaced")).unwrap();
    // The removal of the spool files lasts, if there was one; that of the names need not.
    File::open(m.data().join("spool"))
        .unwrap()
        .sync_all()
        .unwrap();
    machine.restart();
    for name in ["removed", "replaced"] {
        let there = fs::read(machine.mount.at(name));
        let there = there.ok().filter(|there| there != b"other");
        assert!(there.is_none_or(|there| there == content), "{name}");
    }
    let listed: Vec<_> = fs::read_dir(machine.mount.path())
        .unwrap()
        .flatten()
        .collect();
    for entry in listed {
        fs::read(entry.path()).unwrap();
    }
}

/// Closed and not stored, then the daemon ended in order: that outlasts the machine.
#[test]
fn what_was_closed_before_an_orderly_end_outlasts_the_power() {
    let mut machine = Machine::new("mkfs.xfs", &[]);
    let m = &machine.mount;
    let contents: Vec<Vec<u8>> = (0..200).map(|n| bytes(n, 3000 + n as usize)).collect();
    for (n, content) in contents.iter().enumerate() {
        write_closed(&m.at(format!("f{n}")), content).unwrap();
    }
    m.stop();
    machine.restart();
    for (n, content) in contents.iter().enumerate() {
        assert!(fs::read(machine.mount.at(format!("f{n}"))).unwrap() == *content);
    }
}

/// Saved by renaming and never synced: the old file or the new one is there, whatever reached the disk.
#[test]
fn regression_a_file_replaced_by_an_unsynced_one_is_old_or_new() {
    let mut machine = Machine::new("mkfs.ext4", &["--no-passthrough"]);
    let m = &machine.mount;
    let (old, new) = (bytes(1, 40_000), bytes(2, 50_000));
    write_closed(&m.at("f"), &old).unwrap();
    write_closed(&m.at("elsewhere"), &bytes(3, 1000)).unwrap();
    m.wait_stored();
    for to in ["f", "elsewhere"] {
        let file = File::create(m.at("saved")).unwrap();
        file.write_all_at(&new, 0).unwrap();
        close(file.try_clone().unwrap()).unwrap();
        // Still open, so that no worker stores it meanwhile.
        std::mem::forget(file);
        fs::rename(m.at("saved"), m.at(to)).unwrap();
    }
    // Under a third name the content of what it replaced would be wrong.
    fs::rename(m.at("elsewhere"), m.at("moved")).unwrap();
    File::open(m.path()).unwrap().sync_all().unwrap();
    machine.restart();
    let m = &machine.mount;
    let there = fs::read(m.at("f")).unwrap();
    assert!(there == old || there == new);
    assert!(!m.at("elsewhere").exists());
    assert!(!m.at("moved").exists() || fs::read(m.at("moved")).unwrap() == new);
}
