//! The cases: every call with every kind of file, every way to have or lack a permission, every shape of a path.

mod attributes;
mod entries;
mod opened;
mod paths;

use libc::*;

use crate::calls::Op::*;
use crate::calls::{
    GROUP, MEMBER, NOW, OMIT, OTHER_GROUP, OWNER, Op, ROOT, STRANGE_GROUP, STRANGER, Stamp, Who,
};

/// A directory is prepared by `setup`, whose calls all succeed; then the calls of `act` are compared.
pub struct Case {
    pub name: String,
    pub setup: Vec<Op>,
    pub act: Vec<Op>,
}

/// The kinds of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Fifo,
    Block,
    Char,
    Socket,
    Symlink,
}

pub const KINDS: [Kind; 7] = [
    Kind::File,
    Kind::Dir,
    Kind::Fifo,
    Kind::Block,
    Kind::Char,
    Kind::Socket,
    Kind::Symlink,
];
const ACTORS: [Who; 4] = [ROOT, OWNER, MEMBER, STRANGER];

/// Makes a file of this kind.
pub fn make(kind: Kind, path: &str, mode: u32) -> Op {
    // Numbers that no driver has, so that opening one is an error and nothing else.
    let rdev = makedev(240, 7);
    let path = path.to_string();
    match kind {
        Kind::File => Open(path, O_CREAT | O_EXCL | O_WRONLY, mode),
        Kind::Dir => Mkdir(path, mode),
        Kind::Fifo => Mknod(path, S_IFIFO | mode, 0),
        Kind::Block => Mknod(path, S_IFBLK | mode, rdev),
        Kind::Char => Mknod(path, S_IFCHR | mode, rdev),
        Kind::Socket => Mknod(path, S_IFSOCK | mode, 0),
        Kind::Symlink => Symlink("target".into(), path),
    }
}

/// The same, with its owner and these permissions whatever the caller's umask.
fn make_for(kind: Kind, path: &str, mode: u32, uid: u32, gid: u32) -> Vec<Op> {
    let mut ops = vec![
        make(kind, path, 0o777),
        Lchown(path.into(), uid.into(), gid.into()),
    ];
    if kind != Kind::Symlink {
        ops.push(Chmod(path.into(), mode));
    }
    ops
}

/// A directory for the owner's group.
fn dir(path: &str, mode: u32) -> Vec<Op> {
    make_for(Kind::Dir, path, mode, OWNER.uid, GROUP)
}

fn file(path: &str, mode: u32) -> Vec<Op> {
    make_for(Kind::File, path, mode, OWNER.uid, GROUP)
}

fn acting(who: Who, ops: impl IntoIterator<Item = Op>) -> Vec<Op> {
    std::iter::once(Become(who)).chain(ops).collect()
}

#[derive(Default)]
struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, name: String, setup: Vec<Op>, act: Vec<Op>) {
        self.0.push(Case { name, setup, act });
    }
}

/// All of them.
pub fn all() -> Vec<Case> {
    let mut cases = Cases::default();
    entries::creating(&mut cases);
    paths::path_shapes(&mut cases);
    paths::opening(&mut cases);
    entries::renaming_kinds(&mut cases);
    entries::sticky(&mut cases);
    entries::parent_permissions(&mut cases);
    attributes::file_permissions(&mut cases);
    attributes::changing_modes(&mut cases);
    attributes::changing_owners(&mut cases);
    attributes::set_ids_and_writing(&mut cases);
    attributes::times(&mut cases);
    paths::lengths(&mut cases);
    entries::link_counts(&mut cases);
    opened::open_and_gone(&mut cases);
    cases.0
}
