//! `oncefs fsck`, at a data directory and at a mount.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::common::files::{bytes, close, names, sha256, write_closed};
use crate::common::mount::Mount;
use crate::common::run::becomes;
use crate::damage::{
    content_path, damaged, flip, is_eio, quarantined, run, set_len, sql, sums_path,
};

const LARGE: usize = 700_000;

/// A stored tree with directories, links, duplicates and attributes.
fn tree() -> Mount {
    let m = Mount::start(&[]);
    fs::create_dir_all(m.at("d/e/f")).unwrap();
    write_closed(&m.at("d/small"), &bytes(1, 3000)).unwrap();
    write_closed(&m.at("d/e/same"), &bytes(1, 3000)).unwrap();
    write_closed(&m.at("d/e/large"), &bytes(2, LARGE)).unwrap();
    write_closed(&m.at("empty"), b"").unwrap();
    fs::hard_link(m.at("d/small"), m.at("link")).unwrap();
    std::os::unix::fs::symlink("d/small", m.at("symlink")).unwrap();
    rustix::fs::setxattr(
        m.at("empty"),
        "user.x",
        b"1",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    m.wait_stored();
    m.wait_spool_empty();
    m
}

/// Ends with this code, and says this.
fn ends(args: &[&str], target: &Path, code: i32, says: &[&str]) {
    let ended = run(&[&["fsck"], args].concat(), target);
    let said = format!("{}{}", ended.stdout, ended.stderr);
    assert_eq!(ended.status.code(), Some(code), "{args:?}: {said}");
    for text in says {
        assert!(said.contains(text), "{text} in: {said}");
    }
}

#[test]
fn a_sound_tree_is_clean_mounted_or_not() {
    let m = tree();
    for target in [m.path(), m.data()] {
        ends(&[], &target, 0, &["0 errors"]);
        ends(&["--data", "-y"], &target, 0, &["3 hashed"]);
    }
    m.stop();
    ends(
        &["--data", "--repair"],
        &m.data(),
        0,
        &["3 hashed: 0 errors"],
    );
    let json = run(&["fsck", "--json"], &m.data()).stdout;
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["findings"].as_array().unwrap().len(), 0, "{json}");
    m.remount();
    assert!(fs::read(m.at("d/e/large")).unwrap() == bytes(2, LARGE));
}

#[test]
fn a_killed_mount_is_clean() {
    let m = tree();
    for n in 0..200 {
        write_closed(&m.at(format!("d/n{n}")), &bytes(n, 2000)).unwrap();
    }
    m.kill9();
    ends(&["--data"], &m.data(), 0, &["0 errors"]);
    m.remount();
    m.wait_stored();
    ends(&["--data"], &m.path(), 0, &["0 errors"]);
    for n in 0..200 {
        assert!(fs::read(m.at(format!("d/n{n}"))).unwrap() == bytes(n, 2000));
    }
}

#[test]
fn a_busy_mount_is_clean() {
    let m = Mount::start(&["--gc-grace", "0s"]);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            for _ in 0..8 {
                ends(&["--data"], &m.path(), 0, &["0 errors"]);
            }
        });
        let mut n = 0;
        while !looking.is_finished() {
            write_closed(&m.at(format!("f{}", n % 50)), &bytes(n, 5000)).unwrap();
            if n % 3 == 0 {
                fs::remove_file(m.at(format!("f{}", n % 50))).unwrap();
            }
            n += 1;
        }
        looking.join().unwrap();
    });
}

