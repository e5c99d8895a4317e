//! What becomes of a change that was made while the shared log was away, now that others have changed the tree as well.
//!
//! Nothing that was written is dropped. A name that somebody else took meanwhile stays theirs, and ours is kept beside it
//! as `name.conflict-<node>-<time>`; so is a file that both sides wrote. A file that was removed there and written here
//! comes back. A removal here yields to a change there. Directories made on both sides become one.

use std::collections::{HashMap, HashSet};
use std::io;

use tracing::warn;

use super::conflicts::free_name;
use super::fork::Kept;
use super::op::{Bytes, Op, RenameMode, TreeError};
use super::query::{Body, Query};
use super::{Holdings, Result};
use crate::types::{Generation, Ino, NodeId, Time};
use crate::windows;

type Name = (Ino, Vec<u8>);

pub(super) struct Resolver<'a> {
    node: &'a NodeId,
    /// The tree as this node saw it while it was alone.
    fork: Query<'a>,
    /// Nothing before recovery is through; there is no outbox to be replayed then.
    holdings: Option<&'a dyn Holdings>,
    kept: &'a mut Kept,
    /// Numbers that no inode has.
    numbers: Vec<Ino>,
    /// What names that are removed or replaced here meant before the outage.
    before: HashMap<Name, Option<(Ino, Generation)>>,
    /// Which version of a file that is written here was there before the outage.
    versions: HashMap<Ino, Generation>,
    /// Inodes that this node made meanwhile.
    made: HashSet<Ino>,
    /// Inodes that have another number now: a directory that others made too, a file that both wrote.
    inodes: HashMap<Ino, Ino>,
    /// Names that had to give way.
    names: HashMap<Name, Bytes>,
}

