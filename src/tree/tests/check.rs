//! Databases that are damaged on purpose, one contradiction at a time.

use rusqlite::Connection;

use super::super::apply::apply;
use super::super::check::{Problem, Workshop};
use super::super::op::{Bytes, StoredBy};
use super::super::{Op, schema};
use crate::types::{BlobId, ContentHash, Generation, Ino, NodeId, Time};

fn create(parent: u64, name: &str, ino: u64, kind: u32) -> Op {
    Op::Create {
        parent: Ino(parent),
        name: Bytes::from(name),
        ino: Ino(ino),
        mode: kind | 0o644,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: (kind == libc::S_IFLNK).then(|| Bytes::from("target")),
        now: Time(5),
    }
}

fn stored(ino: u64, hash: u8, size: u64) -> [Op; 2] {
    let (ino, generation) = (Ino(ino), Generation(1));
    let pending = Op::Pending {
        ino,
        generation,
        node: NodeId("n".into()),
        size,
        mtime: Time(6),
        ctime: Time(6),
    };
    let commit = Op::Commit {
        ino,
        generation,
        hash: ContentHash([hash; 32]),
        size,
        blob: BlobId(ContentHash([hash; 32]).to_string()),
        by: StoredBy {
            node: NodeId("n".into()),
            worker: "w".into(),
            uploaded_at: Time(6),
            started_at: Time(6),
        },
        now: Time(7),
    };
    [pending, commit]
}

/// `/a/b/c`, files in it with two names, an attribute and contents, one of which no file has any more.
fn workshop() -> (tempfile::TempDir, Workshop, Connection) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tree.sqlite");
    let conn = schema::open_writer(&path).unwrap();
    let mut ops = vec![
        create(1, "a", 2, libc::S_IFDIR),
        create(2, "b", 3, libc::S_IFDIR),
        create(3, "c", 4, libc::S_IFDIR),
        create(2, "file", 5, libc::S_IFREG),
        create(4, "other", 6, libc::S_IFREG),
        create(1, "link", 7, libc::S_IFLNK),
        create(1, "unused", 8, libc::S_IFREG),
    ];
    ops.extend(stored(5, 5, 500));
    ops.extend(stored(6, 6, 600));
    ops.extend(stored(8, 8, 800));
    ops.push(Op::Unlink {
        parent: Ino(1),
        name: Bytes::from("unused"),
        now: Time(8),
    });
    ops.push(Op::Link {
        ino: Ino(5),
        parent: Ino(3),
        name: Bytes::from("second"),
        now: Time(8),
    });
    ops.push(Op::SetXattr {
        ino: Ino(5),
        name: Bytes::from("user.x"),
        value: Bytes::from("1"),
        mode: super::super::op::XattrMode::Set,
        now: Time(9),
    });
    for op in &ops {
        apply(&conn, op).unwrap();
    }
    let (workshop, journal) = Workshop::open(&path, true).unwrap();
    assert_eq!(journal, None);
    (dir, workshop, conn)
}

#[test]
fn a_sound_tree_has_no_problems() {
    let (_dir, mut workshop, _conn) = workshop();
    assert_eq!(workshop.query().check(true).unwrap(), []);
    workshop.repair(&[], Time(9)).unwrap();
    assert_eq!(workshop.query().check(true).unwrap(), []);
}

