//! Killed in every window that has a name, and failed in every one that can fail.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use oncefs::windows::{ALL, Window};

use super::torture::Programs;
use super::workload::{Habits, check_stored};
use super::world::Guarantee;
use crate::common::files::{bytes, seed, sha256, write_closed};
use crate::common::http::upload;
use crate::common::mount::Mount;
use crate::common::run::{counted, eventually};
use crate::common::servers::{fresh_database, shared_etcd, shared_mongod};

/// Passed at the start of a daemon that finds something to do from before.
const AT_START: &[&str] = &[
    "numbers",
    "replay",
    "recover",
    "recover-part",
    "recover-known",
    "recovered",
    "sweep",
];
/// Passed seldom, so that one cannot wait for the ninth time.
const SELDOM: &[&str] = &[
    "checkpoint",
    "checkpoint-done",
    "reap",
    "reap-durable",
    "reap-delete",
    "sync-known",
    "upload",
];
/// Only where the kernel writes by itself.
const PASSTHROUGH: &[&str] = &["recover-part"];
/// Only where content is fetched.
const CLUSTER: &[&str] = &["fetch", "evict"];
/// Only where machines work apart; `cluster/merges.rs` strikes there.
const APART: &[&str] = &[
    "fork",
    "forked",
    "merge-aside",
    "merge-appended",
    "merge",
    "merged",
    "merge-given-up",
];
/// Of another program than the daemon; `cluster/import.rs` strikes there.
const IMPORT: &[&str] = &["import-staged", "import"];
/// Only where the log no longer reaches back; `cluster/joining.rs` strikes there.
const JOINING: &[&str] = &["join", "joined"];
/// An error there is one of the disk, which is heard or tried again.
const CAN_FAIL: &[&str] = &[
    "close",
    "hash",
    "lock",
    "store-sync",
    "store-link",
    "store-name",
    "adopt",
    "commit",
    "copy",
    "truncate",
    "sync-data",
    "sync-mark",
    "sync-known",
    "journal-append",
    "database-commit",
];

#[test]
fn passthrough() {
    let m = Mount::start(&["--gc-grace", "0s"]);
    killed_in_all(&m, true);
    failed_in_all(&m);
}

#[test]
fn through_the_daemon() {
    let m = Mount::start(&["--gc-grace", "0s", "--no-passthrough"]);
    killed_in_all(&m, false);
    failed_in_all(&m);
}

fn struck(m: &Mount, window: &Window, how: &str) -> usize {
    m.log()
        .matches(&format!("window {}: {how}", window.name))
        .count()
}

fn killed_in_all(m: &Mount, passthrough: bool) {
    let seed = seed("windows");
    let habits = Habits {
        sync_percent: 15,
        ..Habits::default()
    };
    let mut programs = Programs::new(m, 3, habits, Guarantee::Answered);
    let mut uploads = Vec::new();
    let mut kills = 0;
    for (number, window) in ALL.iter().enumerate() {
        let elsewhere = [CLUSTER, APART, IMPORT, JOINING]
            .iter()
            .any(|names| names.contains(&window.name));
        if elsewhere || (!passthrough && PASSTHROUGH.contains(&window.name)) {
            continue;
        }
        let later = if SELDOM.contains(&window.name) || AT_START.contains(&window.name) {
            1
        } else {
            8
        };
        let skips = if window.name == "numbers" {
            // Once at a start, and then not for thousands of files.
            vec![0]
        } else {
            vec![0, later]
        };
        for skip in skips {
            let before = struck(m, window, "kill");
            let points = format!("{}={skip}*off->return(kill)", window.name);
            if AT_START.contains(&window.name) {
                // What a start finds is a matter of chance.
                for again in 0..5 {
                    killed_at_start(m, &mut programs, seed + kills + 1000 * again, &points, skip);
                    if struck(m, window, "kill") > before {
                        break;
                    }
                    m.remount();
                    programs.check();
                }
                m.kill9();
            } else {
                killed_under_load(m, &mut programs, seed + kills, &points, &mut uploads);
            }
            let after = struck(m, window, "kill");
            // Two threads may come to it at once.
            assert!(after > before, "never passed: {}", window.name);
            m.remount();
            programs.check();
            for (name, content) in &uploads {
                assert!(fs::read(m.at(name)).unwrap() == *content, "{name}");
            }
            kills += 1;
        }
        if number % 5 == 4 {
            remove_what_is_aside(m);
            uploads.clear();
            check_stored(m, &programs.worlds);
        }
    }
    remove_what_is_aside(m);
    check_stored(m, &programs.worlds);
    counted(kills, "kills in named windows");
}

/// What a close(2) could not tell the namespace is there all the same, for everybody and at once.
#[test]
fn regression_a_failed_close_hides_nothing() {
    for options in [&[][..], &["--no-passthrough"]] {
        let m = Mount::start(options);
        m.kill9();
        assert!(m.try_remount(&[("FAILPOINTS", "close=return(eio)")]));
        for n in 0..40u64 {
            let (path, content) = (m.at(format!("f{n}")), bytes(n, 5000));
            let failed = write_closed(&path, &content).unwrap_err();
            assert_eq!(failed.raw_os_error(), Some(libc::EIO));
            // A worker tells it a little later.
            assert_eq!(fs::metadata(&path).unwrap().len(), 5000, "f{n}");
            assert!(fs::read(&path).unwrap() == content, "f{n}");
        }
        m.wait_stored();
        m.kill9();
        m.remount();
        for n in 0..40u64 {
            assert!(fs::read(m.at(format!("f{n}"))).unwrap() == bytes(n, 5000));
        }
    }
}

