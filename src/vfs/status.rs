//! Where files and contents stand, for the extended attributes, the sidecar and the command line.

use std::os::unix::ffi::OsStrExt;

use super::{Result, Vfs};
use crate::backend::{FileRecord, Load};
use crate::content::spool::Stage;
use crate::tree::conflicts::ConflictCopy;
use crate::tree::{self, Content, Op, Origin, Totals, TreeError};
use crate::types::{ContentHash, Ino, Status, Time};

/// The SHA-256 of nothing, which a file that was never written has.
const EMPTY_HASH: [u8; 32] = [
    0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
    0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
];

/// Where one file stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStatus {
    /// Its hash, once known.
    pub hash: Option<ContentHash>,
    /// `writing`, or a [`Status`] word.
    pub word: &'static str,
    /// What is wrong with it.
    pub error: Option<String>,
    /// Trying again does not help: its bytes are not on this machine's disk, or are damaged there.
    pub lost: bool,
}

impl FileStatus {
    fn new(hash: Option<ContentHash>, status: Status) -> FileStatus {
        FileStatus {
            hash,
            word: status.as_str(),
            error: None,
            lost: false,
        }
    }

    fn lost(hash: Option<ContentHash>, why: String) -> FileStatus {
        FileStatus {
            error: Some(why),
            lost: true,
            ..FileStatus::new(hash, Status::Failed)
        }
    }
}

impl Vfs {
    /// Where the file `ino` stands.
    pub fn file_status(&self, ino: Ino) -> Result<FileStatus> {
        let mut before = None;
        loop {
            if let Some(status) = self.status_in_spool(ino) {
                return Ok(status);
            }
            let gone = self.opens.get(ino).and_then(|o| o.gone());
            let is_gone = gone.is_some();
            let inode = match gone {
                Some(gone) => gone,
                None => self.tree.read(|q| q.inode(ino))?,
            };
            if !inode.is_file() {
                return Err(TreeError::NoAttribute.into());
            }
            let (status, missing) = self.status_in_tree(&inode)?;
            // What is missing may only have moved on between two looks. Nothing is promised of a file without a name.
            let Some(why) = missing.filter(|_| !is_gone) else {
                return Ok(status);
            };
            let seen = (inode.generation, inode.body);
            if before.as_ref() == Some(&seen) {
                return Ok(FileStatus::lost(status.hash, why));
            }
            before = Some(seen);
        }
    }

    fn status_in_spool(&self, ino: Ino) -> Option<FileStatus> {
        let (stage, progress) = self.spool.progress(ino)?;
        match stage {
            Stage::Writing => Some(FileStatus {
                word: "writing",
                ..FileStatus::new(None, Status::Queued)
            }),
            Stage::Sealed if self.spool.is_missing(ino) => {
                Some(FileStatus::lost(progress.hash, missing_in_spool()))
            }
            Stage::Sealed if self.spool.damaged(ino).is_some() => {
                let why = "its bytes on this disk are not those that were closed; the next file with the same heals it";
                Some(FileStatus::lost(progress.hash, why.into()))
            }
            Stage::Sealed | Stage::Publishing => Some(FileStatus {
                error: progress.error,
                ..FileStatus::new(progress.hash, progress.status)
            }),
            Stage::Kept => None,
        }
    }

    /// Where a file stands that is not in the spool, and why its bytes cannot be had, if they are not where they should be.
    fn status_in_tree(&self, inode: &tree::Inode) -> Result<(FileStatus, Option<String>)> {
        Ok(match &inode.body {
            tree::Body::Empty => (
                FileStatus::new(Some(ContentHash(EMPTY_HASH)), Status::Done),
                None,
            ),
            tree::Body::Pending { node, .. } => (
                FileStatus::new(None, Status::Queued),
                (*node == self.node && !self.ingest.is_to_be_undone(inode.ino))
                    .then(missing_in_spool),
            ),
            tree::Body::Stored { hash, duplicate } => {
                let status = match duplicate {
                    true => Status::Duplicate,
                    false => Status::Done,
                };
                let missing = match self.sealed.damage(hash, inode.size)? {
                    None => self.fault_met(hash)?,
                    damage => damage,
                };
                (FileStatus::new(Some(*hash), status), missing)
            }
        })
    }

    /// What this node has met of the content's object in the store, unless another has taken its place.
    fn fault_met(&self, hash: &ContentHash) -> Result<Option<String>> {
        let Some((blob, fault)) = self.sealed.fault_met(hash)? else {
            return Ok(None);
        };
        let content = self.tree.read(|q| q.content(hash))?;
        Ok(content.filter(|now| now.blob == blob).map(|_| fault))
    }

    /// The record of a content: what the store's records or the namespace know. `None` when no file has it.
    pub async fn content_status(&self, hash: &ContentHash) -> Result<Option<FileRecord>> {
        let stored = self.tree.read(|q| q.content(hash))?;
        if let Some(content) = stored {
            return match content.unreferenced_at {
                None => Ok(Some(self.record_of(content)?)),
                Some(_) => Ok(None),
            };
        }
        let records = self.ingest.records();
        let Some(record) = records.get(hash).await? else {
            return Ok(None);
        };
        let on_its_way = record.node != self.node
            || record.status >= Status::Done
            || !self.spool.with_hash(hash).is_empty()
            || self.tree.read(|q| q.content(hash))?.is_some();
        if !on_its_way {
            // Its file went before it was stored.
            records.remove(hash).await?;
        }
        Ok(on_its_way.then_some(record))
    }

    /// A page of the stored contents that files have, in the order of their hashes.
    pub fn contents(&self, after: Option<&ContentHash>, limit: usize) -> Result<Vec<FileRecord>> {
        let contents = self.tree.scan(|q| q.contents(after, limit))?;
        contents.into_iter().map(|c| self.record_of(c)).collect()
    }

