//! Bits that flip in the database and in its write-ahead log, and databases from before there were checksums.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::super::apply::apply;
use super::super::op::Bytes;
use super::super::{Op, Query, schema, wal};
use crate::types::{Ino, Time};

fn mkdir(conn: &Connection, n: u64) {
    let op = Op::Create {
        parent: Ino::ROOT,
        name: Bytes::from(format!("a directory with the number {n}")),
        ino: Ino(100 + n),
        mode: libc::S_IFDIR | 0o755,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: None,
        now: Time(n as i64),
    };
    apply(conn, &op).unwrap();
}

/// All names and modes, or the first error.
fn look(path: &Path) -> Result<Vec<(Vec<u8>, u32)>, super::TreeError> {
    let conn = schema::open_writer(path)?;
    let mut entries = Vec::new();
    for entry in Query(&conn).readdir(Ino::ROOT, 0, 10_000)? {
        let inode = Query(&conn).lookup(Ino::ROOT, &entry.name)?;
        assert_eq!(inode.ino, entry.ino);
        entries.push((entry.name, inode.mode));
    }
    Ok(entries)
}

/// What a killed process leaves of 300 commits: a database and a log.
fn killed(dir: &Path, checkpoint: bool) -> std::path::PathBuf {
    let path = dir.join("t.sqlite");
    let conn = schema::open_writer(&path).unwrap();
    for n in 0..300 {
        mkdir(&conn, n);
        if n == 280 || (checkpoint && n == 299) {
            conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
                .unwrap();
        }
    }
    let copy = dir.join("copy.sqlite");
    for end in ["", "-wal"] {
        let of = |p: &Path| format!("{}{end}", p.display());
        std::fs::copy(of(&path), of(&copy)).unwrap();
    }
    copy
}

#[test]
fn regression_commits_in_the_log_survive_a_kill() {
    for checkpoint in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let path = killed(dir.path(), checkpoint);
        wal::check(&path).unwrap();
        assert_eq!(look(&path).unwrap().len(), 300);
    }
}

/// Every flip is an error or changes nothing; one in the log that would hide a commit is noticed before.
#[test]
fn a_flipped_bit_is_never_an_answer() {
    let seed = rand::random::<u32>() as usize;
    println!("seed {seed}");
    for in_log in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = killed(dir.path(), !in_log);
        let log = dir.path().join("copy.sqlite-wal");
        let whole = [std::fs::read(&path).unwrap(), std::fs::read(&log).unwrap()];
        let right = look(&path).unwrap();
        let (file, bytes) = match in_log {
            false => (&path, &whole[0]),
            true => (&log, &whole[1]),
        };
        let mut noticed = 0;
        for round in 0..150 {
            std::fs::write(&path, &whole[0]).unwrap();
            std::fs::write(&log, &whole[1]).unwrap();
            let mut flipped = bytes.clone();
            let at = match round {
                0..30 => round * 7 % 100,
                _ => seed.wrapping_add(round * 1_000_003) % bytes.len(),
            };
            flipped[at] ^= 1 << (round % 8);
            std::fs::write(file, flipped).unwrap();
            match wal::check(&path).and_then(|()| look(&path)) {
                Ok(found) => {
                    // The last commit of the log may be taken for unfinished.
                    let short = in_log && at + 16_000 > bytes.len();
                    let same = found == right || (short && right.starts_with(&found));
                    assert!(same, "round {round}, byte {at}, in the log: {in_log}");
                }
                Err(_) => noticed += 1,
            }
        }
        // Not every page is read.
        assert!(noticed > 60, "{noticed}, in the log: {in_log}");
    }
}

