//! Killed at any moment, started again in the same place: nothing acknowledged is lost.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::common::files::{bytes, close, seed, sha256, write_closed, xattr};
use crate::common::mount::{Mount, is_mounted};

both_ways!(
    stopping_and_starting,
    killed_while_copying,
    killed_while_storing,
    killed_while_writing,
    regression_a_writer_that_outlives_the_daemon,
);

fn stopping_and_starting(m: &Mount) {
    fs::create_dir_all(m.at("d/e")).unwrap();
    write_closed(&m.at("d/e/f"), &bytes(1, 100_000)).unwrap();
    std::os::unix::fs::symlink("d/e/f", m.at("s")).unwrap();
    fs::hard_link(m.at("d/e/f"), m.at("h")).unwrap();
    rustix::fs::setxattr(m.at("h"), "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
    let ino = fs::metadata(m.at("h")).unwrap().ino();
    for round in 0..3u64 {
        write_closed(&m.at(format!("r{round}")), &bytes(round, 3_000_000)).unwrap();
        m.stop();
        assert!(fs::read_dir(m.path()).unwrap().next().is_none());
        m.remount();
        let meta = fs::metadata(m.at("s")).unwrap();
        assert_eq!((meta.ino(), meta.nlink(), meta.len()), (ino, 2, 100_000));
        assert_eq!(xattr(&m.at("d/e/f"), "user.x").unwrap(), "1");
        assert!(fs::read(m.at("h")).unwrap() == bytes(1, 100_000));
        for earlier in 0..=round {
            assert!(fs::read(m.at(format!("r{earlier}"))).unwrap() == bytes(earlier, 3_000_000));
        }
    }
    m.wait_stored();
    m.wait_spool_empty();
}

/// Copies files until the daemon dies; returns the hash of each whose close succeeded.
fn copy_until_killed(
    m: &Mount,
    round: u64,
    seed: u64,
    done: &AtomicUsize,
) -> HashMap<String, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut closed = HashMap::new();
    for n in 0..2000 {
        let len = if n % 50 == 0 {
            400_000
        } else {
            rng.random_range(0..20_000)
        };
        // Every fourth is a duplicate of an earlier one.
        let content = bytes(seed + n / 4 * 4 + u64::from(n % 4 > 1), len);
        let name = format!("r{round}-{n}");
        if write_closed(&m.at(&name), &content).is_err() {
            break;
        }
        closed.insert(name, sha256(&content));
        done.fetch_add(1, Ordering::Relaxed);
    }
    closed
}

fn killed_while_copying(m: &Mount) {
    let seed = seed("killed while copying");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut closed = HashMap::new();
    for round in 0..4 {
        let done = AtomicUsize::new(0);
        let kill_at = rng.random_range(20..700);
        let pause = Duration::from_micros(rng.random_range(0..3000));
        let new = std::thread::scope(|scope| {
            let copying = scope.spawn(|| copy_until_killed(m, round, seed + 10_000 * round, &done));
            while done.load(Ordering::Relaxed) < kill_at && !copying.is_finished() {
                std::thread::yield_now();
            }
            std::thread::sleep(pause);
            m.kill9();
            copying.join().unwrap()
        });
        assert!(new.len() >= kill_at, "copying stopped before the kill");
        println!("round {round}: killed after {} files", new.len());
        closed.extend(new);
        assert!(is_mounted(&m.path()), "what a kill leaves behind");
        m.remount();
        // At once, while the workers are at it, and again when all is stored.
        for stored in [false, true] {
            if stored {
                m.wait_stored();
            }
            for (name, hash) in &closed {
                assert_eq!(sha256(&fs::read(m.at(name)).unwrap()), *hash, "{name}");
            }
        }
        m.wait_spool_empty();
    }
    for (name, hash) in &closed {
        assert_eq!(
            xattr(&m.at(name), "user.oncefs.sha256").as_ref(),
            Some(hash),
            "{name}"
        );
    }
    assert!(!m.log().contains("should be in the spool and is not"));
}

