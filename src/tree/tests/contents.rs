//! The way of a content: pending, committed, superseded, shared, unreferenced, reaped.

use super::*;

const ROOT: Ino = Ino::ROOT;

#[test]
fn pending_then_committed() {
    let mut b = Bed::new();
    let f = b.make(ROOT, "f", FILE);
    let op = b.pending_op(f, 1, "n1", 10);
    let applied = b.ok(op);
    let t = Time(b.clock);
    assert!(applied.effects.contains(&Effect::Content(f)));
    let inode = b.inode(f);
    assert_eq!((inode.size, inode.mtime, inode.ctime), (10, t, t));
    let pending = |previous| Body::Pending {
        node: NodeId("n1".into()),
        previous,
    };
    assert_eq!(inode.body, pending(None));
    assert_eq!(
        b.tree.read(|q| q.pending_at(&NodeId("n1".into()))).unwrap(),
        std::slice::from_ref(&inode)
    );
    let op = b.commit_op(f, 1, 3, "b3");
    b.ok(op);
    let stored = b.inode(f);
    assert_eq!((stored.size, stored.mtime, stored.ctime), (3, t, t));
    assert_eq!(
        stored.body,
        Body::Stored {
            hash: hash(3),
            duplicate: false
        }
    );
    let content = b.content(3);
    assert_eq!(
        (content.filename, content.done_at, content.size),
        (b"f".to_vec(), Time(b.clock), 3)
    );
    // The next write keeps the stored content readable until it is stored itself.
    let op = b.pending_op(f, 2, "n1", 5);
    b.ok(op);
    assert_eq!(b.inode(f).body, pending(Some(hash(3))));
    assert_eq!(b.content(3).unreferenced_at, None);
    assert!(b.tree.read(|q| q.files_of(&hash(3), 9)).unwrap().is_empty());
    let op = b.commit_op(f, 2, 4, "b4");
    b.ok(op);
    assert_eq!(b.content(3).unreferenced_at, Some(Time(b.clock)));
    assert_eq!(b.tree.read(|q| q.files_of(&hash(4), 9)).unwrap(), [f]);
}

/// Two nodes that wrote a file apart came to the same number. Only the bytes of the one that the tree names are its content.
#[test]
fn regression_another_nodes_version_of_the_same_number_is_superseded() {
    let mut b = Bed::new();
    let f = b.make(ROOT, "f", FILE);
    let op = b.pending_op(f, 1, "n2", 10);
    b.ok(op);
    // By n1.
    let op = b.commit_op(f, 1, 3, "b3");
    b.refused(op, TreeError::Superseded);
}

#[test]
fn an_older_version_is_superseded() {
    let mut b = Bed::new();
    let f = b.make(ROOT, "f", FILE);
    for (op, e) in [
        (b.pending_op(f, 0, "n1", 1), TreeError::Superseded),
        (b.commit_op(f, 0, 1, "b1"), TreeError::Superseded),
        (b.commit_op(f, 1, 1, "b1"), TreeError::Superseded),
        (b.pending_op(Ino(999), 1, "n1", 1), TreeError::NotFound),
        (b.pending_op(ROOT, 1, "n1", 1), TreeError::Invalid),
        (b.commit_op(Ino(999), 1, 1, "b1"), TreeError::NotFound),
    ] {
        b.refused(op, e);
    }
    let op = b.pending_op(f, 2, "n1", 1);
    b.ok(op);
    for (op, e) in [
        (b.pending_op(f, 1, "n1", 1), TreeError::Superseded),
        (b.pending_op(f, 2, "n2", 1), TreeError::Superseded),
        (b.commit_op(f, 1, 1, "b1"), TreeError::Superseded),
        (b.commit_op(f, 3, 1, "b1"), TreeError::Superseded),
    ] {
        b.refused(op, e);
    }
    // The same writer may say it again with another size.
    let op = b.pending_op(f, 2, "n1", 7);
    b.ok(op);
    let op = b.commit_op(f, 2, 1, "b1");
    b.ok(op);
    for (op, e) in [
        (b.commit_op(f, 2, 1, "b1"), TreeError::Superseded),
        (b.pending_op(f, 2, "n1", 1), TreeError::Superseded),
    ] {
        b.refused(op, e);
    }
    let op = b.pending_op(f, 3, "n2", 1);
    b.ok(op);
}

#[test]
fn the_same_content_again_is_a_duplicate() {
    let mut b = Bed::new();
    let f = b.stored("f", 1, "b1");
    let first = b.content(1);
    let g = b.stored("g", 1, "b1");
    assert_eq!(
        b.inode(g).body,
        Body::Stored {
            hash: hash(1),
            duplicate: true
        }
    );
    assert_eq!(b.content(1), first);
    // Written anew with the content it had: never unreferenced on the way.
    let op = b.pending_op(f, 2, "n1", 1);
    b.ok(op);
    let op = b.unlink_op(ROOT, "g");
    b.ok(op);
    let op = b.commit_op(f, 2, 1, "b1");
    b.ok(op);
    assert_eq!(b.content(1), first);
    // Another object under the same hash is not the tree's.
    let op = b.pending_op(f, 3, "n1", 1);
    b.ok(op);
    let op = b.commit_op(f, 3, 1, "other");
    b.refused(op, TreeError::Reaped);
}