impl<'a> Resolver<'a> {
    /// `ops` is the outbox, `base` the tree before the outage.
    pub(super) fn new(
        node: &'a NodeId,
        fork: Query<'a>,
        holdings: Option<&'a dyn Holdings>,
        kept: &'a mut Kept,
        numbers: Vec<Ino>,
        base: Query<'_>,
        ops: &[Op],
    ) -> Result<Resolver<'a>> {
        let mut this = Resolver {
            node,
            fork,
            holdings,
            kept,
            numbers,
            before: HashMap::new(),
            versions: HashMap::new(),
            made: HashSet::new(),
            inodes: HashMap::new(),
            names: HashMap::new(),
        };
        for op in ops {
            match op {
                Op::Create { ino, .. } => {
                    this.made.insert(*ino);
                }
                Op::Pending { ino, .. } => {
                    if let Some(inode) = optional(base.inode(*ino))? {
                        this.versions.insert(*ino, inode.generation);
                    }
                }
                Op::Unlink { parent, name, .. } | Op::Rmdir { parent, name, .. } => {
                    this.note(base, *parent, name)?;
                }
                Op::Rename {
                    parent,
                    name,
                    new_parent,
                    new_name,
                    ..
                } => {
                    this.note(base, *parent, name)?;
                    this.note(base, *new_parent, new_name)?;
                }
                _ => {}
            }
        }
        Ok(this)
    }

    fn note(&mut self, base: Query<'_>, parent: Ino, name: &Bytes) -> Result<()> {
        let there = optional(base.lookup(parent, name))?;
        let known = there.map(|i| (i.ino, i.generation));
        self.before.insert((parent, name.to_vec()), known);
        Ok(())
    }

    /// The ops that do the same to the tree `q` as it is now; none when there is nothing left to do.
    pub(super) fn resolve(&mut self, q: Query<'_>, op: Op) -> Result<Vec<Op>> {
        match op {
            Op::Create { .. } => self.create(q, op),
            Op::Link {
                ino,
                parent,
                name,
                now,
            } => {
                let ino = self.number(ino);
                if optional(q.inode(ino))?.is_none() {
                    return Ok(Vec::new());
                }
                let (mut ops, parent) = self.directory(q, parent, now)?;
                let name = match q.child(parent, &name)? {
                    Some(there) if there == ino => return Ok(ops),
                    Some(_) => self.give_way(q, parent, &name, now)?,
                    None => name,
                };
                ops.push(Op::Link {
                    ino,
                    parent,
                    name,
                    now,
                });
                Ok(ops)
            }
            Op::Unlink { parent, name, now } => {
                let Some((parent, name)) = self.still_ours(q, parent, name)? else {
                    return Ok(Vec::new());
                };
                Ok(vec![Op::Unlink { parent, name, now }])
            }
            Op::Rmdir { parent, name, now } => {
                let Some((parent, name)) = self.still_ours(q, parent, name)? else {
                    return Ok(Vec::new());
                };
                if !is_empty(q, q.child(parent, &name)?)? {
                    return Ok(Vec::new());
                }
                Ok(vec![Op::Rmdir { parent, name, now }])
            }
            Op::Rename { .. } => self.rename(q, op),
            Op::SetAttr {
                ino,
                mode,
                uid,
                gid,
                atime,
                mtime,
                now,
            } => {
                let ino = self.number(ino);
                Ok(when_there(
                    q,
                    ino,
                    Op::SetAttr {
                        ino,
                        mode,
                        uid,
                        gid,
                        atime,
                        mtime,
                        now,
                    },
                )?)
            }
            Op::SetXattr {
                ino,
                name,
                value,
                now,
                ..
            } => {
                let ino = self.number(ino);
                Ok(when_there(
                    q,
                    ino,
                    Op::SetXattr {
                        ino,
                        name,
                        value,
                        mode: super::op::XattrMode::Set,
                        now,
                    },
                )?)
            }
            Op::RemoveXattr { ino, name, now } => {
                let ino = self.number(ino);
                match q.xattr(ino, &name) {
                    Ok(_) => Ok(vec![Op::RemoveXattr { ino, name, now }]),
                    Err(TreeError::NoAttribute) => Ok(Vec::new()),
                    Err(e) => Err(e),
                }
            }
            Op::Pending { .. } => self.pending(q, op),
            // Nothing can be stored or removed from the store while it is away.
            Op::Commit { .. } | Op::Reap { .. } | Op::Bury { .. } | Op::Replace { .. } => {
                Ok(Vec::new())
            }
        }
    }

    fn create(&mut self, q: Query<'_>, op: Op) -> Result<Vec<Op>> {
        let Op::Create {
            parent,
            mut name,
            ino,
            mode,
            uid,
            gid,
            rdev,
            target,
            now,
        } = op
        else {
            return Ok(vec![op]);
        };
        let (mut ops, parent) = self.directory(q, parent, now)?;
        if let Some(there) = q.child(parent, &name)? {
            if mode & libc::S_IFMT == libc::S_IFDIR && q.inode(there)?.is_dir() {
                self.inodes.insert(ino, there);
                return Ok(ops);
            }
            name = self.give_way(q, parent, &name, now)?;
        }
        ops.push(Op::Create {
            parent,
            name,
            ino,
            mode,
            uid,
            gid,
            rdev,
            target,
            now,
        });
        Ok(ops)
    }

    fn rename(&mut self, q: Query<'_>, op: Op) -> Result<Vec<Op>> {
        let Op::Rename {
            parent,
            name,
            new_parent,
            new_name,
            mode,
            now,
        } = op
        else {
            return Ok(vec![op]);
        };
        let target = (new_parent, new_name.to_vec());
        let Some((parent, name)) = self.still_ours(q, parent, name)? else {
            return Ok(Vec::new());
        };
        let (mut ops, new_parent) = self.directory(q, new_parent, now)?;
        let there = q.child(new_parent, &new_name)?;
        let (new_name, mode) = match (mode, there) {
            (RenameMode::Exchange, None) => (new_name, RenameMode::NoReplace),
            (RenameMode::Exchange, Some(_)) => (new_name, mode),
            (_, None) => (new_name, mode),
            (RenameMode::Replace, Some(ino))
                if self.unchanged(q, &target, ino)? && is_empty(q, Some(ino))? =>
            {
                (new_name, mode)
            }
            (_, Some(_)) => (
                self.give_way(q, new_parent, &new_name, now)?,
                RenameMode::NoReplace,
            ),
        };
        self.before.remove(&target);
        ops.push(Op::Rename {
            parent,
            name,
            new_parent,
            new_name,
            mode,
            now,
        });
        Ok(ops)
    }

    fn pending(&mut self, q: Query<'_>, op: Op) -> Result<Vec<Op>> {
        let Op::Pending {
            ino: written,
            generation,
            node,
            size,
            mtime,
            ctime,
        } = op
        else {
            return Ok(vec![op]);
        };
        let ino = self.number(written);
        let op = |ino, generation| Op::Pending {
            ino,
            generation,
            node: node.clone(),
            size,
            mtime,
            ctime,
        };
        // Kept aside already: what this node holds of it is the newest.
        if ino != written {
            return Ok(vec![op(ino, Generation(1))]);
        }
        let now = optional(q.inode(ino))?;
        let place = match &now {
            Some(inode) => {
                let unchanged = match &inode.body {
                    // Written by replaying, or by what has arrived of the outbox.
                    Body::Pending { node, .. } if node == self.node => true,
                    // Without an entry it was made here. How high this node's own number has climbed says nothing.
                    body => match self.versions.get(&ino) {
                        Some(version) => *version == inode.generation,
                        None => *body == Body::Empty,
                    },
                };
                if unchanged {
                    return Ok(vec![op(ino, generation)]);
                }
                // Both wrote it.
                q.names_of(ino, 1)?.pop()
            }
            // Removed there, written here.
            None => self.fork.names_of(ino, 1)?.pop(),
        };
        let (Some((parent, name)), Some(inode)) = (place, optional(self.fork.inode(ino))?) else {
            return Ok(Vec::new());
        };
        let (mut ops, parent) = self.directory(q, parent, ctime)?;
        let name = Bytes::from(name);
        let name = match q.child(parent, &name)? {
            Some(_) => free_name(q, parent, &name, self.node, ctime)?,
            None => name,
        };
        let Some(aside) = self.keep_aside((ino, inode.generation))? else {
            warn!("inode {ino} was changed elsewhere, and the power took what was written here");
            return Ok(Vec::new());
        };
        warn!(
            "inode {ino} was changed elsewhere while this node was alone: its own version is kept as {}",
            String::from_utf8_lossy(&name)
        );
        self.inodes.insert(ino, aside);
        ops.push(Op::Create {
            parent,
            name,
            ino: aside,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            rdev: 0,
            target: None,
            now: ctime,
        });
        ops.push(op(aside, Generation(1)));
        Ok(ops)
    }

    /// The number under which the bytes of this version are kept; `None` when there are none.
    fn keep_aside(&mut self, version: (Ino, Generation)) -> Result<Option<Ino>> {
        if let Some(aside) = self.kept.find(version.0, version.1) {
            return Ok(Some(aside));
        }
        let aside = self.numbers.pop().ok_or_else(|| {
            TreeError::Unavailable("too few inode numbers for files to be kept aside".into())
        })?;
        let kept = match self.holdings {
            Some(holdings) => self.kept.keep(holdings, version, aside),
            None => Err(io::Error::other("the spool is not open yet")),
        };
        match kept {
            Ok(()) => {
                windows::MERGE_ASIDE.passed();
                Ok(Some(aside))
            }
            Err(e) => match e.kind() {
                io::ErrorKind::NotFound => Ok(None),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Err(TreeError::NoSpace)
                }
                _ => {
                    let why = format!("keeping the bytes of inode {} aside: {e}", version.0);
                    Err(TreeError::Unavailable(why))
                }
            },
        }
    }

    fn number(&self, ino: Ino) -> Ino {
        self.inodes.get(&ino).copied().unwrap_or(ino)
    }

    /// The directory `ino` as it is called now, with the ops that bring it back if others removed it.
    fn directory(&mut self, q: Query<'_>, ino: Ino, now: Time) -> Result<(Vec<Op>, Ino)> {
        let ino = self.number(ino);
        if optional(q.inode(ino))?.is_some_and(|i| i.is_dir()) {
            return Ok((Vec::new(), ino));
        }
        let (place, mode) = match (self.fork.names_of(ino, 1)?.pop(), self.fork.inode(ino)) {
            (Some((parent, name)), Ok(inode)) => ((parent, Bytes::from(name)), inode.mode),
            // Gone here as well by the end: only what is in it now matters.
            _ => {
                let name = format!("lost+found-{}-{ino}", self.node);
                (
                    (Ino::ROOT, Bytes::from(name.into_bytes())),
                    libc::S_IFDIR | 0o700,
                )
            }
        };
        let (mut ops, parent) = self.directory(q, place.0, now)?;
        let name = match q.child(parent, &place.1)? {
            Some(there) if q.inode(there)?.is_dir() => {
                self.inodes.insert(ino, there);
                return Ok((ops, there));
            }
            Some(_) => self.give_way(q, parent, &place.1, now)?,
            None => place.1,
        };
        let (uid, gid) = optional(self.fork.inode(ino))?.map_or((0, 0), |i| (i.uid, i.gid));
        ops.push(Op::Create {
            parent,
            name,
            ino,
            mode,
            uid,
            gid,
            rdev: 0,
            target: None,
            now,
        });
        Ok((ops, ino))
    }

    /// Where the name is now, if it still means what it meant to the one who removes or moves it.
    fn still_ours(
        &mut self,
        q: Query<'_>,
        parent: Ino,
        name: Bytes,
    ) -> Result<Option<(Ino, Bytes)>> {
        let before = (parent, name.to_vec());
        let parent = self.number(parent);
        if let Some(other) = self.names.remove(&(parent, name.to_vec())) {
            return Ok(Some((parent, other)));
        }
        let ours = match q.child(parent, &name)? {
            Some(ino) => self.unchanged(q, &before, ino)?,
            None => false,
        };
        self.before.remove(&before);
        Ok(ours.then_some((parent, name)))
    }

    /// Whether the name meant this inode, with this content, before the outage, or is of this node's own making.
    fn unchanged(&self, q: Query<'_>, name: &Name, now: Ino) -> Result<bool> {
        if self.made.contains(&now) {
            return Ok(true);
        }
        match self.before.get(name) {
            // Replaying has put it there.
            None => Ok(true),
            Some(None) => Ok(false),
            Some(Some((ino, generation))) => {
                let inode = q.inode(now)?;
                let own = matches!(&inode.body, Body::Pending { node, .. } if node == self.node);
                Ok(now == *ino && (own || inode.generation <= *generation))
            }
        }
    }

    fn give_way(&mut self, q: Query<'_>, parent: Ino, name: &Bytes, now: Time) -> Result<Bytes> {
        let other = free_name(q, parent, name, self.node, now)?;
        self.names.insert((parent, name.to_vec()), other.clone());
        Ok(other)
    }
}

pub(super) fn optional<T>(found: Result<T>) -> Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(TreeError::NotFound) => Ok(None),
        Err(e) => Err(e),
    }
}

fn when_there(q: Query<'_>, ino: Ino, op: Op) -> Result<Vec<Op>> {
    Ok(optional(q.inode(ino))?.map(|_| op).into_iter().collect())
}

/// Whether nothing would be lost with it but itself.
fn is_empty(q: Query<'_>, ino: Option<Ino>) -> Result<bool> {
    let Some(ino) = ino else { return Ok(true) };
    Ok(!q.inode(ino)?.is_dir() || q.readdir(ino, 0, 1)?.is_empty())
}
