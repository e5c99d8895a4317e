//! Operations on names and attributes.

use std::sync::Arc;

use super::open::OpenInode;
use super::{Attr, Caller, Result, Vfs, VfsError};
use crate::content::disk;
use crate::tree::op::{Bytes, RenameMode};
use crate::tree::{Applied, Commitment, Dentry, Inode, Op, Origin, TreeError};
use crate::types::{Ino, Time};
use crate::windows;

/// A new inode that is no regular file.
#[derive(Clone, Debug, Default)]
pub struct NewNode {
    /// Type and permission bits.
    pub mode: u32,
    /// Device number.
    pub rdev: u32,
    /// Target of a symbolic link.
    pub target: Option<Vec<u8>>,
}

/// What setattr(2) and its family may change.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttrChange {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<Time>,
    /// Modification time.
    pub mtime: Option<Time>,
}

impl AttrChange {
    fn changes_inode(&self) -> bool {
        self.mode.is_some()
            || self.uid.is_some()
            || self.gid.is_some()
            || self.atime.is_some()
            || self.mtime.is_some()
    }

    /// Does it to an inode that the namespace no longer has.
    fn apply(&self, inode: &mut Inode) {
        if let Some(mode) = self.mode {
            inode.mode = inode.kind() | (mode & 0o7777);
        }
        inode.uid = self.uid.unwrap_or(inode.uid);
        inode.gid = self.gid.unwrap_or(inode.gid);
        inode.atime = self.atime.unwrap_or(inode.atime);
        inode.mtime = self.mtime.unwrap_or(inode.mtime);
        inode.ctime = Time::now();
    }
}

/// One entry for readdirplus.
pub struct Listed {
    /// Name and position.
    pub dentry: Dentry,
    /// Attributes.
    pub attr: Attr,
}

pub(super) fn bytes(name: &[u8]) -> Bytes {
    Bytes::from(name.to_vec())
}

fn inode_of(applied: Applied) -> Result<Inode> {
    applied
        .inode
        .ok_or_else(|| TreeError::Database("the op returned no inode".into()).into())
}

impl Vfs {
    pub(super) async fn op(&self, op: Op) -> Result<Applied> {
        Ok(self
            .tree
            .submit(Origin::Kernel, Commitment::Committed, vec![op])
            .await?)
    }