#[test]
fn a_flip_while_it_is_open_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.sqlite");
    let log = dir.path().join("t.sqlite-wal");
    let conn = schema::open_writer(&path).unwrap();
    for n in 0..300 {
        mkdir(&conn, n);
    }
    let bytes = std::fs::read(&log).unwrap();
    let (mut wrong, mut right) = (0, 0);
    for frame in 0..(bytes.len() - 32) / 4120 {
        let mut flipped = bytes.clone();
        flipped[32 + frame * 4120 + 24 + frame * 13 % 4096] ^= 1;
        std::fs::write(&log, flipped).unwrap();
        // A new connection has nothing cached.
        let reader = schema::open_reader(&path);
        match reader.and_then(|r| Query(&r).readdir(Ino::ROOT, 0, 1000)) {
            Ok(entries) => {
                assert_eq!(entries.len(), 300);
                right += 1;
            }
            Err(_) => wrong += 1,
        }
    }
    std::fs::write(&log, bytes).unwrap();
    // Most frames are of pages that were written again later.
    assert!(wrong > 3 && right > 3, "{wrong} {right}");
}

#[test]
fn what_an_unfinished_commit_left_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = killed(dir.path(), false);
    let log = dir.path().join("copy.sqlite-wal");
    let bytes = std::fs::read(&log).unwrap();
    for cut in [
        bytes.len() - 1,
        bytes.len() - 4121,
        32 + 4120 * 10 + 5,
        32,
        31,
        0,
    ] {
        std::fs::write(&log, &bytes[..cut]).unwrap();
        wal::check(&path).unwrap();
    }
    // A frame that was written again, with what was behind it before.
    let frames = (bytes.len() - 32) / 4120;
    let mut stale = bytes.clone();
    let last = 32 + (frames - 1) * 4120;
    stale[last - 4120 + 100] ^= 1;
    stale[last + 4..last + 8].fill(0);
    std::fs::write(&log, stale).unwrap();
    wal::check(&path).unwrap();
}

#[test]
fn a_database_without_checksums_gets_them() {
    let dir = tempfile::tempdir().unwrap();
    let (path, plain) = (dir.path().join("t.sqlite"), dir.path().join("plain.sqlite"));
    let conn = schema::open_writer(&path).unwrap();
    for n in 0..300 {
        mkdir(&conn, n);
    }
    // The same tables as an older program left them, changes in the log included.
    let old = Connection::open_with_flags_and_vfs(
        &plain,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
        c"unix-excl",
    )
    .unwrap();
    old.execute_batch("PRAGMA journal_mode=WAL; PRAGMA user_version=1; BEGIN;")
        .unwrap();
    let mut tables = conn
        .prepare("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY type DESC")
        .unwrap();
    let mut rows = tables.query([]).unwrap();
    while let Some(row) = rows.next().unwrap() {
        old.execute_batch(&row.get::<_, String>(1).unwrap())
            .unwrap();
    }
    for table in ["meta", "inodes", "dentries"] {
        let mut all = conn.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = all.column_count();
        let marks = vec!["?"; columns].join(",");
        let mut rows = all.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values = (0..columns).map(|n| row.get::<_, rusqlite::types::Value>(n).unwrap());
            old.execute(
                &format!("INSERT INTO {table} VALUES({marks})"),
                rusqlite::params_from_iter(values),
            )
            .unwrap();
        }
    }
    old.execute_batch("COMMIT").unwrap();
    let copy = dir.path().join("copy.sqlite");
    for end in ["", "-wal"] {
        let of = |p: &Path| format!("{}{end}", p.display());
        std::fs::copy(of(&plain), of(&copy)).unwrap();
    }
    drop((old, rows));
    for _ in 0..2 {
        assert_eq!(look(&copy).unwrap(), look(&path).unwrap());
    }
    let upgraded = schema::open_writer(&copy).unwrap();
    assert_eq!(Query(&upgraded).check(true).unwrap(), []);
    upgraded
        .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    drop(upgraded);
    let mut bytes = std::fs::read(&copy).unwrap();
    assert_eq!((bytes[20], bytes[63]), (8, 2));
    let last = bytes.len() - 2000;
    bytes[last] ^= 1;
    std::fs::write(&copy, bytes).unwrap();
    let found = schema::open_writer(&copy).map(|c| Query(&c).check(true).unwrap().len());
    assert_ne!(found.ok(), Some(0));
}
