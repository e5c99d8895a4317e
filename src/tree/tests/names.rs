//! Names and attributes: create, link, unlink, rmdir, readdir, setattr, extended attributes.

use super::*;
use crate::tree::op::{NAME_MAX, TARGET_MAX, XATTRS_MAX};

#[test]
fn create_sets_every_attribute_and_touches_the_directory() {
    let mut b = Bed::new();
    let ino = b.make(Ino::ROOT, "f", FILE);
    let now = Time(b.clock);
    let expected = Inode {
        ino,
        mode: FILE,
        nlink: 1,
        uid: 1,
        gid: 2,
        rdev: 0,
        size: 0,
        atime: now,
        mtime: now,
        ctime: now,
        generation: Generation(0),
        body: Body::Empty,
        parent: None,
    };
    assert_eq!(
        b.tree.read(|q| q.lookup(Ino::ROOT, b"f")).unwrap(),
        expected
    );
    let root = b.inode(Ino::ROOT);
    assert_eq!((root.mtime, root.ctime, root.nlink), (now, now, 2));
    let dir = b.make(Ino::ROOT, "d", DIR);
    assert_eq!(b.inode(dir).parent, Some(Ino::ROOT));
    assert_eq!((b.inode(dir).nlink, b.inode(Ino::ROOT).nlink), (2, 3));
}

#[test]
fn create_makes_every_kind() {
    let mut b = Bed::new();
    for (n, kind) in [
        ("p", libc::S_IFIFO),
        ("s", libc::S_IFSOCK),
        ("c", libc::S_IFCHR),
    ] {
        let mut op = b.create_op(Ino::ROOT, n.as_bytes(), kind | 0o600);
        if let Op::Create { rdev, .. } = &mut op {
            *rdev = 0x0103;
        }
        let inode = b.ok(op).inode.unwrap();
        assert_eq!((inode.kind(), inode.rdev), (kind, 0x0103));
        let op = b.pending_op(inode.ino, 1, "n1", 1);
        b.refused(op, TreeError::Invalid);
    }
    let link = |b: &mut Bed, n: &str, len: usize| {
        let mut op = b.create_op(Ino::ROOT, n.as_bytes(), libc::S_IFLNK | 0o777);
        if let Op::Create { target, .. } = &mut op {
            *target = Some(bytes(vec![b'x'; len]));
        }
        op
    };
    let op = link(&mut b, "l", TARGET_MAX);
    let l = b.ok(op).inode.unwrap();
    assert_eq!(l.size, TARGET_MAX as u64);
    assert_eq!(
        b.tree.read(|q| q.readlink(l.ino)).unwrap().len(),
        TARGET_MAX
    );
    let op = link(&mut b, "m", TARGET_MAX + 1);
    b.refused(op, TreeError::NameTooLong);
    assert_eq!(
        b.tree.read(|q| q.readlink(Ino::ROOT)),
        Err(TreeError::Invalid)
    );
}

#[test]
fn create_refuses_bad_parents_and_names() {
    let mut b = Bed::new();
    let f = b.make(Ino::ROOT, "f", FILE);
    let long = vec![b'n'; NAME_MAX + 1];
    let cases: [(Ino, &[u8], TreeError); 10] = [
        (Ino::ROOT, b"f", TreeError::Exists),
        (Ino(999), b"x", TreeError::NotFound),
        (f, b"x", TreeError::NotDirectory),
        (Ino::ROOT, b"", TreeError::Invalid),
        (Ino::ROOT, b".", TreeError::Invalid),
        (Ino::ROOT, b"..", TreeError::Invalid),
        (Ino::ROOT, b"a/b", TreeError::Invalid),
        (Ino::ROOT, b"a\0", TreeError::Invalid),
        (Ino::ROOT, &long, TreeError::NameTooLong),
        (
            Ino::ROOT,
            &long[..600.min(long.len())],
            TreeError::NameTooLong,
        ),
    ];
    for (parent, n, error) in cases {
        for mode in [FILE, DIR] {
            let op = b.create_op(parent, n, mode);
            b.refused(op, error.clone());
        }
    }
}