#[test]
fn contradicting_tables_are_repaired() {
    let m = tree();
    m.stop();
    let ino = |name: &str| format!("(SELECT ino FROM dentries WHERE name=CAST('{name}' AS BLOB))");
    sql(
        &m,
        &format!(
            "UPDATE inodes SET nlink=9 WHERE ino={}; UPDATE inodes SET size=5 WHERE ino={};
             UPDATE contents SET unreferenced_at=1 WHERE size=3000; DELETE FROM contents WHERE size={LARGE};
             DELETE FROM dentries WHERE name=CAST('e' AS BLOB);",
            ino("small"),
            ino("same")
        ),
    );
    ends(
        &[],
        &m.data(),
        4,
        &["link count 9", "no path leads to", "not known"],
    );
    // Not while it is mounted.
    m.remount();
    ends(&["-y"], &m.path(), 4, &["unmount first"]);
    m.stop();
    ends(
        &["-y"],
        &m.data(),
        1,
        &["repaired", "link count 9, should be 2"],
    );
    ends(&["--data"], &m.data(), 0, &["3 hashed"]);
    m.remount();
    assert_eq!(fs::metadata(m.at("d/small")).unwrap().nlink(), 2);
    let found = names(&m.at("lost+found"));
    assert_eq!(found.len(), 1, "{found:?}");
    let e = m.at("lost+found").join(&found[0]);
    assert_eq!(names(&e), ["f", "large", "same"]);
    assert!(fs::read(e.join("large")).unwrap() == bytes(2, LARGE));
    assert!(fs::read(e.join("same")).unwrap() == bytes(1, 3000));
    // It is a tree like any other.
    fs::rename(e, m.at("d/e")).unwrap();
    fs::remove_dir(m.at("lost+found")).unwrap();
    write_closed(&m.at("new"), b"new").unwrap();
    ends(&[], &m.path(), 0, &["0 errors"]);
}

#[test]
fn content_that_is_missing_or_cut_is_named_with_its_paths() {
    let m = tree();
    fs::remove_file(content_path(&m, &bytes(1, 3000))).unwrap();
    set_len(&content_path(&m, &bytes(2, LARGE)), 1000);
    let names = ["d/small", "d/e/same", "link", "d/e/large", "is missing"];
    ends(&[], &m.path(), 4, &names);
    m.stop();
    let names = &names[..3];
    ends(&[], &m.data(), 4, names);
    m.remount();
    for name in ["d/small", "link", "d/e/large"] {
        assert_eq!(m.status(name), "failed");
    }
    is_eio(fs::read(m.at("d/small")));
    write_closed(&m.at("again"), &bytes(1, 3000)).unwrap();
    write_closed(&m.at("again2"), &bytes(2, LARGE)).unwrap();
    m.wait_stored();
    ends(&["--data"], &m.path(), 0, &["0 errors"]);
    assert!(fs::read(m.at("d/e/large")).unwrap() == bytes(2, LARGE));
}

#[test]
fn damaged_content_is_found_with_data_alone() {
    for mounted in [true, false] {
        let m = tree();
        let target = if mounted { m.path() } else { m.data() };
        flip(&content_path(&m, &bytes(2, LARGE)), 600_000, 2);
        if !mounted {
            m.stop();
        }
        ends(&[], &target, 0, &["0 errors"]);
        let hash = sha256(&bytes(2, LARGE));
        ends(
            &["--data", "-y"],
            &target,
            4,
            &[&hash, "d/e/large", "quarantine"],
        );
        assert_eq!(quarantined(&m).len(), 1);
        if !mounted {
            m.remount();
        }
        is_damaged(&m, "d/e/large");
        m.stop();
        m.remount();
        is_damaged(&m, "d/e/large");
        is_eio(fs::read(m.at("d/e/large")));
        write_closed(&m.at("again"), &bytes(2, LARGE)).unwrap();
        m.wait_stored();
        assert!(fs::read(m.at("d/e/large")).unwrap() == bytes(2, LARGE));
    }
}

/// The daemon knows, and says so to whoever asks.
fn is_damaged(m: &Mount, name: &str) {
    assert_eq!((damaged(m), m.status(name).as_str()), (1, "failed"));
    let said = run(&["status"], &m.at(name)).stdout;
    assert!(said.contains("damaged, and in quarantine"), "{said}");
    let ended = run(&["wait"], &m.path());
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(ended.stderr.contains(name), "{ended:?}");
}