fn killed_while_storing(m: &Mount) {
    let mut rng = StdRng::seed_from_u64(seed("killed while storing"));
    for round in 0..4u64 {
        for n in 0..3 {
            // Two of the three have the same content.
            let content = bytes(100 * round + n / 2, 12 << 20);
            write_closed(&m.at(format!("r{round}-{n}")), &content).unwrap();
        }
        std::thread::sleep(Duration::from_millis(rng.random_range(0..250)));
        m.kill9();
        m.remount();
        for n in 0..3 {
            let path = m.at(format!("r{round}-{n}"));
            assert!(fs::read(&path).unwrap() == bytes(100 * round + n / 2, 12 << 20));
        }
    }
    m.wait_stored();
    m.wait_spool_empty();
    assert_eq!(m.contents().len(), 8);
    assert!(fs::read_dir(m.data().join("tmp")).unwrap().next().is_none());
}

/// A file that is being written when the daemon is killed keeps what was there before or what was written, and goes on.
fn killed_while_writing(m: &Mount) {
    const PART: usize = 64 << 10;
    let mut rng = StdRng::seed_from_u64(seed("killed while writing"));
    let path = m.at("file");
    let mut before = bytes(7, 10 * PART);
    write_closed(&path, &before).unwrap();
    m.wait_stored();
    let ino = fs::metadata(&path).unwrap().ino();
    for round in 0..3u64 {
        let written = AtomicUsize::new(0);
        let kill_at = rng.random_range(1..200);
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                for n in 0..10_000 {
                    let part = bytes(round * 100_000 + n as u64, PART);
                    if file.write_all_at(&part, (n % 40 * PART) as u64).is_err() {
                        break;
                    }
                    written.store(n + 1, Ordering::Relaxed);
                    if n % 8 == 7 && file.sync_all().is_err() {
                        break;
                    }
                }
            });
            while written.load(Ordering::Relaxed) < kill_at && !writing.is_finished() {
                std::thread::yield_now();
            }
            m.kill9();
        });
        m.remount();
        let now = fs::read(&path).unwrap();
        let known: HashMap<Vec<u8>, ()> = (0..10_000u64
            .min(written.load(Ordering::Relaxed) as u64 + 2))
            .map(|n| (bytes(round * 100_000 + n, PART), ()))
            .chain(before.chunks(PART).map(|c| (c.to_vec(), ())))
            .collect();
        assert!(now.len() >= before.len());
        for (n, part) in now.chunks(PART).enumerate() {
            let whole = known.contains_key(part);
            assert!(
                whole || part.len() < PART || n == written.load(Ordering::Relaxed) % 40,
                "part {n}"
            );
        }
        // The inode is the same one, and works.
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.ino(), meta.nlink()), (ino, 1));
        before = bytes(1000 + round, 12 * PART);
        write_closed(&path, &before).unwrap();
        assert!(fs::read(&path).unwrap() == before);
        m.wait_stored();
        assert_eq!(xattr(&path, "user.oncefs.sha256").unwrap(), sha256(&before));
    }
    // Made, written, never closed.
    let mut file = File::create(m.at("new")).unwrap();
    file.write_all(b"some").unwrap();
    m.kill9();
    drop(file);
    m.remount();
    let now = fs::read(m.at("new")).unwrap();
    assert!(now == b"some" || now.is_empty());
    let mut file = OpenOptions::new().append(true).open(m.at("new")).unwrap();
    file.write_all(b" more").unwrap();
    close(file).unwrap();
    assert!(fs::read(m.at("new")).unwrap().ends_with(b" more"));
    m.wait_stored();
    m.wait_spool_empty();
}

/// With passthrough the kernel lets a program write on after the daemon was killed. That must not reach what is stored.
fn regression_a_writer_that_outlives_the_daemon(m: &Mount) {
    write_closed(&m.at("before"), &bytes(1, 100_000)).unwrap();
    m.wait_stored();
    let files = ["made", "before", "closed"].map(|name| {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(m.at(name))
            .unwrap();
        file.write_all_at(&bytes(2, 50_000), 1000).unwrap();
        file
    });
    // A close that leaves another descriptor open: acknowledged, and still written to.
    close(files[2].try_clone().unwrap()).unwrap();
    m.kill9();
    let _ = files[0].write_all_at(b"after the kill", 2000);
    m.remount();
    m.wait_stored();
    let names = ["made", "before", "closed"];
    let read = || names.map(|name| fs::read(m.at(name)).unwrap());
    let now = read();
    for file in &files {
        let _ = file.write_all_at(b"much too late", 3000);
    }
    drop(files);
    m.stop();
    m.remount();
    assert!(read() == now);
    for hash in m.contents() {
        let path = m.data().join("content").join(&hash[..2]).join(&hash);
        assert_eq!(sha256(&fs::read(path).unwrap()), hash);
    }
}