#[test]
fn names_are_bytes_up_to_255_of_them() {
    let mut b = Bed::new();
    let longest = vec![b'n'; NAME_MAX];
    let names: [&[u8]; 5] = [&longest, b"\xff\xfe", b"...", b" \n", b"\xc3\xa4"];
    for n in names {
        let op = b.create_op(Ino::ROOT, n, FILE);
        let ino = b.ok(op).inode.unwrap().ino;
        assert_eq!(b.tree.read(|q| q.lookup(Ino::ROOT, n)).unwrap().ino, ino);
        assert_eq!(b.tree.read(|q| q.paths_of(ino, 9)).unwrap(), [n.to_vec()]);
    }
    let listed = b.tree.read(|q| q.readdir(Ino::ROOT, 0, 100)).unwrap();
    assert!(listed.iter().map(|d| &d.name[..]).eq(names));
}

#[test]
fn a_set_group_id_directory_hands_on_its_group() {
    let mut b = Bed::new();
    let d = b.make(Ino::ROOT, "d", DIR);
    let op = Op::SetAttr {
        ino: d,
        mode: Some(0o2770),
        uid: None,
        gid: Some(77),
        atime: None,
        mtime: None,
        now: Time(1),
    };
    b.ok(op);
    let f = b.make(d, "f", FILE);
    let s = b.make(d, "s", DIR);
    assert_eq!((b.inode(f).gid, b.inode(f).mode), (77, FILE));
    assert_eq!((b.inode(s).gid, b.inode(s).mode), (77, DIR | libc::S_ISGID));
}

#[test]
fn an_inode_number_is_never_used_twice() {
    let mut b = Bed::new();
    let f = b.make(Ino::ROOT, "f", FILE);
    let before = dump(&b.tree);
    let again = create_op(f, Ino::ROOT, b"g", FILE, Time(9));
    assert!(matches!(b.run(again), Err(TreeError::Database(_))));
    assert_eq!(dump(&b.tree), before);
    let mut last = f.0;
    for _ in 0..2 * INO_BLOCK + 5 {
        let ino = b.tree.new_ino().unwrap().0;
        assert!(ino > last);
        last = ino;
    }
    let Bed {
        runtime, dir, tree, ..
    } = b;
    drop(tree);
    let tree = runtime.block_on(open(&dir.path().join("t")));
    assert!(tree.new_ino().unwrap().0 > last);
}

#[test]
fn link_adds_a_name_and_unlink_takes_one() {
    let mut b = Bed::new();
    let d = b.make(Ino::ROOT, "d", DIR);
    let f = b.make(Ino::ROOT, "f", FILE);
    let op = b.link_op(f, d, "g");
    b.ok(op);
    let linked = b.inode(f);
    assert_eq!((linked.nlink, linked.ctime), (2, Time(b.clock)));
    assert_eq!(
        b.tree.read(|q| q.paths_of(f, 9)).unwrap(),
        [b"f".to_vec(), b"d/g".to_vec()]
    );
    for (op, e) in [
        (b.link_op(f, d, "g"), TreeError::Exists),
        (b.link_op(d, Ino::ROOT, "e"), TreeError::NotPermitted),
        (b.link_op(Ino(999), d, "e"), TreeError::NotFound),
        (b.link_op(f, Ino(999), "e"), TreeError::NotFound),
        (b.link_op(f, f, "e"), TreeError::NotDirectory),
        (b.link_op(f, d, ".."), TreeError::Invalid),
        (b.unlink_op(d, "x"), TreeError::NotFound),
        (b.unlink_op(f, "x"), TreeError::NotDirectory),
        (b.unlink_op(Ino::ROOT, "d"), TreeError::IsDirectory),
    ] {
        b.refused(op, e);
    }
    let op = b.unlink_op(Ino::ROOT, "f");
    let applied = b.ok(op);
    assert_eq!(applied.inode.unwrap().nlink, 1);
    assert_eq!(b.inode(f).ctime, Time(b.clock));
    let op = b.unlink_op(d, "g");
    let applied = b.ok(op);
    let gone = applied.inode.unwrap();
    assert_eq!((gone.nlink, gone.ctime), (0, Time(b.clock)));
    assert!(applied.effects.contains(&Effect::Gone(Box::new(gone))));
    let op = b.link_op(f, d, "again");
    b.refused(op, TreeError::NotFound);
}