/// Killed while the cache of a node takes something in, and while it lets something go.
#[test]
fn in_a_cluster() {
    let (database, mongodb, etcd) = (fresh_database(), shared_mongod().uri(), shared_etcd().uri());
    let servers = [
        "--mongodb",
        &mongodb,
        "--etcd",
        &etcd,
        "--database",
        &database,
    ];
    let writer = Mount::start(&servers);
    let contents: Vec<Vec<u8>> = (0..6).map(|n| bytes(n, 500_000)).collect();
    for (n, content) in contents.iter().enumerate() {
        write_closed(&writer.at(format!("f{n}")), content).unwrap();
    }
    writer.wait_stored();
    let reader = Mount::start(&[&servers[..], &["--cache-size", "1MiB"]].concat());
    for name in CLUSTER {
        let window = ALL.iter().find(|w| w.name == *name).unwrap();
        for skip in [0, 2] {
            let before = struck(&reader, window, "kill");
            reader.kill9();
            let points = format!("{name}={skip}*off->return(kill)");
            assert!(reader.try_remount(&[("FAILPOINTS", &points)]));
            let read = |n: usize| fs::read(reader.at(format!("f{n}")));
            let all = || (0..contents.len()).all(|n| read(n).is_ok());
            assert!(!(all() && all()), "never passed: {name}");
            eventually(Duration::from_secs(10), "its end", || {
                (!reader.is_running()).then_some(())
            });
            assert!(struck(&reader, window, "kill") > before);
            reader.kill9();
            reader.remount();
            for (n, content) in contents.iter().enumerate() {
                assert!(read(n).unwrap() == *content, "{name}: f{n}");
            }
            let tmp = reader.data().join("tmp");
            assert!(fs::read_dir(tmp).unwrap().next().is_none());
        }
    }
}

/// What is in the root and belongs to no program.
fn remove_what_is_aside(m: &Mount) {
    let left = fs::read_dir(m.path()).unwrap().flatten();
    for entry in left.filter(|e| e.file_type().unwrap().is_file()) {
        fs::remove_file(entry.path()).unwrap();
    }
}

/// Programs work, pause so that the daemon finds time for itself, and work again, until it is gone.
fn killed_under_load(
    m: &Mount,
    programs: &mut Programs,
    seed: u64,
    points: &str,
    uploads: &mut Vec<(String, Vec<u8>)>,
) {
    // So that it is what the programs do that leads there.
    m.wait_stored();
    m.kill9();
    let mut n = 0;
    m.try_remount(&[("FAILPOINTS", points)]);
    let deadline = Instant::now() + Duration::from_secs(40);
    while m.is_running() {
        assert!(Instant::now() < deadline, "it lives on: {points}");
        programs.run(seed + 1000 * n, 300, || {
            if points.starts_with("upload") {
                let (name, content) = (format!("upload-{seed}-{n}"), bytes(seed + n, 5000));
                let api = m.api();
                // It panics when nobody answers.
                let answer = std::panic::catch_unwind(|| upload(api, "", &name, &content).code);
                if answer.is_ok_and(|code| code == 200) {
                    uploads.push((name, content));
                }
            }
        });
        std::thread::sleep(Duration::from_millis(300));
        n += 1;
    }
    m.kill9();
}

fn killed_at_start(m: &Mount, programs: &mut Programs, seed: u64, points: &str, skip: usize) {
    // Open, written and not closed: for recovery to find. A program keeps them open over the daemon's end.
    let open: Vec<_> = (0..=skip)
        .map(|n| {
            let path = m.at(format!("aside-{seed}-{n}"));
            let file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .open(path);
            let file = file.unwrap();
            file.write_all_at(b"written and not closed", 0).unwrap();
            file
        })
        .collect();
    let changes = 200;
    programs.run(seed, changes, || ());
    for file in &open {
        // A process that another test starts has them for a moment, and closes them.
        file.write_all_at(b"and more", 100).unwrap();
    }
    m.kill9();
    for n in 0..=skip {
        let orphan = bytes(seed * 10 + n as u64, 3000);
        let hash = sha256(&orphan);
        fs::write(
            m.data().join("content").join(&hash[..2]).join(&hash),
            orphan,
        )
        .unwrap();
    }
    let mut points = points.to_owned();
    if skip > 0
        && !points.starts_with("numbers")
        && (points.starts_with("recover=") || points.starts_with("recovered="))
    {
        // Passed once in a start: the second time is in the next one.
        points = points.replace(&format!("{skip}*off->"), "");
        m.remount();
        m.kill9();
    }
    if m.try_remount(&[("FAILPOINTS", &points)]) {
        // What a start does beside the mount comes a little later.
        let deadline = Instant::now() + Duration::from_secs(5);
        while m.is_running() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        m.kill9();
    }
    drop(open);
}

/// The disk fails in each window for a while: the caller hears of it or the daemon tries again, nothing answered is lost,
/// and when the disk is well again so is everything.
fn failed_in_all(m: &Mount) {
    let seed = seed("failing windows");
    let habits = Habits {
        sync_percent: 15,
        ..Habits::default()
    };
    let mut programs = Programs::new(m, 3, habits, Guarantee::Answered);
    let mut errors = 0;
    for name in CAN_FAIL {
        let window = ALL.iter().find(|w| w.name == *name).unwrap();
        for how in ["enospc", "eio"] {
            let before = struck(m, window, how);
            let points = format!("{name}=2*off->3*return({how})->off");
            m.kill9();
            assert!(m.try_remount(&[("FAILPOINTS", &points)]));
            let deadline = Instant::now() + Duration::from_secs(40);
            while struck(m, window, how) < before + 3 {
                assert!(Instant::now() < deadline, "never passed: {name}");
                programs.run(seed + errors, 60, || ());
                assert!(m.is_running());
                programs.check();
                errors += 1;
            }
            programs.check();
            check_stored(m, &programs.worlds);
        }
    }
}
