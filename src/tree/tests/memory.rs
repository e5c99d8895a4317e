//! What a large tree costs in memory. Each measures a process of its own.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use super::super::{checkpoint, schema};
use super::replicas::HostileLog;
use super::*;

/// Tells a process that it is the one that is measured, and where the files are.
const MEASURED: &str = "ONCEFS_TEST_MEASURED";
/// About a tenth of the tree for which `scripts/scale.sh` looks.
const FILES: u64 = 150_000;
/// What may come on top of what the process had before. Far below the database's size.
const MORE_MIB: u64 = 24;

/// Runs a test's second half, [`measured`], in a process that has done nothing before.
fn measure(test: &str, dir: &Path) {
    let ended = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            &format!("tree::tests::memory::{test}"),
            "--nocapture",
        ])
        .env(MEASURED, dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    said.lines()
        .filter(|l| l.contains("memory"))
        .for_each(|l| println!("{l}"));
    let errors = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}{errors}");
    assert!(said.contains("1 passed"), "{said}");
}

/// Where the first half left its files, in that process.
fn measured() -> Option<PathBuf> {
    std::env::var_os(MEASURED).map(PathBuf::from)
}

/// A number in KiB of this process, in MiB.
fn mib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap();
    let number = line.trim_start_matches(':').split_whitespace().next();
    number.unwrap().parse::<u64>().unwrap() >> 10
}

/// How much resident memory `f` takes at its worst, on top of what was there before.
fn peak_of(what: &str, f: impl FnOnce()) -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, begun) = (mib("VmRSS"), Instant::now());
    f();
    let peak = mib("VmHWM");
    println!(
        "memory of {what}: {} MiB on top of {before}, in {:.1} s",
        peak.saturating_sub(before),
        begun.elapsed().as_secs_f64()
    );
    peak.saturating_sub(before)
}

/// A tree of that many files as a replica has it after `applied` entries, with lengths of names as people choose them.
fn large_tree(path: &Path, applied: u64) {
    schema::open_writer(path)
        .unwrap()
        .execute_batch(&format!(
            "BEGIN;
             WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i+1 FROM n WHERE i<={FILES})
             INSERT INTO inodes(ino, mode, nlink, uid, gid, rdev, size, atime, mtime, ctime, generation, state, hash)
               SELECT i, {FILE}, 1, 1000, 1000, 0, 12, i, i, i, 1, 2, randomblob(32) FROM n;
             INSERT INTO dentries SELECT 1, CAST(printf('a name of a file %08d', ino) AS BLOB), ino, ino
               FROM inodes WHERE ino>1;
             INSERT INTO contents SELECT hash, 12, hex(hash), 'name', 'n1', 'worker-1', 1, 1, 1, NULL
               FROM inodes WHERE hash IS NOT NULL;
             UPDATE inodes SET cookie={FILES}+1 WHERE ino=1;
             UPDATE meta SET value={applied} WHERE key='applied';
             COMMIT; PRAGMA wal_checkpoint(TRUNCATE);"
        ))
        .unwrap();
}

fn database_mib(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len() >> 20
}

#[test]
fn a_checkpoint_takes_no_memory_that_grows_with_the_tree() {
    let Some(dir) = measured() else {
        let dir = tempfile::tempdir().unwrap();
        large_tree(&dir.path().join("t"), 7);
        measure(
            "a_checkpoint_takes_no_memory_that_grows_with_the_tree",
            dir.path(),
        );
        return;
    };
    let (tree, to) = (dir.join("t"), dir.join("to"));
    let more = peak_of("writing a checkpoint", || {
        assert_eq!(checkpoint::write(&tree, &to).unwrap(), Some(Seq(7)));
    });
    println!("memory: the database has {} MiB", database_mib(&to));
    assert!(database_mib(&to) > MORE_MIB, "too small to tell");
    assert!(more <= MORE_MIB, "{more} MiB");
    let more = peak_of("checking a checkpoint", || {
        checkpoint::check(&to, Seq(7)).unwrap();
    });
    assert!(more <= MORE_MIB, "{more} MiB");
}

/// A machine that is new, and one that was away for longer than the log reaches.
#[test]
fn regression_starting_from_a_checkpoint_takes_no_memory_that_grows_with_the_tree() {
    let Some(dir) = measured() else {
        let dir = tempfile::tempdir().unwrap();
        let (tree, to) = (dir.path().join("t"), dir.path().join("to"));
        large_tree(&tree, 7);
        checkpoint::write(&tree, &to).unwrap();
        schema::open_writer(&dir.path().join("away"))
            .unwrap()
            .execute_batch("UPDATE meta SET value=2 WHERE key='applied'")
            .unwrap();
        measure(
            "regression_starting_from_a_checkpoint_takes_no_memory_that_grows_with_the_tree",
            dir.path(),
        );
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let log = HostileLog::grown(7, &dir.join("to"));
    for node in ["new", "away"] {
        let more = peak_of(&format!("starting a machine that is {node}"), || {
            let (path, id) = (dir.join(node), NodeId(node.into()));
            let opened = Tree::open(&path, &id, Some(log.clone()), Box::new(|_, _| {}));
            let tree = runtime.block_on(opened).unwrap();
            assert_eq!(tree.applied().unwrap(), Seq(7));
            assert_eq!(tree.read(|q| q.inode(Ino(FILES + 1))).unwrap().size, 12);
        });
        assert!(more <= MORE_MIB, "{more} MiB");
    }
}
