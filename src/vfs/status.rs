//! Where files and contents stand, for the extended attributes, the sidecar and the command line.

use std::os::unix::ffi::OsStrExt;

use super::{Result, Vfs};
use crate::backend::FileRecord;
use crate::content::spool::Stage;
use crate::tree::{self, Content, Op, Origin, TreeError};
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
    /// Why storing it failed last time.
    pub error: Option<String>,
}

impl Vfs {
    /// Where the file `ino` stands.
    pub fn file_status(&self, ino: Ino) -> Result<FileStatus> {
        if let Some((stage, progress)) = self.spool.progress(ino) {
            match stage {
                Stage::Writing => {
                    return Ok(FileStatus {
                        hash: None,
                        word: "writing",
                        error: None,
                    });
                }
                Stage::Sealed | Stage::Publishing => {
                    return Ok(FileStatus {
                        hash: progress.hash,
                        word: progress.status.as_str(),
                        error: progress.error,
                    });
                }
                Stage::Kept => {}
            }
        }
        let inode = match self.opens.get(ino).and_then(|o| o.gone()) {
            Some(gone) => gone,
            None => self.tree.read(|q| q.inode(ino))?,
        };
        if !inode.is_file() {
            return Err(TreeError::NoAttribute.into());
        }
        let (hash, status) = match inode.body {
            tree::Body::Empty => (Some(ContentHash(EMPTY_HASH)), Status::Done),
            tree::Body::Pending { .. } => (None, Status::Queued),
            tree::Body::Stored { hash, duplicate } => (
                Some(hash),
                if duplicate {
                    Status::Duplicate
                } else {
                    Status::Done
                },
            ),
        };
        Ok(FileStatus {
            hash,
            word: status.as_str(),
            error: None,
        })
    }

    /// The record of a content: what the store's records or the namespace know. `None` when no file has it.
    pub async fn content_status(&self, hash: &ContentHash) -> Result<Option<FileRecord>> {
        let stored = self.tree.read(|q| q.content(hash))?;
        if let Some(content) = stored {
            return Ok(content
                .unreferenced_at
                .is_none()
                .then(|| record_of(content)));
        }
        Ok(self.ingest.records().get(hash).await?)
    }

    /// A page of the stored contents that files have, in the order of their hashes.
    pub fn contents(&self, after: Option<&ContentHash>, limit: usize) -> Result<Vec<FileRecord>> {
        let contents = self.tree.scan(|q| q.contents(after, limit))?;
        Ok(contents.into_iter().map(record_of).collect())
    }

    /// The stored content `hash`, if a file has it.
    pub fn content(&self, hash: &ContentHash) -> Result<Option<Content>> {
        let content = self.tree.read(|q| q.content(hash))?;
        Ok(content.filter(|c| c.unreferenced_at.is_none()))
    }

    /// The paths of the files with this content, below the root, at most `limit` files.
    pub fn paths_of(&self, hash: &ContentHash, limit: usize) -> Result<Vec<String>> {
        Ok(self.tree.scan(|q| {
            let mut paths = Vec::new();
            for ino in q.files_of(hash, limit)? {
                for path in q.paths_of(ino, limit)? {
                    paths.push(String::from_utf8_lossy(&path).into_owned());
                }
            }
            Ok(paths)
        })?)
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

    /// How many files are written, wait to be stored, and are open; and the size of the tree.
    pub fn counts(&self) -> Result<Counts> {
        let (writing, waiting) = self.spool.counts();
        let (open_inodes, open_handles) = self.opens.counts();
        Ok(Counts {
            writing,
            waiting,
            open_inodes,
            open_handles,
            totals: self.tree.scan(|q| q.totals())?,
        })
    }

    /// The free and total space of the disk below, as statvfs(3) reports it.
    pub fn statfs(&self) -> Result<rustix::fs::StatVfs> {
        let dir = self.spool.dir();
        rustix::fs::statvfs(dir.as_os_str().as_bytes()).map_err(|e| std::io::Error::from(e).into())
    }
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
    pub totals: tree::Totals,
}

fn record_of(content: Content) -> FileRecord {
    FileRecord {
        hash: content.hash,
        filename: String::from_utf8_lossy(&content.filename).into_owned(),
        size: content.size,
        status: Status::Done,
        worker: Some(content.worker),
        node: content.node,
        uploaded_at: content.uploaded_at,
        started_at: Some(content.started_at),
        done_at: Some(content.done_at),
        fence: 0,
        error: None,
    }
}
