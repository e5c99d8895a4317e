//! Names: making, linking, removing and moving them.

use rusqlite::params;

use super::super::op::{Bytes, RenameMode, TARGET_MAX, TreeError, check_name};
use super::super::query::{Body, EMPTY, Inode};
use super::{Apply, Effect, Result};
use crate::types::{Generation, Ino, Time};

/// What `Op::Create` says of the inode.
pub(super) struct NewInode<'a> {
    pub ino: Ino,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub target: Option<&'a Bytes>,
}

impl Apply<'_> {
    pub(super) fn create(
        &mut self,
        parent: Ino,
        name: &Bytes,
        new: NewInode<'_>,
        now: Time,
    ) -> Result<()> {
        check_name(name)?;
        let mut dir = self.directory(parent)?;
        if self.q.child(parent, name)?.is_some() {
            return Err(TreeError::Exists);
        }
        if new.target.is_some_and(|t| t.len() > TARGET_MAX) {
            return Err(TreeError::NameTooLong);
        }
        let is_dir = new.mode & libc::S_IFMT == libc::S_IFDIR;
        let mut mode = new.mode;
        let mut gid = new.gid;
        // A set-group-id directory hands on its group, and to directories the bit as well.
        if dir.mode & libc::S_ISGID != 0 {
            gid = dir.gid;
            if is_dir {
                mode |= libc::S_ISGID;
            }
        }
        let inode = Inode {
            ino: new.ino,
            mode,
            nlink: if is_dir { 2 } else { 1 },
            uid: new.uid,
            gid,
            rdev: new.rdev,
            size: match new.target {
                Some(target) => target.len() as u64,
                None if is_dir => 4096,
                None => 0,
            },
            atime: now,
            mtime: now,
            ctime: now,
            generation: Generation(0),
            body: Body::Empty,
            parent: is_dir.then_some(parent),
        };
        self.conn
            .prepare_cached(
                "INSERT INTO inodes(ino, mode, nlink, uid, gid, rdev, size, atime, mtime, ctime,
                   generation, state, target, parent)
                 VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?8,?8,0,?11,?9,?10)",
            )?
            .execute(params![
                inode.ino.0,
                inode.mode,
                inode.nlink,
                inode.uid,
                inode.gid,
                inode.rdev,
                inode.size,
                now.0,
                new.target.map(|t| &t[..]),
                inode.parent.map(|p| p.0),
                EMPTY,
            ])?;
        if is_dir {
            dir.nlink += 1;
        }
        self.add_dentry(&mut dir, name, new.ino, now)?;
        self.out.inode = Some(inode);
        Ok(())
    }

    pub(super) fn link(&mut self, ino: Ino, parent: Ino, name: &Bytes, now: Time) -> Result<()> {
        check_name(name)?;
        let mut dir = self.directory(parent)?;
        let mut inode = self.q.inode(ino)?;
        if inode.is_dir() {
            return Err(TreeError::NotPermitted);
        }
        if self.q.child(parent, name)?.is_some() {
            return Err(TreeError::Exists);
        }
        if inode.nlink >= i32::MAX as u32 {
            return Err(TreeError::TooManyLinks);
        }
        self.disinherit(&mut inode, now)?;
        inode.nlink += 1;
        inode.ctime = now;
        self.update(&inode)?;
        self.out.effects.push(Effect::Attributes(ino));
        self.add_dentry(&mut dir, name, ino, now)?;
        self.out.inode = Some(inode);
        Ok(())
    }

    pub(super) fn unlink(&mut self, parent: Ino, name: &Bytes, now: Time) -> Result<()> {
        let mut dir = self.directory(parent)?;
        let inode = self.q.lookup(parent, name)?;
        if inode.is_dir() {
            return Err(TreeError::IsDirectory);
        }
        self.remove_dentry(&mut dir, name, now)?;
        self.drop_name(inode, now)
    }

    pub(super) fn rmdir(&mut self, parent: Ino, name: &Bytes, now: Time) -> Result<()> {
        let mut dir = self.directory(parent)?;
        let inode = self.q.lookup(parent, name)?;
        self.check_removable_directory(&inode)?;
        dir.nlink -= 1;
        self.remove_dentry(&mut dir, name, now)?;
        self.drop_name(inode, now)
    }

    fn check_removable_directory(&self, inode: &Inode) -> Result<()> {
        if !inode.is_dir() {
            return Err(TreeError::NotDirectory);
        }
        if !self.q.readdir(inode.ino, 0, 1)?.is_empty() {
            return Err(TreeError::NotEmpty);
        }
        Ok(())
    }

    /// Takes one name from `inode`; with the last one the inode goes. Its dentry is gone already.
    fn drop_name(&mut self, mut inode: Inode, now: Time) -> Result<()> {
        inode.ctime = now;
        if !inode.is_dir() && inode.nlink > 1 {
            inode.nlink -= 1;
            self.update(&inode)?;
            self.out.effects.push(Effect::Attributes(inode.ino));
            self.out.inode = Some(inode);
            return Ok(());
        }
        inode.nlink = 0;
        self.conn
            .prepare_cached("DELETE FROM inodes WHERE ino=?1")?
            .execute([inode.ino.0])?;
        self.conn
            .prepare_cached("DELETE FROM xattrs WHERE ino=?1")?
            .execute([inode.ino.0])?;
        match &inode.body {
            Body::Stored { hash, .. }
            | Body::Pending {
                previous: Some(hash),
                ..
            } => self.unreference(hash, now)?,
            Body::Pending { previous: None, .. } | Body::Empty => {}
        }
        self.out.effects.push(Effect::Gone(Box::new(inode.clone())));
        self.out.inode = Some(inode);
        Ok(())
    }

    pub(super) fn rename(
        &mut self,
        (parent, name): (Ino, &Bytes),
        (new_parent, new_name): (Ino, &Bytes),
        mode: RenameMode,
        now: Time,
    ) -> Result<()> {
        check_name(new_name)?;
        self.directory(parent)?;
        self.directory(new_parent)?;
        let mut source = self.q.lookup(parent, name)?;
        let target = match self.q.lookup(new_parent, new_name) {
            Ok(inode) => Some(inode),
            Err(TreeError::NotFound) => None,
            Err(e) => return Err(e),
        };
        if source.is_dir() && self.is_within(new_parent, source.ino)? {
            return Err(TreeError::Invalid);
        }
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => Err(TreeError::Exists),
            (RenameMode::Exchange, None) => Err(TreeError::NotFound),
            // Two names of one file: nothing to do, says rename(2).
            (_, Some(target)) if target.ino == source.ino => {
                self.out.inode = Some(source);
                Ok(())
            }
            (RenameMode::Exchange, Some(mut target)) => {
                if target.is_dir() && self.is_within(parent, target.ino)? {
                    return Err(TreeError::Invalid);
                }
                self.disinherit(&mut source, now)?;
                self.disinherit(&mut target, now)?;
                self.detach(parent, name, &source, now)?;
                self.detach(new_parent, new_name, &target, now)?;
                self.attach(new_parent, new_name, source, now)?;
                let moved = self.out.inode.take();
                self.attach(parent, name, target, now)?;
                self.out.inode = moved;
                Ok(())
            }
            (RenameMode::Replace, Some(target)) => {
                match (source.is_dir(), target.is_dir()) {
                    (true, true) => self.check_removable_directory(&target)?,
                    (true, false) => return Err(TreeError::NotDirectory),
                    (false, true) => return Err(TreeError::IsDirectory),
                    (false, false) => {}
                }
                self.detach(new_parent, new_name, &target, now)?;
                self.disinherit(&mut source, now)?;
                self.inherit(&mut source, &target)?;
                self.drop_name(target, now)?;
                self.detach(parent, name, &source, now)?;
                self.attach(new_parent, new_name, source, now)
            }
            (RenameMode::Replace | RenameMode::NoReplace, None) => {
                self.disinherit(&mut source, now)?;
                self.detach(parent, name, &source, now)?;
                self.attach(new_parent, new_name, source, now)
            }
        }
    }

    fn detach(&mut self, parent: Ino, name: &Bytes, inode: &Inode, now: Time) -> Result<()> {
        let mut dir = self.directory(parent)?;
        if inode.is_dir() {
            dir.nlink -= 1;
        }
        self.remove_dentry(&mut dir, name, now)
    }

    fn attach(&mut self, parent: Ino, name: &Bytes, mut inode: Inode, now: Time) -> Result<()> {
        inode.ctime = now;
        if inode.is_dir() {
            inode.parent = Some(parent);
        }
        self.update(&inode)?;
        self.out.effects.push(Effect::Attributes(inode.ino));
        let mut dir = self.directory(parent)?;
        if inode.is_dir() {
            dir.nlink += 1;
        }
        self.add_dentry(&mut dir, name, inode.ino, now)?;
        self.out.inode = Some(inode);
        Ok(())
    }

    /// Whether `dir` is `ancestor` or lies below it.
    fn is_within(&self, mut dir: Ino, ancestor: Ino) -> Result<bool> {
        loop {
            if dir == ancestor {
                return Ok(true);
            }
            if dir == Ino::ROOT {
                return Ok(false);
            }
            dir = self.q.inode(dir)?.parent.ok_or(TreeError::NotDirectory)?;
        }
    }

    fn directory(&self, ino: Ino) -> Result<Inode> {
        let inode = self.q.inode(ino)?;
        if inode.is_dir() {
            Ok(inode)
        } else {
            Err(TreeError::NotDirectory)
        }
    }

    /// Writes the directory's own row too: times, and the link count that the caller may have changed.
    fn add_dentry(&mut self, dir: &mut Inode, name: &Bytes, ino: Ino, now: Time) -> Result<()> {
        let cookie: i64 = self
            .conn
            .prepare_cached(
                "UPDATE inodes SET mtime=?2, ctime=?2, nlink=?3, cookie=cookie+1 WHERE ino=?1 RETURNING cookie",
            )?
            .query_row(params![dir.ino.0, now.0, dir.nlink], |r| r.get(0))?;
        self.conn
            .prepare_cached("INSERT INTO dentries(parent, name, ino, cookie) VALUES(?1,?2,?3,?4)")?
            .execute(params![dir.ino.0, &name[..], ino.0, cookie])?;
        self.entry_changed(dir.ino, name);
        Ok(())
    }

    fn remove_dentry(&mut self, dir: &mut Inode, name: &Bytes, now: Time) -> Result<()> {
        self.conn
            .prepare_cached("DELETE FROM dentries WHERE parent=?1 AND name=?2")?
            .execute(params![dir.ino.0, &name[..]])?;
        self.conn
            .prepare_cached("UPDATE inodes SET mtime=?2, ctime=?2, nlink=?3 WHERE ino=?1")?
            .execute(params![dir.ino.0, now.0, dir.nlink])?;
        self.entry_changed(dir.ino, name);
        Ok(())
    }

    fn entry_changed(&mut self, parent: Ino, name: &Bytes) {
        self.out.effects.push(Effect::Entry {
            parent,
            name: name.to_vec(),
        });
        self.out.effects.push(Effect::Attributes(parent));
    }
}