/// Without --repair nothing is moved.
#[test]
fn looking_changes_nothing() {
    let m = tree();
    m.stop();
    flip(&content_path(&m, &bytes(2, LARGE)), 600_000, 2);
    ends(&["--data"], &m.data(), 4, &["is damaged"]);
    assert!(content_path(&m, &bytes(2, LARGE)).exists());
    assert_eq!(quarantined(&m).len(), 0);
}

#[test]
fn sums_are_made_anew_and_leftovers_are_notes() {
    let m = tree();
    m.stop();
    let sums = sums_path(&m, &bytes(2, LARGE));
    let right = fs::read(&sums).unwrap();
    fs::write(&sums, &right[..30]).unwrap();
    let stranger = content_path(&m, b"stranger");
    fs::write(&stranger, b"stranger").unwrap();
    fs::write(sums_path(&m, b"nobody"), b"").unwrap();
    fs::write(stranger.with_file_name("notes.txt"), b"").unwrap();
    let notes = ["1 contents (8 bytes)", "1 files of sums", "notes.txt"];
    ends(&["--data", "-y"], &m.data(), 0, &notes);
    assert_eq!(fs::read(&sums).unwrap(), right);
    assert!(!sums_path(&m, b"nobody").exists());
}

#[test]
fn a_closed_file_that_is_nowhere_is_named() {
    let m = tree();
    m.stop();
    let node = fs::read_to_string(m.data().join("node")).unwrap();
    sql(
        &m,
        &format!(
            "UPDATE inodes SET state=1, node='{}' WHERE size={LARGE}",
            node.trim()
        ),
    );
    ends(&[], &m.data(), 4, &["missing in the spool", "d/e/large"]);
}

#[test]
fn regression_a_spool_file_that_somebody_removed_is_told() {
    let (old, new) = (bytes(1, 3000), bytes(2, 5000));
    let m = Mount::start(&[]);
    write_closed(&m.at("old"), &old).unwrap();
    m.wait_stored();
    m.stop();
    // Nothing gets stored.
    assert!(m.try_remount(&[("FAILPOINTS", "lock=return(eio)")]));
    write_closed(&m.at("old"), &new).unwrap();
    write_closed(&m.at("new"), &new).unwrap();
    for name in ["old", "new"] {
        becomes(Duration::from_secs(20), "failed".into(), || m.status(name));
    }
    let spooled = m.spooled();
    assert_eq!(spooled.len(), 2);
    spooled
        .iter()
        .for_each(|path| fs::remove_file(path).unwrap());
    let is_told = |names: &[&str]| {
        for name in names {
            let ended = run(&["wait"], &m.at(name));
            assert_eq!(ended.status.code(), Some(1), "{ended:?}");
            for word in [name, "missing in the spool"] {
                assert!(ended.stderr.contains(word), "{ended:?}");
            }
            assert_eq!(m.status(name), "failed");
            let said = run(&["status"], &m.at(name)).stdout;
            assert!(said.contains("missing in the spool"), "{said}");
            is_eio(
                File::options()
                    .append(true)
                    .open(m.at(name))
                    .and_then(|mut file| {
                        file.write_all(b"more")?;
                        close(file)
                    }),
            );
        }
        ends(&[], &m.path(), 4, names);
    };
    is_told(&["old", "new"]);
    m.stop();
    m.remount();
    is_told(&["old", "new"]);
    is_eio(fs::read(m.at("new")));
    write_closed(&m.at("fine"), b"fine").unwrap();
    assert_eq!(run(&["wait"], &m.path()).status.code(), Some(1));
    assert_eq!(m.status("fine"), "done");
    m.stop();
    ends(&[], &m.data(), 4, &["--repair", "old", "new"]);
    // What there was before is better than nothing.
    ends(
        &["-y"],
        &m.data(),
        5,
        &["content of before again", "write it again"],
    );
    m.remount();
    assert!(fs::read(m.at("old")).unwrap() == old);
    is_told(&["new"]);
    write_closed(&m.at("new"), &new).unwrap();
    m.wait_stored();
    assert!(fs::read(m.at("new")).unwrap() == new);
    ends(&["--data"], &m.path(), 0, &["0 errors"]);
}

