//! Both stores are away, programs go on writing, and the disk of the data directory is small: every close(2) succeeds until
//! the disk is full, then the writers hear ENOSPC, and nothing that was acknowledged is lost. `ONCEFS_AWAY_SECS` says for how
//! long the stores are away at the least.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Cluster;
use crate::common::disk::Disk;
use crate::common::files::write_closed;
use crate::common::mount::{Mount, Place};
use crate::common::run::{counted, eventually};
use crate::common::servers::{Etcd, Mongod};
use crate::load::{Row, Told, write_until};

const WRITERS: usize = 3;
const FULL: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(60);

#[test]
fn both_stores_away_until_the_disk_is_full() {
    let away = std::env::var("ONCEFS_AWAY_SECS").map_or(0, |s| s.parse().unwrap());
    let away = Duration::from_secs(away);
    let (etcd, mongod) = (Etcd::start(), Mongod::start());
    let cluster = Cluster::of(&etcd, &mongod);
    let options: Vec<&str> = cluster.options.iter().map(String::as_str).collect();
    let place = Place::new();
    let disk = Disk::new(&place.data(), &place.work().join("disk"), 48, "mkfs.ext4");
    let m = Mount::start_at(place, &[&options[..], &["--lock-ttl", "5"]].concat());
    write_closed(&m.at("before"), b"before").unwrap();
    m.wait_stored();
    etcd.kill();
    mongod.kill();
    let begin = Instant::now();
    // Large ones fill the disk in a short time, small ones show more of it.
    let (size, pause) = match away.is_zero() {
        true => (1_500_000, Duration::ZERO),
        false => (300_000, Duration::from_millis(200)),
    };
    let (full, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let told = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|w| {
                let (full, stop, dir) = (&full, &stop, m.path());
                scope.spawn(move || {
                    let mut told = Told::default();
                    // As fast as they can until they are refused, then one try a second.
                    for round in 0.. {
                        let ended = AtomicBool::new(false);
                        let until = || full.load(Ordering::Relaxed) || stop.load(Ordering::Relaxed);
                        let one = write_until(&ended, &dir, &format!("{w}-{round}"), pause, |n| {
                            ended.store(n >= 4 || until(), Ordering::Relaxed);
                            (rand::random(), size + (n % 5) as usize * 50_000)
                        });
                        if !one.refused.is_empty() {
                            full.store(true, Ordering::Relaxed);
                        }
                        told.add(one);
                        if stop.load(Ordering::Relaxed) {
                            return told;
                        }
                        if full.load(Ordering::Relaxed) {
                            std::thread::sleep(Duration::from_secs(1));
                        }
                    }
                    unreachable!("they are told to stop");
                })
            })
            .collect();
        let deadline = Instant::now() + FULL + away;
        while !full.load(Ordering::Relaxed) || begin.elapsed() < away {
            if Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
        let mut told = Told::default();
        for writer in writers {
            told.add(writer.join().unwrap());
        }
        told
    });
    assert!(!told.refused.is_empty(), "the disk did not fill up");
    let health = m.health();
    assert_eq!(
        (&health["etcd"], &health["mongo"]),
        (&false.into(), &false.into())
    );
    for (name, e) in &told.refused {
        let why = e.raw_os_error();
        assert_eq!(why, Some(libc::ENOSPC), "{name}: {e}");
    }
    assert!(m.is_running());
    // Alone, killed and started again on the full disk: all that was acknowledged is there.
    told.check(&m.path());
    m.kill9();
    m.remount();
    told.check(&m.path());
    mongod.restart();
    etcd.restart();
    let back = Instant::now();
    eventually(SOON, "everything is stored", || {
        let health = m.health();
        let drained = health["waiting_changes"] == 0 && health["counts"]["waiting"] == 0;
        drained.then_some(())
    });
    let drained = back.elapsed();
    // The cache makes way for what is written.
    eventually(SOON, "a write", || {
        write_closed(&m.at("after"), &vec![7; 1_000_000]).ok()
    });
    m.wait_stored();
    let other = cluster.node();
    eventually(SOON, "all names", || {
        let there = |name: &String| other.at(name).exists();
        told.files.keys().all(there).then_some(())
    });
    told.check(&other.path());
    let bytes: usize = told.files.values().map(|(_, len)| len).sum();
    println!(
        "small disk: {} MB acknowledged before it was full, {} closes refused with ENOSPC, away for {:.0} s",
        bytes >> 20,
        told.refused.len(),
        begin.elapsed().as_secs_f64(),
    );
    Row {
        cell: "Both Away, disk full".into(),
        read: None,
        write: told.slowest,
        said: "etcd+mongo".into(),
        drained,
        files: told.files.len(),
    }
    .print();
    counted(
        told.files.len(),
        "files written while both stores were away",
    );
    drop(m);
    drop(disk);
}