#[test]
fn each_contradiction_is_found_and_repaired_if_it_can_be() {
    let hash = |n| ContentHash([n; 32]);
    let lost = |ino| Problem::Unreachable(Ino(ino));
    let links = |ino, noted, counted| Problem::Links {
        ino: Ino(ino),
        noted,
        counted,
    };
    let cases: Vec<(&str, Vec<Problem>)> = vec![
        (
            "UPDATE inodes SET nlink=7 WHERE ino=5",
            vec![links(5, 7, 2)],
        ),
        (
            "UPDATE inodes SET nlink=2 WHERE ino=3",
            vec![links(3, 2, 3)],
        ),
        (
            "DELETE FROM dentries WHERE ino=6",
            vec![lost(6), links(6, 1, 0)],
        ),
        (
            "DELETE FROM dentries WHERE ino=3",
            vec![lost(3), lost(4), lost(6), links(2, 3, 2)],
        ),
        (
            "UPDATE dentries SET parent=4, cookie=50 WHERE ino=3",
            vec![
                lost(3),
                lost(4),
                lost(6),
                Problem::Parent(Ino(3)),
                links(2, 3, 2),
                links(4, 2, 3),
                Problem::Cookie(Ino(4)),
            ],
        ),
        (
            "DELETE FROM inodes WHERE ino=6",
            vec![
                Problem::DanglingName(Ino(4), b"other".to_vec(), Ino(6)),
                Problem::Reference(hash(6)),
            ],
        ),
        (
            "DELETE FROM inodes WHERE ino=4",
            vec![
                Problem::DanglingName(Ino(3), b"c".to_vec(), Ino(4)),
                Problem::NameNowhere(Ino(4), b"other".to_vec(), Ino(6)),
                links(3, 3, 2),
            ],
        ),
        (
            "INSERT INTO dentries VALUES(1, x'7a', 4, 99)",
            vec![
                Problem::DirectoryTwice(Ino(4)),
                links(1, 3, 4),
                Problem::Cookie(Ino(1)),
            ],
        ),
        (
            "INSERT INTO dentries VALUES(4, x'7a', 1, 99)",
            vec![
                Problem::DirectoryTwice(Ino(1)),
                links(4, 2, 3),
                Problem::Cookie(Ino(4)),
            ],
        ),
        (
            "UPDATE inodes SET parent=1 WHERE ino=4",
            vec![Problem::Parent(Ino(4))],
        ),
        (
            "UPDATE inodes SET parent=9 WHERE ino=1",
            vec![Problem::Parent(Ino(1))],
        ),
        (
            "UPDATE inodes SET cookie=0 WHERE ino=2",
            vec![Problem::Cookie(Ino(2))],
        ),
        (
            "UPDATE xattrs SET ino=77",
            vec![Problem::StrayXattrs(Ino(77))],
        ),
        (
            "UPDATE inodes SET size=1 WHERE ino=5",
            vec![Problem::Size(Ino(5))],
        ),
        (
            "UPDATE contents SET unreferenced_at=1 WHERE size=500",
            vec![Problem::Reference(hash(5))],
        ),
        (
            "UPDATE contents SET unreferenced_at=NULL WHERE size=800",
            vec![Problem::Reference(hash(8))],
        ),
        (
            "UPDATE dentries SET name=x'612f62' WHERE ino=6",
            vec![Problem::BadName(Ino(4), b"a/b".to_vec())],
        ),
        (
            "UPDATE inodes SET hash=NULL WHERE ino=6",
            vec![Problem::State(Ino(6)), Problem::Reference(hash(6))],
        ),
        (
            "UPDATE inodes SET state=9 WHERE ino=7",
            vec![Problem::State(Ino(7))],
        ),
        (
            "DELETE FROM contents WHERE size=600",
            vec![Problem::UnknownContent(Ino(6), hash(6))],
        ),
    ];
    for (damage, expected) in cases {
        let (_dir, mut workshop, conn) = workshop();
        conn.execute_batch(damage).unwrap();
        let found = workshop.query().check(true).unwrap();
        assert_eq!(found, expected, "{damage}");
        workshop.repair(&found, Time(1000)).unwrap();
        let left: Vec<Problem> = found.into_iter().filter(|p| !p.is_repairable()).collect();
        assert_eq!(workshop.query().check(true).unwrap(), left, "{damage}");
    }
}

#[test]
fn without_a_root_nothing_is_invented() {
    let (_dir, workshop, conn) = workshop();
    conn.execute_batch("DELETE FROM inodes WHERE ino=1")
        .unwrap();
    let found = workshop.query().check(false).unwrap();
    assert_eq!(found[0], Problem::NoRoot);
}

#[test]
fn what_was_lost_is_found_in_lost_and_found() {
    let (_dir, mut workshop, conn) = workshop();
    conn.execute_batch(
        "DELETE FROM dentries WHERE ino=3; DELETE FROM dentries WHERE ino=5;
         INSERT INTO inodes(ino, mode, nlink, uid, gid, rdev, size, atime, mtime, ctime, generation, state)
           VALUES(50, 33188, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0);
         INSERT INTO dentries VALUES(1, CAST('lost+found' AS BLOB), 50, 60);
         UPDATE inodes SET cookie=60 WHERE ino=1;",
    )
    .unwrap();
    let found = workshop.query().check(true).unwrap();
    workshop.repair(&found, Time(1000)).unwrap();
    let query = workshop.query();
    assert_eq!(query.check(true).unwrap(), []);
    // The name was taken by a file.
    let path = |ino| {
        let paths = query.paths_of(Ino(ino), 9).unwrap();
        assert_eq!(paths.len(), 1);
        String::from_utf8(paths[0].clone()).unwrap()
    };
    assert_eq!(path(5), "lost+found~/#5");
    assert_eq!(path(6), "lost+found~/#3/c/other");
    assert!(query.child(Ino::ROOT, b"lost+found~").unwrap() > Some(Ino(50)));
}

#[test]
fn a_page_that_is_damaged_is_found() {
    let (dir, workshop, conn) = workshop();
    conn.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
        .unwrap();
    drop((conn, workshop));
    let path = dir.path().join("tree.sqlite");
    let mut bytes = std::fs::read(&path).unwrap();
    // The header of the second page.
    bytes[4096..4200].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let found = Workshop::open(&path, false).map(|(w, _)| w.query().check(true).unwrap());
    assert!(
        !matches!(&found, Ok(none) if none.is_empty()),
        "not noticed"
    );
}