#[test]
fn regression_a_spool_file_that_is_removed_under_its_writer_is_put_back() {
    for options in [&[][..], &["--no-passthrough"]] {
        let m = Mount::start(options);
        let mut file = File::create(m.at("f")).unwrap();
        file.write_all(&bytes(1, 3000)).unwrap();
        let spooled = m.spooled();
        assert_eq!(spooled.len(), 1);
        fs::remove_file(&spooled[0]).unwrap();
        file.write_all(&bytes(2, 3000)).unwrap();
        close(file).unwrap();
        m.wait_stored();
        let content = [bytes(1, 3000), bytes(2, 3000)].concat();
        assert!(fs::read(m.at("f")).unwrap() == content);
        assert_eq!(m.status("f"), "done");
    }
}

/// A change that was answered must not vanish without a word.
#[test]
fn regression_a_damaged_journal_is_not_taken_for_a_short_one() {
    let m = Mount::start(&[]);
    let mut found = false;
    for round in 0..20 {
        for n in 0..10 {
            fs::create_dir(m.at(format!("r{round}-{n}"))).unwrap();
        }
        m.kill9();
        let path = m.data().join("tree.journal");
        let whole = fs::read(&path).unwrap();
        flip(&path, 40, 1);
        if !m.try_remount(&[]) {
            ends(&[], &m.data(), 4, &["tree.journal", "damaged"]);
            assert!(m.log().contains("tree.journal) is damaged"));
            found = true;
            fs::write(&path, whole).unwrap();
            m.remount();
        }
        for n in 0..10 {
            assert!(m.at(format!("r{round}-{n}")).is_dir(), "round {round}");
        }
        if found {
            return;
        }
    }
    panic!("the journal never held a change when the daemon was killed");
}

#[test]
fn a_database_that_is_cut_is_reported() {
    let m = tree();
    m.stop();
    sql(&m, "PRAGMA wal_checkpoint(TRUNCATE)");
    let path = m.data().join("tree.sqlite");
    let len = fs::metadata(&path).unwrap().len();
    set_len(&path, len / 2 / 4096 * 4096);
    ends(&[], &m.data(), 4, &["restore tree.sqlite"]);
}

#[test]
fn what_cannot_be_looked_at_has_codes_of_its_own() {
    let m = Mount::start(&[]);
    ends(&[], &m.work(), 8, &["no data directory and no mount"]);
    ends(
        &[],
        &m.work().join("nothing"),
        8,
        &["nothing: No such file"],
    );
    write_closed(&m.work().join("tree.sqlite"), b"of something else").unwrap();
    ends(&["-y"], &m.work(), 8, &["is not of an oncefs"]);
    assert_eq!(names(&m.work()), ["tree.sqlite"]);
    m.stop();
    fs::rename(m.data().join("tree.sqlite"), m.work().join("kept")).unwrap();
    ends(&["-y"], &m.data(), 8, &["has lost its names", "restore"]);
}

/// A killed daemon answers nobody and holds the data directory for as long as the kernel needs to end it.
#[test]
fn regression_a_daemon_that_ends_is_waited_for() {
    let m = tree();
    m.kill9();
    let lock = File::open(m.data().join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| ends(&[], &m.data(), 0, &["0 errors"]));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!looking.is_finished());
        drop(lock);
        looking.join().unwrap();
    });
    ends(&["--frobnicate"], &m.path(), 16, &["--frobnicate"]);
}
