//! The inode itself: permissions, owners, times, extended attributes.

use rusqlite::params;

use super::super::op::{Bytes, TreeError, XATTRS_MAX, XattrMode};
use super::super::query::Inode;
use super::{Apply, Effect, Result};
use crate::types::{Ino, Time};

/// What `Op::SetAttr` changes.
pub(super) struct Change {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub atime: Option<Time>,
    pub mtime: Option<Time>,
}

impl Apply<'_> {
    pub(super) fn set_attr(&mut self, ino: Ino, change: Change, now: Time) -> Result<()> {
        let mut inode = self.q.inode(ino)?;
        match change.mode {
            Some(mode) => inode.mode = inode.kind() | (mode & 0o7777),
            None if change.uid.is_some() || change.gid.is_some() => clear_set_ids(&mut inode),
            None => {}
        }
        inode.uid = change.uid.unwrap_or(inode.uid);
        inode.gid = change.gid.unwrap_or(inode.gid);
        inode.atime = change.atime.unwrap_or(inode.atime);
        inode.mtime = change.mtime.unwrap_or(inode.mtime);
        inode.ctime = now;
        self.update(&inode)?;
        self.out.effects.push(Effect::Attributes(ino));
        self.out.inode = Some(inode);
        Ok(())
    }

    pub(super) fn set_xattr(
        &mut self,
        ino: Ino,
        name: &Bytes,
        value: &Bytes,
        mode: XattrMode,
        now: Time,
    ) -> Result<()> {
        self.q.inode(ino)?;
        let exists = match self.q.xattr(ino, name) {
            Ok(_) => true,
            Err(TreeError::NoAttribute) => false,
            Err(e) => return Err(e),
        };
        match mode {
            XattrMode::Create if exists => return Err(TreeError::Exists),
            XattrMode::Replace if !exists => return Err(TreeError::NoAttribute),
            _ => {}
        }
        let used: i64 = self
            .conn
            .prepare_cached(
                "SELECT coalesce(sum(length(name)+length(value)),0) FROM xattrs WHERE ino=?1 AND name<>?2",
            )?
            .query_row(params![ino.0, &name[..]], |r| r.get(0))?;
        if used as usize + name.len() + value.len() > XATTRS_MAX {
            return Err(TreeError::NoSpace);
        }
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO xattrs(ino, name, value) VALUES(?1,?2,?3)")?
            .execute(params![ino.0, &name[..], &value[..]])?;
        self.touch(ino, now)
    }

    pub(super) fn remove_xattr(&mut self, ino: Ino, name: &Bytes, now: Time) -> Result<()> {
        let removed = self
            .conn
            .prepare_cached("DELETE FROM xattrs WHERE ino=?1 AND name=?2")?
            .execute(params![ino.0, &name[..]])?;
        if removed == 0 {
            self.q.inode(ino)?;
            return Err(TreeError::NoAttribute);
        }
        self.touch(ino, now)
    }

    fn touch(&mut self, ino: Ino, now: Time) -> Result<()> {
        let mut inode = self.q.inode(ino)?;
        inode.ctime = now;
        self.update(&inode)?;
        self.out.effects.push(Effect::Attributes(ino));
        self.out.inode = Some(inode);
        Ok(())
    }

    /// Writes the columns that attributes are made of; not where the content is.
    pub(super) fn update(&self, inode: &Inode) -> Result<()> {
        self.conn
            .prepare_cached(
                "UPDATE inodes SET mode=?2, nlink=?3, uid=?4, gid=?5, size=?6, atime=?7, mtime=?8, ctime=?9, parent=?10
                 WHERE ino=?1",
            )?
            .execute(params![
                inode.ino.0,
                inode.mode,
                inode.nlink,
                inode.uid,
                inode.gid,
                inode.size,
                inode.atime.0,
                inode.mtime.0,
                inode.ctime.0,
                inode.parent.map(|p| p.0),
            ])?;
        Ok(())
    }
}

/// What changes hands loses set-user-id, and set-group-id where that is not mandatory locking, as on Linux.
fn clear_set_ids(inode: &mut Inode) {
    if !inode.is_dir() {
        inode.mode &= !libc::S_ISUID;
        if inode.mode & libc::S_IXGRP != 0 {
            inode.mode &= !libc::S_ISGID;
        }
    }
}
