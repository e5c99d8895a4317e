//! Applying an op: the one place that changes the namespace.
//!
//! Deterministic: the result depends on the tables and on the op, never on a clock, a random number or this node. Every
//! check that another machine could have invalidated is made here, since here the op meets the state that it changes.

use rusqlite::{Connection, params};

use super::op::{
    Bytes, Op, RenameMode, StoredBy, TARGET_MAX, TreeError, XATTRS_MAX, XattrMode, check_name,
};
use super::query::{Body, DUPLICATE, EMPTY, Inode, PENDING, Query, STORED};
use crate::types::{BlobId, ContentHash, Generation, Ino, NodeId, Time};

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
                let mut inode = self.q.inode(*ino)?;
                match mode {
                    Some(mode) => inode.mode = inode.kind() | (mode & 0o7777),
                    None if uid.is_some() || gid.is_some() => clear_set_ids(&mut inode),
                    None => {}
                }
                inode.uid = uid.unwrap_or(inode.uid);
                inode.gid = gid.unwrap_or(inode.gid);
                inode.atime = atime.unwrap_or(inode.atime);
                inode.mtime = mtime.unwrap_or(inode.mtime);
                inode.ctime = *now;
                self.update(&inode)?;
                self.out.effects.push(Effect::Attributes(*ino));
                self.out.inode = Some(inode);
                Ok(())
            }
            Op::SetXattr {
                ino,
                name,
                value,
                mode,
                now,
            } => self.set_xattr(*ino, name, value, *mode, *now),
            Op::RemoveXattr { ino, name, now } => {
                let removed = self
                    .conn
                    .prepare_cached("DELETE FROM xattrs WHERE ino=?1 AND name=?2")?
                    .execute(params![ino.0, &name[..]])?;
                if removed == 0 {
                    self.q.inode(*ino)?;
                    return Err(TreeError::NoAttribute);
                }
                self.touch(*ino, None, *now)
            }
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
        }
    }

    fn create(&mut self, parent: Ino, name: &Bytes, new: NewInode<'_>, now: Time) -> Result<()> {
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

    fn link(&mut self, ino: Ino, parent: Ino, name: &Bytes, now: Time) -> Result<()> {
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
        inode.nlink += 1;
        inode.ctime = now;
        self.update(&inode)?;
        self.out.effects.push(Effect::Attributes(ino));
        self.add_dentry(&mut dir, name, ino, now)?;
        self.out.inode = Some(inode);
        Ok(())
    }

    fn unlink(&mut self, parent: Ino, name: &Bytes, now: Time) -> Result<()> {
        let mut dir = self.directory(parent)?;
        let inode = self.q.lookup(parent, name)?;
        if inode.is_dir() {
            return Err(TreeError::IsDirectory);
        }
        self.remove_dentry(&mut dir, name, now)?;
        self.drop_name(inode, now)
    }

    fn rmdir(&mut self, parent: Ino, name: &Bytes, now: Time) -> Result<()> {
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

    fn rename(
        &mut self,
        (parent, name): (Ino, &Bytes),
        (new_parent, new_name): (Ino, &Bytes),
        mode: RenameMode,
        now: Time,
    ) -> Result<()> {
        check_name(new_name)?;
        self.directory(parent)?;
        self.directory(new_parent)?;
        let source = self.q.lookup(parent, name)?;
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
            (RenameMode::Exchange, Some(target)) => {
                if target.is_dir() && self.is_within(parent, target.ino)? {
                    return Err(TreeError::Invalid);
                }
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
                self.drop_name(target, now)?;
                self.detach(parent, name, &source, now)?;
                self.attach(new_parent, new_name, source, now)
            }
            (RenameMode::Replace | RenameMode::NoReplace, None) => {
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

    fn set_xattr(
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
        self.touch(ino, None, now)
    }

    fn pending(
        &mut self,
        ino: Ino,
        generation: Generation,
        node: &NodeId,
        size: u64,
        mtime: Time,
        ctime: Time,
    ) -> Result<()> {
        let mut inode = self.q.inode(ino)?;
        if !inode.is_file() {
            return Err(TreeError::Invalid);
        }
        let same_writer = matches!(&inode.body, Body::Pending { node: n, .. } if n == node);
        if generation < inode.generation || (generation == inode.generation && !same_writer) {
            return Err(TreeError::Superseded);
        }
        inode.generation = generation;
        inode.size = size;
        inode.mtime = mtime;
        inode.ctime = ctime;
        self.update(&inode)?;
        self.conn
            .prepare_cached("UPDATE inodes SET generation=?2, state=?3, node=?4 WHERE ino=?1")?
            .execute(params![ino.0, generation.0, PENDING, node.0])?;
        inode.body = Body::Pending {
            node: node.clone(),
            previous: match inode.body {
                Body::Stored { hash, .. } => Some(hash),
                Body::Pending { previous, .. } => previous,
                Body::Empty => None,
            },
        };
        self.out.effects.push(Effect::Content(ino));
        self.out.inode = Some(inode);
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn commit(
        &mut self,
        ino: Ino,
        generation: Generation,
        hash: &ContentHash,
        size: u64,
        blob: &BlobId,
        by: &StoredBy,
        now: Time,
    ) -> Result<()> {
        let mut inode = self.q.inode(ino)?;
        let previous = match &inode.body {
            Body::Pending { previous, .. } if inode.generation == generation => *previous,
            _ => return Err(TreeError::Superseded),
        };
        let known = match self.q.content(hash)? {
            Some(content) if content.blob == *blob => {
                if content.unreferenced_at.is_some() {
                    self.conn
                        .prepare_cached("UPDATE contents SET unreferenced_at=NULL WHERE hash=?1")?
                        .execute([&hash.0[..]])?;
                }
                true
            }
            // Another object under the same hash: only one may be the tree's, and the caller holds the other.
            Some(_) => return Err(TreeError::Reaped),
            None => {
                let buried: bool = self
                    .conn
                    .prepare_cached("SELECT EXISTS(SELECT 1 FROM tombstones WHERE blob=?1)")?
                    .query_row([&blob.0], |r| r.get(0))?;
                if buried {
                    return Err(TreeError::Reaped);
                }
                let filename = self
                    .q
                    .names_of(ino, 1)?
                    .pop()
                    .map_or_else(Vec::new, |n| n.1);
                self.conn
                    .prepare_cached(
                        "INSERT INTO contents(hash, size, blob, filename, node, worker, uploaded_at, started_at, done_at)
                         VALUES(?1,?2,?3,?4,?5,?6,?7,?8,?9)",
                    )?
                    .execute(params![
                        &hash.0[..],
                        size,
                        blob.0,
                        filename,
                        by.node.0,
                        by.worker,
                        by.uploaded_at.0,
                        by.started_at.0,
                        now.0
                    ])?;
                false
            }
        };
        self.conn
            .prepare_cached("UPDATE inodes SET state=?2, node=NULL, hash=?3, size=?4 WHERE ino=?1")?
            .execute(params![
                ino.0,
                if known { DUPLICATE } else { STORED },
                &hash.0[..],
                size
            ])?;
        if let Some(previous) = previous.filter(|p| p != hash) {
            self.unreference(&previous, now)?;
        }
        inode.size = size;
        inode.body = Body::Stored {
            hash: *hash,
            duplicate: known,
        };
        self.out.effects.push(Effect::Content(ino));
        self.out.inode = Some(inode);
        Ok(())
    }

    fn reap(&mut self, hash: &ContentHash, now: Time) -> Result<()> {
        let content = self.q.content(hash)?.ok_or(TreeError::NotFound)?;
        if self.is_referenced(hash)? {
            return Err(TreeError::InUse);
        }
        self.conn
            .prepare_cached("DELETE FROM contents WHERE hash=?1")?
            .execute([&hash.0[..]])?;
        // In a cluster an id is never used again, and a commit that still carries this one must be refused. A content
        // directory names objects by their hash, so there the name may come back.
        if content.blob.0 != hash.to_string() {
            self.conn
                .prepare_cached("INSERT OR REPLACE INTO tombstones VALUES(?1,?2)")?
                .execute(params![content.blob.0, now.0])?;
            let week_before = now.0.saturating_sub(7 * 24 * 3600 * 1_000_000_000);
            self.conn
                .prepare_cached("DELETE FROM tombstones WHERE reaped_at<?1")?
                .execute([week_before])?;
        }
        self.out.effects.push(Effect::Reaped {
            hash: *hash,
            blob: content.blob,
        });
        Ok(())
    }

    fn is_referenced(&self, hash: &ContentHash) -> Result<bool> {
        Ok(self
            .conn
            .prepare_cached("SELECT EXISTS(SELECT 1 FROM inodes WHERE hash=?1)")?
            .query_row([&hash.0[..]], |r| r.get(0))?)
    }

    /// Notes when the last file with this content went. Its inode row is updated already.
    fn unreference(&mut self, hash: &ContentHash, now: Time) -> Result<()> {
        if !self.is_referenced(hash)? {
            self.conn
                .prepare_cached("UPDATE contents SET unreferenced_at=?2 WHERE hash=?1")?
                .execute(params![&hash.0[..], now.0])?;
        }
        Ok(())
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

    fn touch(&mut self, ino: Ino, mtime: Option<Time>, now: Time) -> Result<()> {
        let mut inode = self.q.inode(ino)?;
        inode.ctime = now;
        inode.mtime = mtime.unwrap_or(inode.mtime);
        self.update(&inode)?;
        self.out.effects.push(Effect::Attributes(ino));
        self.out.inode = Some(inode);
        Ok(())
    }

    /// Writes the columns that attributes are made of; not where the content is.
    fn update(&self, inode: &Inode) -> Result<()> {
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

/// A file that changes hands loses set-user-id, and set-group-id where that is not mandatory locking, as on Linux.
fn clear_set_ids(inode: &mut Inode) {
    if inode.is_file() {
        inode.mode &= !libc::S_ISUID;
        if inode.mode & libc::S_IXGRP != 0 {
            inode.mode &= !libc::S_ISGID;
        }
    }
}

struct NewInode<'a> {
    ino: Ino,
    mode: u32,
    uid: u32,
    gid: u32,
    rdev: u32,
    target: Option<&'a Bytes>,
}
