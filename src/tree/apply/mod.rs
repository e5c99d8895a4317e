//! Applying an op: the one place that changes the namespace.
//!
//! Deterministic: the result depends on the tables and on the op, never on a clock, a random number or this node. Every
//! check that another machine could have invalidated is made here, since here the op meets the state that it changes.
//! [`entries`] does what changes names, [`attributes`] what changes the inode itself, [`contents`] where its bytes are.

mod attributes;
mod contents;
mod entries;

use rusqlite::Connection;

use super::op::{Op, TreeError};
use super::query::{Inode, Query};
use crate::types::{BlobId, ContentHash, Ino};
use attributes::Change;
use entries::NewInode;

/// What an op did, for whoever caches the tree: the kernel, and the files that are open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The name appeared, went, or means another inode now.
    Entry {
        /// Directory.
        parent: Ino,
        /// Name in it.
        name: Vec<u8>,
    },
    /// Attributes changed.
    Attributes(Ino),
    /// The bytes changed.
    Content(Ino),
    /// The last name went. Whoever has it open keeps these last attributes.
    Gone(Box<Inode>),
    /// An object left the tree for good and its bytes may be deleted.
    Reaped {
        /// The content.
        hash: ContentHash,
        /// Its object in the store.
        blob: BlobId,
    },
}

/// What applying gave back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// The inode that the op was about, as it is now.
    pub inode: Option<Inode>,
    /// What others must hear.
    pub effects: Vec<Effect>,
}

type Result<T> = std::result::Result<T, TreeError>;

/// Applies `op` on `conn`, inside the caller's transaction and savepoint.
pub fn apply(conn: &Connection, op: &Op) -> Result<Applied> {
    let mut ctx = Apply {
        conn,
        q: Query(conn),
        out: Applied::default(),
    };
    ctx.dispatch(op)?;
    Ok(ctx.out)
}

struct Apply<'c> {
    conn: &'c Connection,
    q: Query<'c>,
    out: Applied,
}

impl Apply<'_> {
    fn dispatch(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Create {
                parent,
                name,
                ino,
                mode,
                uid,
                gid,
                rdev,
                target,
                now,
            } => {
                let inode = NewInode {
                    ino: *ino,
                    mode: *mode,
                    uid: *uid,
                    gid: *gid,
                    rdev: *rdev,
                    target: target.as_ref(),
                };
                self.create(*parent, name, inode, *now)
            }
            Op::Link {
                ino,
                parent,
                name,
                now,
            } => self.link(*ino, *parent, name, *now),
            Op::Unlink { parent, name, now } => self.unlink(*parent, name, *now),
            Op::Rmdir { parent, name, now } => self.rmdir(*parent, name, *now),
            Op::Rename {
                parent,
                name,
                new_parent,
                new_name,
                mode,
                now,
            } => self.rename((*parent, name), (*new_parent, new_name), *mode, *now),
            Op::SetAttr {
                ino,
                mode,
                uid,
                gid,
                atime,
                mtime,
                now,
            } => {
                let change = Change {
                    mode: *mode,
                    uid: *uid,
                    gid: *gid,
                    atime: *atime,
                    mtime: *mtime,
                };
                self.set_attr(*ino, change, *now)
            }
            Op::SetXattr {
                ino,
                name,
                value,
                mode,
                now,
            } => self.set_xattr(*ino, name, value, *mode, *now),
            Op::RemoveXattr { ino, name, now } => self.remove_xattr(*ino, name, *now),
            Op::Pending {
                ino,
                generation,
                node,
                size,
                mtime,
                ctime,
            } => self.pending(*ino, *generation, node, *size, *mtime, *ctime),
            Op::Commit {
                ino,
                generation,
                hash,
                size,
                blob,
                by,
                now,
            } => self.commit(*ino, *generation, hash, *size, blob, by, *now),
            Op::Reap { hash, now } => self.reap(hash, *now),
            Op::Bury { blob, now } => self.bury(blob, *now),
            Op::Replace {
                hash,
                lost,
                blob,
                now,
            } => self.replace(hash, lost, blob, *now),
        }
    }
}
