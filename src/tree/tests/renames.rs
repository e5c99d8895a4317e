//! Rename in all its modes.

use super::*;
use RenameMode::{Exchange, NoReplace, Replace};

const ROOT: Ino = Ino::ROOT;

#[test]
fn a_file_moves_and_keeps_everything_but_its_change_time() {
    let mut b = Bed::new();
    let d = b.make(ROOT, "d", DIR);
    let f = b.make(ROOT, "f", FILE);
    let before = b.inode(f);
    let op = b.rename_op((ROOT, "f"), (d, "g"), NoReplace);
    b.ok(op);
    let now = Time(b.clock);
    assert_eq!(
        b.inode(f),
        Inode {
            ctime: now,
            ..before
        }
    );
    assert_eq!((b.inode(ROOT).mtime, b.inode(d).mtime), (now, now));
    assert_eq!(
        (b.names(ROOT), b.names(d)),
        (vec!["d".into()], vec!["g".into()])
    );
}

#[test]
fn a_directory_takes_its_link_along() {
    let mut b = Bed::new();
    let a = b.make(ROOT, "a", DIR);
    let c = b.make(ROOT, "c", DIR);
    let s = b.make(a, "s", DIR);
    let f = b.make(s, "f", FILE);
    let op = b.rename_op((a, "s"), (c, "t"), Replace);
    b.ok(op);
    assert_eq!((b.inode(a).nlink, b.inode(c).nlink), (2, 3));
    assert_eq!(b.inode(s).parent, Some(c));
    assert_eq!(
        b.tree.read(|q| q.paths_of(f, 2)).unwrap(),
        [b"c/t/f".to_vec()]
    );
    let op = b.rename_op((c, "t"), (c, "u"), Replace);
    b.ok(op);
    assert_eq!(b.inode(c).nlink, 3);
}

#[test]
fn replacing_drops_the_target() {
    let mut b = Bed::new();
    let f = b.make(ROOT, "f", FILE);
    let g = b.make(ROOT, "g", FILE);
    let op = b.link_op(g, ROOT, "h");
    b.ok(op);
    let op = b.rename_op((ROOT, "f"), (ROOT, "g"), Replace);
    assert_eq!(b.ok(op).inode.unwrap().ino, f);
    assert_eq!((b.inode(g).nlink, b.inode(g).ctime), (1, Time(b.clock)));
    let op = b.rename_op((ROOT, "g"), (ROOT, "h"), Replace);
    let applied = b.ok(op);
    let gone = |e: &Effect| matches!(e, Effect::Gone(i) if i.ino == g && i.nlink == 0);
    assert!(applied.effects.iter().any(gone));
    assert_eq!(b.names(ROOT), ["h"]);
}

#[test]
fn a_directory_replaces_only_an_empty_directory() {
    let mut b = Bed::new();
    let a = b.make(ROOT, "a", DIR);
    let c = b.make(ROOT, "c", DIR);
    let s = b.make(a, "s", DIR);
    b.make(c, "x", FILE);
    b.make(ROOT, "f", FILE);
    for (op, e) in [
        (
            b.rename_op((a, "s"), (ROOT, "c"), Replace),
            TreeError::NotEmpty,
        ),
        (
            b.rename_op((ROOT, "f"), (ROOT, "c"), Replace),
            TreeError::IsDirectory,
        ),
        (
            b.rename_op((ROOT, "c"), (ROOT, "f"), Replace),
            TreeError::NotDirectory,
        ),
        // Onto its own parent.
        (
            b.rename_op((a, "s"), (ROOT, "a"), Replace),
            TreeError::NotEmpty,
        ),
    ] {
        b.refused(op, e);
    }
    let op = b.unlink_op(c, "x");
    b.ok(op);
    let op = b.rename_op((a, "s"), (ROOT, "c"), Replace);
    b.ok(op);
    assert_eq!(b.inode(s).parent, Some(ROOT));
    assert_eq!((b.inode(ROOT).nlink, b.inode(a).nlink), (4, 2));
    // Within one directory, over an empty sibling.
    let op = b.rename_op((ROOT, "a"), (ROOT, "c"), Replace);
    b.ok(op);
    assert_eq!(b.inode(ROOT).nlink, 3);
}

