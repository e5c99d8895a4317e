//! The data directory that is brought over: locked, and only read.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use tempfile::TempDir;

use crate::config::DataDir;
use crate::content::disk;
use crate::tree::check::Workshop;
use crate::tree::{Query, TreeError};
use crate::types::ContentHash;

/// What belongs to the namespace, beside its database.
const BESIDE: [&str; 3] = ["sqlite-wal", "journal", "boot"];

/// An embedded data directory that no daemon uses.
pub struct Source {
    _lock: File,
    /// Reads the copy, and so goes before it.
    workshop: Workshop,
    _copy: TempDir,
    content: PathBuf,
    node: String,
}

impl Source {
    /// Locks `data`, and copies its namespace below `scratch`, where what its journal holds is brought into the copy.
    /// Errors are sentences.
    pub fn open(data: &DataDir, scratch: &Path) -> Result<Source, String> {
        let root = data.root().display();
        let told = |e: io::Error| format!("{root}: {e}");
        let lock = match File::open(data.lock()) {
            Ok(lock) if data.tree().exists() => lock,
            Ok(_) | Err(_) => return Err(format!("{root} is no data directory")),
        };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(format!("{root} is in use: unmount it first"));
        }
        let owner = disk::read_text(&data.belongs_to()).map_err(told)?;
        if owner.is_some_and(|o| !o.is_empty() && o != "embedded") {
            return Err(format!(
                "{root} is a machine's part of a cluster tree, whose files are in the cluster"
            ));
        }
        let node = disk::read_text(&data.node()).map_err(told)?;
        let node = node.ok_or_else(|| format!("{root} has no node name"))?;
        let told = |e: io::Error| {
            let scratch = scratch.display();
            format!("copying the namespace to {scratch}: {e}")
        };
        let private = Permissions::from_mode(0o700);
        let copy = tempfile::Builder::new()
            .prefix("oncefs-import-")
            .permissions(private)
            .tempdir_in(scratch)
            .map_err(told)?;
        let tree = copy_namespace(data, copy.path()).map_err(told)?;
        let (workshop, journal) =
            Workshop::open(&tree, true).map_err(|e| format!("{root}: {e}"))?;
        if let Some(why) = journal {
            return Err(format!("{root}: {why}; oncefs fsck says more"));
        }
        Ok(Source {
            _lock: lock,
            workshop,
            _copy: copy,
            content: data.content(),
            node,
        })
    }

    /// Its node's name.
    pub(super) fn node(&self) -> &str {
        &self.node
    }

    pub(super) fn ask<T>(
        &self,
        question: impl FnOnce(Query<'_>) -> Result<T, TreeError>,
    ) -> Result<T, TreeError> {
        question(self.workshop.query())
    }

    /// Opens a content that should have this length.
    pub(super) fn content(&self, hash: &ContentHash, size: u64) -> io::Result<File> {
        let file = File::open(DataDir::content_path(&self.content, hash))
            .map_err(|e| io::Error::new(e.kind(), format!("content {hash}: {e}")))?;
        match file.metadata()?.len() {
            len if len == size => Ok(file),
            len => Err(damaged(hash, &format!("it has {len} bytes, not {size}"))),
        }
    }

    /// Fails unless the bytes are those of the hash.
    pub(super) fn judge(&self, hash: &ContentHash, content: &File) -> io::Result<()> {
        match disk::hash(content, || true)? {
            Some(digest) if digest.hash == *hash => Ok(()),
            _ => Err(damaged(hash, "its bytes have another hash")),
        }
    }
}

fn damaged(hash: &ContentHash, how: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("content {hash} is damaged: {how}"),
    )
}

/// Returns where the copied database is.
fn copy_namespace(data: &DataDir, to: &Path) -> io::Result<PathBuf> {
    let tree = data.tree();
    let copy = to.join(tree.file_name().unwrap_or_default());
    fs::copy(&tree, &copy)?;
    for extension in BESIDE {
        match fs::copy(
            tree.with_extension(extension),
            copy.with_extension(extension),
        ) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(copy)
}