#[test]
fn the_number_of_links_is_bounded() {
    let mut b = Bed::new();
    let f = b.make(Ino::ROOT, "f", FILE);
    b.tree
        .sequencer
        .ask_writer(|q| {
            Ok(q.0.execute("UPDATE inodes SET nlink=2147483647 WHERE ino=?1", [f.0])?)
        })
        .unwrap();
    let op = b.link_op(f, Ino::ROOT, "g");
    b.refused(op, TreeError::TooManyLinks);
}

#[test]
fn rmdir_removes_only_empty_directories() {
    let mut b = Bed::new();
    let d = b.make(Ino::ROOT, "d", DIR);
    let s = b.make(d, "s", DIR);
    b.make(Ino::ROOT, "f", FILE);
    for (op, e) in [
        (b.rmdir_op(Ino::ROOT, "d"), TreeError::NotEmpty),
        (b.rmdir_op(Ino::ROOT, "f"), TreeError::NotDirectory),
        (b.rmdir_op(Ino::ROOT, "x"), TreeError::NotFound),
        (b.rmdir_op(Ino(999), "x"), TreeError::NotFound),
    ] {
        b.refused(op, e);
    }
    let op = b.rmdir_op(d, "s");
    b.ok(op);
    assert_eq!(b.inode(d).nlink, 2);
    let op = b.create_op(s, b"late", FILE);
    b.refused(op, TreeError::NotFound);
    let op = b.rmdir_op(Ino::ROOT, "d");
    assert_eq!(b.ok(op).inode.unwrap().nlink, 0);
    assert_eq!(b.inode(Ino::ROOT).nlink, 2);
}

#[test]
fn a_reader_of_a_directory_sees_each_lasting_entry_once() {
    let mut b = Bed::new();
    let d = b.make(Ino::ROOT, "d", DIR);
    for i in 0..40 {
        b.make(d, &format!("stay{i:02}"), FILE);
        b.make(d, &format!("go{i:02}"), FILE);
    }
    let (mut seen, mut after, mut round) = (Vec::new(), 0, 0);
    loop {
        let page = b.tree.read(|q| q.readdir(d, after, 7)).unwrap();
        let Some(last) = page.last() else { break };
        assert!(page.is_sorted_by_key(|e| e.cookie) && page[0].cookie > after);
        after = last.cookie;
        seen.extend(page.into_iter().map(|e| e.name));
        if round < 40 {
            let op = b.unlink_op(d, &format!("go{round:02}"));
            b.ok(op);
            b.make(d, &format!("new{round:02}"), FILE);
        }
        round += 1;
        assert!(round < 200);
    }
    let mut stayed: Vec<_> = seen.iter().filter(|n| n.starts_with(b"stay")).collect();
    assert_eq!(stayed.len(), 40);
    stayed.dedup();
    assert_eq!(stayed.len(), 40);
    // A position outlives its entry, and no later entry hides behind it.
    let op = b.unlink_op(d, "stay39");
    b.ok(op);
    b.make(d, "stay39", FILE);
    let rest = b.tree.read(|q| q.readdir(d, after, 7)).unwrap();
    assert_eq!(rest.len(), 1);
}

#[test]
fn set_attr_changes_what_is_given() {
    let mut b = Bed::new();
    let f = b.make(Ino::ROOT, "f", FILE);
    let before = b.inode(f);
    let set = |mode, uid, atime, mtime| Op::SetAttr {
        ino: f,
        mode,
        uid,
        gid: None,
        atime,
        mtime,
        now: Time(-5),
    };
    b.ok(set(None, None, None, None));
    assert_eq!(
        b.inode(f),
        Inode {
            ctime: Time(-5),
            ..before.clone()
        }
    );
    // The file type stays, whatever comes with the permission bits; times before 1970 and at the ends are kept.
    b.ok(set(
        Some(libc::S_IFDIR | 0o4751),
        Some(u32::MAX - 1),
        Some(Time(i64::MIN)),
        Some(Time(i64::MAX)),
    ));
    assert_eq!(
        b.inode(f),
        Inode {
            mode: libc::S_IFREG | 0o4751,
            uid: u32::MAX - 1,
            atime: Time(i64::MIN),
            mtime: Time(i64::MAX),
            ctime: Time(-5),
            ..before
        }
    );
    let op = Op::SetAttr {
        ino: Ino(999),
        mode: None,
        uid: None,
        gid: None,
        atime: None,
        mtime: None,
        now: Time(1),
    };
    b.refused(op, TreeError::NotFound);
}