    /// What `name` names in `parent`.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        if name.len() > crate::tree::op::NAME_MAX {
            return Err(TreeError::NameTooLong.into());
        }
        let inode = self.tree.read(|q| q.lookup(parent, name))?;
        self.with_overlay(inode)
    }

    /// The directory that `name` names in `parent`, if it names one.
    pub fn directory_at(&self, parent: Ino, name: &[u8]) -> Option<Ino> {
        let inode = self.tree.read(|q| q.lookup(parent, name)).ok()?;
        inode.is_dir().then_some(inode.ino)
    }

    /// Makes a directory, symbolic link, fifo, socket, device, or an empty file that nobody has open.
    pub async fn make(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        new: NewNode,
    ) -> Result<Attr> {
        let ino = self.tree.new_ino()?;
        let applied = self
            .op(Op::Create {
                parent,
                name: bytes(name),
                ino,
                mode: new.mode,
                uid: caller.uid,
                gid: caller.gid,
                rdev: new.rdev,
                target: new.target.map(Bytes::from),
                now: Time::now(),
            })
            .await?;
        Ok(inode_of(applied)?.into())
    }

    /// One more name for a file.
    pub async fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attr> {
        let applied = self
            .op(Op::Link {
                ino,
                parent,
                name: bytes(name),
                now: Time::now(),
            })
            .await?;
        self.with_overlay(inode_of(applied)?)
    }

    /// One name less.
    pub async fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let op = Op::Unlink {
            parent,
            name: bytes(name),
            now: Time::now(),
        };
        self.op(op).await.map(drop)
    }

    /// Removes an empty directory.
    pub async fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let op = Op::Rmdir {
            parent,
            name: bytes(name),
            now: Time::now(),
        };
        self.op(op).await.map(drop)
    }

    /// Moves a name.
    pub async fn rename(
        &self,
        (parent, name): (Ino, &[u8]),
        (new_parent, new_name): (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        let op = Op::Rename {
            parent,
            name: bytes(name),
            new_parent,
            new_name: bytes(new_name),
            mode,
            now: Time::now(),
        };
        self.op(op).await?;
        windows::RENAME.passed();
        Ok(())
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        Ok(self.tree.read(|q| q.readlink(ino))?)
    }

    /// Entries of a directory after position `after`, at most `limit`, with their attributes.
    pub fn list(&self, dir: Ino, after: u64, limit: usize) -> Result<Vec<Listed>> {
        let found = self.tree.scan(|q| {
            let mut found = Vec::new();
            for dentry in q.readdir(dir, after, limit)? {
                found.push((q.inode(dentry.ino)?, dentry));
            }
            Ok(found)
        })?;
        found
            .into_iter()
            .map(|(inode, dentry)| {
                Ok(Listed {
                    dentry,
                    attr: self.with_overlay(inode)?,
                })
            })
            .collect()
    }

    /// Somebody has a directory open: it keeps its attributes until it is closed, even when it is removed. Each call
    /// needs one [`Vfs::release_dir`].
    pub fn open_dir(&self, ino: Ino) {
        self.opens.join(ino);
    }

    /// One open directory less.
    pub fn release_dir(&self, ino: Ino) {
        self.opens.leave(ino);
    }

    /// The directory that holds directory `ino`.
    pub fn parent_of(&self, ino: Ino) -> Result<Ino> {
        Ok(self.tree.read(|q| q.inode(ino))?.parent.unwrap_or(ino))
    }

    /// Makes what the namespace holds survive power loss.
    pub fn sync_names(&self) -> Result<()> {
        Ok(self.tree.sync()?)
    }

    /// Changes attributes, and the length when it is given.
    pub async fn setattr(&self, caller: Caller, ino: Ino, mut change: AttrChange) -> Result<Attr> {
        if let Some(size) = change.size {
            self.truncate(caller, ino, size).await?;
            if !change.changes_inode() {
                return self.attr(ino);
            }
        }
        let changes_owner = change.uid.is_some() || change.gid.is_some();
        if change.mode.is_none() && (changes_owner || !change.changes_inode()) {
            change.mode = self.mode_after(caller, ino, changes_owner)?;
        }
        self.change_attributes(ino, change).await
    }

    /// Changes attributes as they are given.
    pub(super) async fn change_attributes(&self, ino: Ino, change: AttrChange) -> Result<Attr> {
        let open = self.opens.get(ino);
        if let Some(open) = &open
            && self.change_unnamed(open, &change)
        {
            return self.attr(ino);
        }
        // The spool file's own time is the truth while it is written.
        if let Some(mtime) = change.mtime {
            match open.as_ref().and_then(|o| o.spool_file()) {
                Some(file) => disk::set_mtime(&file, mtime)?,
                None => self.spool.set_sealed_mtime(ino, mtime)?,
            }
        }
        let applied = self
            .op(Op::SetAttr {
                ino,
                mode: change.mode,
                uid: change.uid,
                gid: change.gid,
                atime: change.atime,
                mtime: change.mtime,
                now: Time::now(),
            })
            .await;
        match (applied, open) {
            (Ok(applied), _) => self.with_overlay(inode_of(applied)?),
            // Its last name went in between.
            (Err(VfsError::Tree(TreeError::NotFound)), Some(open))
                if self.change_unnamed(&open, &change) =>
            {
                self.attr(ino)
            }
            (Err(VfsError::Tree(TreeError::NotFound)), None)
                if self.opens.change_departed(ino, |inode| change.apply(inode)) =>
            {
                self.attr(ino)
            }
            (Err(e), _) => Err(e),
        }
    }

    /// The permissions after a chown(2). The kernel asks for a change of nothing when that leaves both owners, and before a
    /// write by somebody who may not keep the set-id bits, also one who was given the descriptor. All of them move the change
    /// time; the chown(2) that leaves both owners clears the bits only for those who could change the permissions.
    fn mode_after(&self, caller: Caller, ino: Ino, changes_owner: bool) -> Result<Option<u32>> {
        let inode = self.attr(ino)?.inode;
        let mode = caller.mode_without_ids(&inode);
        if mode == inode.mode {
            return Ok(None);
        }
        let is_owner = caller.uid == 0 || caller.uid == inode.uid;
        if !changes_owner && !is_owner && !self.opens.is_open_for_writing(ino) {
            return Err(TreeError::NotPermitted.into());
        }
        Ok(Some(mode))
    }

    fn change_unnamed(&self, open: &Arc<OpenInode>, change: &AttrChange) -> bool {
        let changed = open.change_gone(|inode| change.apply(inode));
        if changed && let (Some(file), Some(mtime)) = (open.spool_file(), change.mtime) {
            // Nobody will see it under a name again; a failure here is shown by the next stat only.
            let _ = disk::set_mtime(&file, mtime);
        }
        changed
    }
}