    fn record_of(&self, content: Content) -> Result<FileRecord> {
        let mut error = match self.sealed.damage(&content.hash, content.size)? {
            None => self.fault_met(&content.hash)?,
            damage => damage,
        };
        if error.is_some() {
            // It may just have been removed with its last file.
            error = error.filter(|_| self.content(&content.hash).is_ok_and(|c| c.is_some()));
        }
        Ok(FileRecord {
            hash: content.hash,
            filename: String::from_utf8_lossy(&content.filename).into_owned(),
            size: content.size,
            status: match error {
                Some(_) => Status::Failed,
                None => Status::Done,
            },
            worker: Some(content.worker),
            node: content.node,
            uploaded_at: content.uploaded_at,
            started_at: Some(content.started_at),
            done_at: Some(content.done_at),
            fence: 0,
            error,
        })
    }

    /// The stored content `hash`, if a file has it.
    pub fn content(&self, hash: &ContentHash) -> Result<Option<Content>> {
        let content = self.tree.read(|q| q.content(hash))?;
        Ok(content.filter(|c| c.unreferenced_at.is_none()))
    }

    /// The files with this content, with at most `limit` of their paths below the root.
    pub fn holders_of(&self, hash: &ContentHash, limit: usize) -> Result<Holders> {
        Ok(self.tree.scan(|q| {
            let (files, names) = q.references(hash)?;
            let mut paths = Vec::new();
            for ino in q.files_of(hash, limit)? {
                if paths.len() == limit {
                    break;
                }
                for path in q.paths_of(ino, limit - paths.len())? {
                    paths.push(String::from_utf8_lossy(&path).into_owned());
                }
            }
            Ok(Holders {
                files,
                names,
                paths,
            })
        })?)
    }

    /// The contents that no file has, at most `limit`, the oldest first; and of all that are so since `before` the number
    /// and the bytes.
    pub fn unreferenced(&self, before: Time, limit: usize) -> Result<(Vec<Content>, (u64, u64))> {
        Ok(self.tree.scan(|q| {
            let contents = q.unreferenced(Time(i64::MAX), limit)?;
            Ok((contents, q.unreferenced_totals(before)?))
        })?)
    }

    /// The names of what was kept aside when machines had worked apart, at most `limit`.
    pub fn conflicts(&self, limit: usize) -> Result<Vec<ConflictCopy>> {
        Ok(self.tree.scan(|q| q.conflicts(limit))?)
    }

    /// Takes every name from every file with this content. Returns how many names went; 0 when no file had it.
    pub async fn delete_content(&self, hash: &ContentHash) -> Result<usize> {
        let mut removed = 0;
        loop {
            // Also files that are known to have it and wait to be stored.
            let waiting = self.spool.with_hash(hash);
            let names = self.tree.scan(|q| {
                let mut names = Vec::new();
                for ino in q.files_of(hash, 256)?.into_iter().chain(waiting) {
                    names.extend(q.names_of(ino, 256)?);
                }
                Ok(names)
            })?;
            if names.is_empty() {
                return Ok(removed);
            }
            for (parent, name) in names {
                let op = Op::Unlink {
                    parent,
                    name: tree::op::Bytes::from(name),
                    now: Time::now(),
                };
                let done = self
                    .tree
                    .submit(Origin::Node, tree::Commitment::Committed, vec![op])
                    .await;
                match done {
                    Ok(_) => removed += 1,
                    // Somebody else took it away meanwhile.
                    Err(TreeError::NotFound) => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
    }

    /// The size of the tree. Takes the longer the more is in it.
    pub fn totals(&self) -> Result<Totals> {
        Ok(self.tree.scan(|q| q.totals())?)
    }

    /// How many files are written, wait to be stored, and are open; beside the size of the tree.
    pub fn counts(&self, totals: Totals) -> Counts {
        let (writing, waiting) = self.spool.counts();
        let (open_inodes, open_handles) = self.opens.counts();
        Counts {
            writing,
            waiting,
            open_inodes,
            open_handles,
            totals,
        }
    }

    /// How far this node has come, and what waits here.
    pub fn node_load(&self) -> Result<Load> {
        let (_, waiting) = self.spool.counts();
        Ok(Load {
            applied: self.tree.applied()?.0,
            waiting_files: waiting as u64,
            waiting_changes: self.tree.waiting()?,
        })
    }

    /// How many changes wait for the shared log to come back.
    pub fn waiting_changes(&self) -> Result<u64> {
        Ok(self.tree.waiting()?)
    }

    /// The free and total space of the disk below, as statvfs(3) reports it.
    pub fn statfs(&self) -> Result<rustix::fs::StatVfs> {
        let dir = self.spool.dir();
        rustix::fs::statvfs(dir.as_os_str().as_bytes()).map_err(|e| std::io::Error::from(e).into())
    }
}

/// Who has a content.
#[derive(Clone, Debug)]
pub struct Holders {
    /// How many files.
    pub files: u64,
    /// How many names these have.
    pub names: u64,
    /// Their paths below the root, as far as asked for.
    pub paths: Vec<String>,
}

/// Numbers for the status page.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Counts {
    /// Files that writers have open.
    pub writing: usize,
    /// Closed files that are not stored yet.
    pub waiting: usize,
    /// Inodes that are open.
    pub open_inodes: usize,
    /// Open handles.
    pub open_handles: usize,
    /// The size of the tree.
    #[serde(flatten)]
    pub totals: Totals,
}

fn missing_in_spool() -> String {
    "it was closed, is not stored, and is missing in the spool: write it again, or put its spool file back and mount anew".into()
}