#[test]
fn refusals() {
    let mut b = Bed::new();
    let a = b.make(ROOT, "a", DIR);
    let s = b.make(a, "s", DIR);
    let f = b.make(ROOT, "f", FILE);
    b.make(ROOT, "g", FILE);
    for (op, e) in [
        (
            b.rename_op((ROOT, "x"), (ROOT, "y"), Replace),
            TreeError::NotFound,
        ),
        (
            b.rename_op((ROOT, "f"), (ROOT, "g"), NoReplace),
            TreeError::Exists,
        ),
        (
            b.rename_op((ROOT, "f"), (ROOT, "f"), NoReplace),
            TreeError::Exists,
        ),
        (
            b.rename_op((ROOT, "f"), (ROOT, "y"), Exchange),
            TreeError::NotFound,
        ),
        (
            b.rename_op((ROOT, "f"), (ROOT, ".."), Replace),
            TreeError::Invalid,
        ),
        (
            b.rename_op((ROOT, "f"), (Ino(999), "y"), Replace),
            TreeError::NotFound,
        ),
        (
            b.rename_op((Ino(999), "f"), (ROOT, "y"), Replace),
            TreeError::NotFound,
        ),
        (
            b.rename_op((ROOT, "g"), (f, "y"), Replace),
            TreeError::NotDirectory,
        ),
        (
            b.rename_op((f, "y"), (ROOT, "g"), Replace),
            TreeError::NotDirectory,
        ),
        // A directory below itself, at once and deeper; the other way round by exchange.
        (
            b.rename_op((ROOT, "a"), (a, "y"), Replace),
            TreeError::Invalid,
        ),
        (
            b.rename_op((ROOT, "a"), (s, "y"), Replace),
            TreeError::Invalid,
        ),
        (
            b.rename_op((ROOT, "a"), (a, "s"), Exchange),
            TreeError::Invalid,
        ),
        (
            b.rename_op((a, "s"), (ROOT, "a"), Exchange),
            TreeError::Invalid,
        ),
        (
            Op::Rename {
                parent: ROOT,
                name: bytes("f"),
                new_parent: ROOT,
                new_name: bytes("n".repeat(256)),
                mode: Replace,
                now: Time(1),
            },
            TreeError::NameTooLong,
        ),
    ] {
        b.refused(op, e);
    }
}

#[test]
fn two_names_of_one_file_stay_as_they_are() {
    let mut b = Bed::new();
    let f = b.make(ROOT, "f", FILE);
    let op = b.link_op(f, ROOT, "g");
    b.ok(op);
    let a = b.make(ROOT, "a", DIR);
    let before = dump(&b.tree);
    for (from, to, mode) in [
        ("f", "g", Replace),
        ("f", "f", Replace),
        ("a", "a", Replace),
        ("f", "g", Exchange),
        ("a", "a", Exchange),
    ] {
        let op = b.rename_op((ROOT, from), (ROOT, to), mode);
        let applied = b.ok(op);
        assert!([f, a].contains(&applied.inode.unwrap().ino) && applied.effects.is_empty());
        assert_eq!(dump(&b.tree), before);
    }
}

#[test]
fn exchange_swaps_across_directories() {
    let mut b = Bed::new();
    let a = b.make(ROOT, "a", DIR);
    let c = b.make(ROOT, "c", DIR);
    let s = b.make(a, "s", DIR);
    let t = b.make(c, "t", DIR);
    let f = b.make(c, "f", FILE);
    let op = b.rename_op((a, "s"), (c, "t"), Exchange);
    assert_eq!(b.ok(op).inode.unwrap().ino, s);
    assert_eq!((b.inode(s).parent, b.inode(t).parent), (Some(c), Some(a)));
    assert_eq!((b.inode(a).nlink, b.inode(c).nlink), (3, 3));
    assert_eq!(
        (b.inode(s).ctime, b.inode(t).ctime),
        (Time(b.clock), Time(b.clock))
    );
    // A directory and a file: the link of `..` goes along.
    let op = b.rename_op((a, "s"), (c, "f"), Exchange);
    b.ok(op);
    assert_eq!((b.inode(a).nlink, b.inode(c).nlink), (2, 4));
    assert_eq!(b.tree.read(|q| q.child(a, b"s")).unwrap(), Some(f));
    // Within one directory.
    let op = b.rename_op((c, "t"), (c, "f"), Exchange);
    b.ok(op);
    assert_eq!(b.inode(c).nlink, 4);
}

#[test]
fn replacing_the_last_name_of_a_content_lets_go_of_it() {
    let mut b = Bed::new();
    b.stored("f", 1, "b1");
    b.stored("g", 2, "b2");
    let op = b.rename_op((ROOT, "f"), (ROOT, "g"), Replace);
    b.ok(op);
    assert_eq!(b.content(2).unreferenced_at, Some(Time(b.clock)));
    assert_eq!(b.content(1).unreferenced_at, None);
}
