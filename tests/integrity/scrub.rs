//! `oncefs scrub`: all content is hashed in the background.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::files::{bytes, sha256, write_closed};
use crate::common::mount::Mount;
use crate::common::run::eventually;
use crate::damage::{content_path, damaged, flip, is_eio, quarantined, run, sums_path};

const SIZES: [usize; 6] = [1, 5000, 131_072, 131_073, 900_000, 3_000_000];

fn filled() -> Mount {
    let m = Mount::start(&[]);
    for (n, size) in SIZES.into_iter().enumerate() {
        write_closed(&m.at(format!("f{n}")), &bytes(n as u64, size)).unwrap();
    }
    m.wait_stored();
    m.wait_spool_empty();
    m.stop();
    m.remount();
    m
}

fn progress(m: &Mount) -> Value {
    m.health()["scrub"].clone()
}

#[test]
fn damage_is_found_put_away_and_healed() {
    let m = filled();
    let ended = run(&["scrub", "--wait", "--rate", "unlimited"], &m.path());
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stdout.contains("6 contents hashed, 0 damaged"));
    for n in [1, 4] {
        flip(&content_path(&m, &bytes(n as u64, SIZES[n])), 17, 5);
    }
    // Also what only a scrub notices: nobody reads it.
    let ended = run(&["scrub", "--wait", "--rate", "unlimited"], &m.data());
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stdout.contains("2 damaged"), "{ended:?}");
    let shown = progress(&m);
    assert_eq!(shown["damaged"], 2);
    let named = shown["hashes"].as_array().unwrap();
    for n in [1, 4] {
        assert!(named.contains(&sha256(&bytes(n as u64, SIZES[n])).into()));
        is_eio(fs::read(m.at(format!("f{n}"))));
    }
    assert_eq!((damaged(&m), quarantined(&m).len()), (2, 2));
    for n in [0, 2, 3, 5] {
        assert!(fs::read(m.at(format!("f{n}"))).unwrap() == bytes(n as u64, SIZES[n]));
    }
    for n in [1, 4] {
        write_closed(&m.at(format!("g{n}")), &bytes(n as u64, SIZES[n])).unwrap();
    }
    m.wait_stored();
    let ended = run(&["scrub", "--wait", "--rate", "1GiB"], &m.path());
    assert!(ended.status.success(), "{ended:?}");
    for (n, size) in SIZES.into_iter().enumerate() {
        assert!(fs::read(m.at(format!("f{n}"))).unwrap() == bytes(n as u64, size));
    }
}

#[test]
fn a_slow_one_is_in_nobodys_way() {
    let m = filled();
    // It would take weeks.
    let ended = run(&["scrub", "--rate", "1"], &m.path());
    assert!(ended.status.success(), "{ended:?}");
    assert_eq!(progress(&m)["running"], true);
    let ended = run(&["scrub"], &m.path());
    assert!(ended.stderr.contains("under way already"), "{ended:?}");
    // Also where the whole must be hashed before anything can be read.
    fs::remove_file(sums_path(&m, &bytes(5, SIZES[5]))).unwrap();
    for (n, size) in SIZES.into_iter().enumerate() {
        assert!(fs::read(m.at(format!("f{n}"))).unwrap() == bytes(n as u64, size));
    }
    assert_eq!(progress(&m)["running"], true);
    m.stop();
    m.remount();
    assert_eq!(progress(&m)["running"], false);
}

#[test]
fn one_can_be_stopped_and_begun_again() {
    let m = filled();
    let ended = run(&["scrub", "--stop"], &m.path());
    assert!(ended.status.success(), "{ended:?}");
    assert!(ended.stdout.contains("no scrub is under way"), "{ended:?}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| run(&["scrub", "--wait", "--rate", "1"], &m.path()));
        eventually(Duration::from_secs(20), "a scrub", || {
            (progress(&m)["running"] == true).then_some(())
        });
        let ended = run(&["scrub", "--stop"], &m.path());
        assert!(ended.status.success(), "{ended:?}");
        assert!(ended.stdout.contains("of 6 contents"), "{ended:?}");
        assert_eq!(progress(&m)["running"], false);
        let ended = waiting.join().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{ended:?}");
        assert!(ended.stderr.contains("was stopped"), "{ended:?}");
    });
    let ended = run(&["scrub", "--wait", "--rate", "unlimited"], &m.path());
    assert!(ended.stdout.contains("6 contents hashed, 0 damaged"));
}

#[test]
fn a_rate_at_which_it_would_never_end_is_refused() {
    let m = Mount::start(&[]);
    for rate in ["0", "0MiB", "much"] {
        let ended = run(&["scrub", "--rate", rate], &m.path());
        assert_eq!(ended.status.code(), Some(2), "{ended:?}");
        assert!(ended.stderr.contains("--rate"), "{ended:?}");
        assert_eq!(ended.stderr.contains("would never end"), rate != "much");
    }
}

#[test]
fn the_rate_is_kept() {
    let m = filled();
    let all: usize = SIZES.iter().sum();
    let begun = Instant::now();
    // A fifth of the contents in a second; all take four at least, with the first read ahead of the pause.
    let rate = format!("{}", all / 5);
    assert!(run(&["scrub", "--rate", &rate], &m.path()).status.success());
    eventually(Duration::from_secs(60), "the end of the scrub", || {
        (progress(&m)["running"] == false).then_some(())
    });
    assert!(begun.elapsed() > Duration::from_secs(3));
    assert_eq!(progress(&m)["bytes"], all as u64);
}

#[test]
fn without_a_daemon_it_says_so() {
    let m = filled();
    m.stop();
    let ended = run(&["scrub"], &m.data());
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.stderr.contains("no daemon answers"), "{ended:?}");
}