#[test]
fn extended_attributes_follow_their_modes_and_bound() {
    let mut b = Bed::new();
    let f = b.make(Ino::ROOT, "f", FILE);
    let set = |ino: Ino, n: &str, len: usize, mode| Op::SetXattr {
        ino,
        name: bytes(n),
        value: bytes(vec![0xff; len]),
        mode,
        now: Time(3),
    };
    let remove = |ino, n: &str| Op::RemoveXattr {
        ino,
        name: bytes(n),
        now: Time(4),
    };
    b.refused(
        set(f, "user.a", 1, XattrMode::Replace),
        TreeError::NoAttribute,
    );
    b.refused(remove(f, "user.a"), TreeError::NoAttribute);
    b.refused(remove(Ino(999), "user.a"), TreeError::NotFound);
    b.refused(
        set(Ino(999), "user.a", 1, XattrMode::Set),
        TreeError::NotFound,
    );
    b.ok(set(f, "user.a", 1, XattrMode::Create));
    assert_eq!(b.inode(f).ctime, Time(3));
    b.refused(set(f, "user.a", 1, XattrMode::Create), TreeError::Exists);
    b.ok(set(f, "user.a", 0, XattrMode::Replace));
    assert_eq!(b.tree.read(|q| q.xattr(f, b"user.a")).unwrap(), b"");
    // Replacing counts the new value only, up to the very byte.
    let all = XATTRS_MAX - "user.a".len();
    b.ok(set(f, "user.a", all, XattrMode::Set));
    b.ok(set(f, "user.a", all, XattrMode::Set));
    b.refused(
        set(f, "user.a", all + 1, XattrMode::Set),
        TreeError::NoSpace,
    );
    b.refused(set(f, "b", 0, XattrMode::Set), TreeError::NoSpace);
    b.ok(set(f, "user.a", all - 1, XattrMode::Set));
    b.ok(set(f, "b", 0, XattrMode::Set));
    assert_eq!(
        b.tree.read(|q| q.xattr_names(f)).unwrap(),
        [b"b".to_vec(), b"user.a".to_vec()]
    );
    b.ok(remove(f, "b"));
    assert_eq!(b.inode(f).ctime, Time(4));
    let op = b.unlink_op(Ino::ROOT, "f");
    b.ok(op);
}

#[test]
fn ops_of_one_submission_are_all_or_none() {
    let mut b = Bed::new();
    let before = dump(&b.tree);
    let ops = vec![
        b.create_op(Ino::ROOT, b"a", FILE),
        b.create_op(Ino::ROOT, b"b", DIR),
        b.create_op(Ino::ROOT, b"a", FILE),
    ];
    assert_eq!(b.run_all(ops), Err(TreeError::Exists));
    assert_eq!(dump(&b.tree), before);
    let ops = vec![
        b.create_op(Ino::ROOT, b"a", FILE),
        b.rename_op((Ino::ROOT, "a"), (Ino::ROOT, "b"), RenameMode::NoReplace),
    ];
    let applied = b.run_all(ops).unwrap();
    assert_eq!(applied.inode.unwrap().ctime, Time(b.clock));
    assert_eq!(b.names(Ino::ROOT), ["b"]);
}

#[test]
fn a_file_that_changes_hands_loses_its_set_id_bits() {
    let mut b = Bed::new();
    let ino = b.make(Ino::ROOT, "f", libc::S_IFREG | 0o6755);
    let mut mode_after = |mode, uid, gid| {
        let now = b.now();
        b.ok(Op::SetAttr {
            ino,
            mode,
            uid,
            gid,
            atime: None,
            mtime: None,
            now,
        });
        b.inode(ino).mode & 0o7777
    };
    assert_eq!(mode_after(None, Some(7), None), 0o755);
    assert_eq!(mode_after(Some(0o6644), None, None), 0o6644);
    // Without the group's right to execute the bit means mandatory locking, and stays.
    assert_eq!(mode_after(None, None, Some(7)), 0o2644);
}
