//! Where the bytes of a file are: pending at a node, stored under a hash; and what no file has any more.

use rusqlite::params;

use super::super::op::{StoredBy, TreeError};
use super::super::query::{Body, DUPLICATE, Inode, PENDING, STORED};
use super::{Apply, Effect, Result};
use crate::types::{BlobId, ContentHash, Generation, Ino, NodeId, Time};

impl Apply<'_> {
    pub(super) fn pending(
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
    pub(super) fn commit(
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
            // Two nodes that wrote it apart may have come to the same number.
            Body::Pending { previous, node }
                if inode.generation == generation && *node == by.node =>
            {
                *previous
            }
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
                if self.is_buried(blob)? {
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
            .prepare_cached(
                "UPDATE inodes SET state=?2, node=NULL, hash=?3, size=?4, cookie=?5 WHERE ino=?1",
            )?
            .execute(params![
                ino.0,
                if known { DUPLICATE } else { STORED },
                &hash.0[..],
                size,
                generation.0
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

    pub(super) fn reap(&mut self, hash: &ContentHash, now: Time) -> Result<()> {
        let content = self.q.content(hash)?.ok_or(TreeError::NotFound)?;
        if self.q.is_referenced(hash)? {
            return Err(TreeError::InUse);
        }
        self.conn
            .prepare_cached("DELETE FROM contents WHERE hash=?1")?
            .execute([&hash.0[..]])?;
        // In a cluster an id is never used again, and a commit that still carries this one must be refused. A content
        // directory names objects by their hash, so there the name may come back.
        if content.blob.0 != hash.to_string() {
            self.entomb(&content.blob, now)?;
        }
        self.out.effects.push(Effect::Reaped {
            hash: *hash,
            blob: content.blob,
        });
        Ok(())
    }

    pub(super) fn bury(&mut self, blob: &BlobId, now: Time) -> Result<()> {
        let known: bool = self
            .conn
            .prepare_cached(
                "SELECT EXISTS(SELECT 1 FROM contents WHERE blob=?1 AND length(blob)<64)",
            )?
            .query_row([&blob.0], |r| r.get(0))?;
        if known {
            return Err(TreeError::InUse);
        }
        self.entomb(blob, now)
    }

    pub(super) fn replace(
        &mut self,
        hash: &ContentHash,
        lost: &BlobId,
        blob: &BlobId,
        now: Time,
    ) -> Result<()> {
        let is_known = self.q.content(hash)?.is_some_and(|c| c.blob == *lost);
        if !is_known || blob == lost || self.is_buried(blob)? {
            return Err(TreeError::Reaped);
        }
        self.conn
            .prepare_cached("UPDATE contents SET blob=?2 WHERE hash=?1")?
            .execute(params![&hash.0[..], blob.0])?;
        self.entomb(lost, now)
    }

    fn is_buried(&self, blob: &BlobId) -> Result<bool> {
        Ok(self
            .conn
            .prepare_cached("SELECT EXISTS(SELECT 1 FROM tombstones WHERE blob=?1)")?
            .query_row([&blob.0], |r| r.get(0))?)
    }

    fn entomb(&mut self, blob: &BlobId, now: Time) -> Result<()> {
        self.conn
            .prepare_cached("INSERT OR REPLACE INTO tombstones VALUES(?1,?2)")?
            .execute(params![blob.0, now.0])?;
        let week_before = now.0.saturating_sub(7 * 24 * 3600 * 1_000_000_000);
        self.conn
            .prepare_cached("DELETE FROM tombstones WHERE reaped_at<?1")?
            .execute([week_before])?;
        Ok(())
    }

    /// Notes when the last file with this content went. Its inode row is updated already.
    pub(super) fn unreference(&mut self, hash: &ContentHash, now: Time) -> Result<()> {
        if !self.q.is_referenced(hash)? {
            self.conn
                .prepare_cached("UPDATE contents SET unreferenced_at=?2 WHERE hash=?1")?
                .execute(params![&hash.0[..], now.0])?;
        }
        Ok(())
    }

    /// A file that replaces a stored one before it is stored itself falls back on the other's content, should the power
    /// take its own: whoever saves by renaming then has the old file, not none. What the other had not stored yet may
    /// have been newer than its stored content, and is no use here.
    pub(super) fn inherit(&self, source: &mut Inode, target: &Inode) -> Result<()> {
        if let Body::Pending {
            previous: previous @ None,
            ..
        } = &mut source.body
            && let Body::Stored { hash, .. } = &target.body
            && source.nlink == 1
        {
            *previous = Some(*hash);
            self.conn
                .prepare_cached("UPDATE inodes SET hash=?2 WHERE ino=?1")?
                .execute(params![source.ino.0, &hash.0[..]])?;
        }
        Ok(())
    }

    /// Under another name that content would be wrong.
    pub(super) fn disinherit(&mut self, inode: &mut Inode, now: Time) -> Result<()> {
        if let Body::Pending { previous, .. } = &mut inode.body
            && let Some(hash) = *previous
            && self.q.stored_generation(inode.ino)? == Generation(0)
        {
            *previous = None;
            self.conn
                .prepare_cached("UPDATE inodes SET hash=NULL WHERE ino=?1")?
                .execute([inode.ino.0])?;
            self.unreference(&hash, now)?;
        }
        Ok(())
    }
}
