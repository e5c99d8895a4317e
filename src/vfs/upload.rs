//! Files that come in whole, over HTTP: the bytes are on the spool's disk already, hashed, before they get a name.

use std::path::{Path, PathBuf};

use super::names::bytes;
use super::{Caller, Result, Vfs};
use crate::content::spool::Progress;
use crate::tree::op::check_name;
use crate::tree::{self, Commitment, Op, Origin, TreeError};
use crate::types::{ContentHash, Generation, Ino, Status, Time};

/// A finished upload that has no name yet. Its file is removed when this is dropped unused.
pub struct Incoming {
    /// Where its bytes are, on the disk of the data directory.
    pub path: PathBuf,
    /// Their hash.
    pub hash: ContentHash,
    /// Their number.
    pub size: u64,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // After a rename into the spool there is nothing here any more.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// How an upload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// New content, on its way into the store; or known content that the store had not any more.
    Queued,
    /// The store had the content already.
    Duplicate,
}

impl Vfs {
    /// A place for the bytes of an upload, on the same disk as the spool.
    pub fn incoming_path(&self) -> PathBuf {
        self.sealed.tmp_path()
    }

    /// The directory at `path` (slashes between names, empty: the root), made where it is missing.
    pub async fn directory(&self, caller: Caller, path: &str) -> Result<Ino> {
        let mut dir = Ino::ROOT;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            check_name(name.as_bytes())?;
            let op = Op::Create {
                parent: dir,
                name: bytes(name.as_bytes()),
                ino: self.tree.new_ino()?,
                mode: libc::S_IFDIR | 0o755,
                uid: caller.uid,
                gid: caller.gid,
                rdev: 0,
                target: None,
                now: Time::now(),
            };
            let made = self
                .tree
                .submit(Origin::Node, Commitment::Committed, vec![op])
                .await;
            dir = match made.map_err(super::VfsError::from) {
                Ok(applied) => applied.inode.ok_or(TreeError::NotFound)?.ino,
                Err(super::VfsError::Tree(TreeError::Exists)) => {
                    let found = self.lookup(dir, name.as_bytes())?.inode;
                    if !found.is_dir() {
                        return Err(TreeError::NotDirectory.into());
                    }
                    found.ino
                }
                Err(e) => return Err(e),
            };
        }
        Ok(dir)
    }

    /// Gives the bytes the name `name` in `dir`. A name that has this very content already is left alone; one that
    /// has another is refused with [`TreeError::Exists`]. When this returns, the file survives the daemon being killed.
    pub async fn install(
        &self,
        caller: Caller,
        dir: Ino,
        name: &[u8],
        incoming: Incoming,
    ) -> Result<Uploaded> {
        check_name(name)?;
        let known = self.content(&incoming.hash)?.is_some();
        match self.lookup(dir, name) {
            Ok(attr) => return self.again(&attr.inode, &incoming).await,
            Err(super::VfsError::Tree(TreeError::NotFound)) => {}
            Err(e) => return Err(e),
        }
        let ino = self.tree.new_ino()?;
        let generation = Generation(1);
        let now = Time::now();
        self.spool
            .adopt(ino, generation, Path::new(&incoming.path))?;
        let create = Op::Create {
            parent: dir,
            name: bytes(name),
            ino,
            mode: libc::S_IFREG | 0o644,
            uid: caller.uid,
            gid: caller.gid,
            rdev: 0,
            target: None,
            now,
        };
        let pending = Op::Pending {
            ino,
            generation,
            node: self.node.clone(),
            size: incoming.size,
            mtime: now,
            ctime: now,
        };
        let hashed = Progress {
            hash: Some(incoming.hash),
            status: Status::Queued,
            error: None,
        };
        self.spool.set_progress(ino, generation, hashed);
        let submitted = self
            .tree
            .submit(Origin::Node, Commitment::Committed, vec![create, pending])
            .await;
        if let Err(e) = submitted {
            self.spool.discard(ino);
            return Err(e.into());
        }
        self.ingest.enqueue(ino, generation);
        Ok(if known {
            Uploaded::Duplicate
        } else {
            Uploaded::Queued
        })
    }

    /// What has the name already. The bytes are given up only where the same ones are really there.
    async fn again(&self, found: &tree::Inode, incoming: &Incoming) -> Result<Uploaded> {
        if !found.is_file() {
            return Err(TreeError::Exists.into());
        }
        let status = self.file_status(found.ino)?;
        let stored =
            matches!(&found.body, tree::Body::Stored { hash, .. } if *hash == incoming.hash);
        if !stored {
            return match status.hash == Some(incoming.hash) && !status.lost {
                true => Ok(Uploaded::Duplicate),
                false => Err(TreeError::Exists.into()),
            };
        }
        let Incoming { hash, size, path } = incoming;
        let restored = self.ingest.restore(hash, *size, path, status.lost);
        Ok(match restored.await? {
            true => Uploaded::Queued,
            false => Uploaded::Duplicate,
        })
    }
}