#[test]
fn content_is_unreferenced_from_its_last_file_on() {
    let mut b = Bed::new();
    b.stored("f", 1, "b1");
    let g = b.stored("g", 1, "b1");
    let op = b.link_op(g, ROOT, "h");
    b.ok(op);
    let op = b.reap_op(1);
    b.refused(op, TreeError::InUse);
    let op = b.pending_op(g, 2, "n1", 1);
    b.ok(op);
    for n in ["f", "g", "h"] {
        assert_eq!(b.content(1).unreferenced_at, None);
        let op = b.reap_op(1);
        b.refused(op, TreeError::InUse);
        let op = b.unlink_op(ROOT, n);
        b.ok(op);
    }
    let since = Time(b.clock);
    assert_eq!(b.content(1).unreferenced_at, Some(since));
    let found = |t| b.tree.read(|q| q.unreferenced(t, 9)).unwrap().len();
    assert_eq!((found(Time(since.0 - 1)), found(since)), (0, 1));
    assert!(b.tree.read(|q| q.contents(None, 9)).unwrap().is_empty());
    // A new file with it takes it back.
    b.stored("k", 1, "b1");
    assert_eq!(b.content(1).unreferenced_at, None);
    assert_eq!(b.tree.read(|q| q.contents(None, 9)).unwrap().len(), 1);
}

#[test]
fn a_reaped_object_never_comes_back() {
    let mut b = Bed::new();
    let op = b.reap_op(1);
    b.refused(op, TreeError::NotFound);
    b.stored("f", 1, "b1");
    let op = b.unlink_op(ROOT, "f");
    b.ok(op);
    let op = b.reap_op(1);
    let applied = b.ok(op);
    assert_eq!(
        applied.effects,
        [Effect::Reaped {
            hash: hash(1),
            blob: BlobId("b1".into())
        }]
    );
    let op = b.reap_op(1);
    b.refused(op, TreeError::NotFound);
    let g = b.make(ROOT, "g", FILE);
    let op = b.pending_op(g, 1, "n1", 1);
    b.ok(op);
    let op = b.commit_op(g, 1, 1, "b1");
    b.refused(op, TreeError::Reaped);
    let op = b.commit_op(g, 1, 1, "b1-again");
    b.ok(op);
}

#[test]
fn an_object_named_by_its_hash_may_come_back() {
    let mut b = Bed::new();
    let blob = hash(1).to_string();
    b.stored("f", 1, &blob);
    let op = b.unlink_op(ROOT, "f");
    b.ok(op);
    let op = b.reap_op(1);
    b.ok(op);
    b.stored("g", 1, &blob);
}

#[test]
fn regression_a_lost_object_is_replaced() {
    let mut b = Bed::new();
    let replace = |lost: &str, blob: &str| Op::Replace {
        hash: hash(1),
        lost: BlobId(lost.into()),
        blob: BlobId(blob.into()),
        now: Time(1),
    };
    b.refused(replace("b1", "b2"), TreeError::Reaped);
    b.stored("f", 1, "b1");
    b.refused(replace("b0", "b2"), TreeError::Reaped);
    b.refused(replace("b1", "b1"), TreeError::Reaped);
    b.ok(replace("b1", "b2"));
    assert_eq!(b.content(1).blob.0, "b2");
    b.stored("g", 1, "b2");
    b.refused(replace("b2", "b1"), TreeError::Reaped);
}

#[test]
fn tombstones_go_after_a_week() {
    let mut b = Bed::new();
    let week = 7 * 24 * 3600 * 1_000_000_000;
    for (h, at) in [(1, 0), (2, week), (3, week + 1)] {
        let n = format!("f{h}");
        b.stored(&n, h, &format!("b{h}"));
        let op = b.unlink_op(ROOT, &n);
        b.ok(op);
        b.ok(Op::Reap {
            hash: hash(h),
            now: Time(at),
        });
        let buried = dump(&b.tree)
            .iter()
            .filter(|l| l.starts_with("tombstones"))
            .count();
        assert_eq!(buried, 2.min(h as usize));
    }
}

#[test]
fn regression_reap_at_the_beginning_of_time() {
    let mut b = Bed::new();
    b.stored("f", 1, "b1");
    let op = b.unlink_op(ROOT, "f");
    b.ok(op);
    b.ok(Op::Reap {
        hash: hash(1),
        now: Time(i64::MIN),
    });
}

#[test]
fn totals_count_shared_bytes_once() {
    let mut b = Bed::new();
    b.stored("f", 5, "b5");
    b.stored("g", 5, "b5");
    let totals = b.tree.read(|q| q.totals()).unwrap();
    assert_eq!(
        totals,
        Totals {
            inodes: 3,
            contents: 1,
            stored_bytes: 5,
            logical_bytes: 10
        }
    );
}
