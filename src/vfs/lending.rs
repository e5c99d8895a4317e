//! What other nodes may have of content that is pending here, or was until it was removed or replaced.

use std::io;
use std::sync::Arc;

use super::copies::OpenCopy;
use super::{Result, Vfs};
use crate::content::VerifiedFile;
use crate::content::spool::ClosedFile;
use crate::tree::Body;
use crate::types::{Generation, Ino};

/// The bytes of one generation of an inode, to be read from start to end.
pub enum Closed {
    /// Not stored yet.
    Waiting(ClosedFile),
    /// Stored a moment ago.
    Stored(Arc<VerifiedFile>),
    /// A copy of what is still open.
    Copied(OpenCopy),
}

impl Vfs {
    /// What was closed or synced here as exactly this generation; `None` when that is not here, or written just now.
    pub async fn closed(&self, ino: Ino, generation: Generation) -> Result<Option<Closed>> {
        if let Some(lent) = self.spool.lend(ino, generation)? {
            return Ok(Some(Closed::Waiting(lent)));
        }
        if let Some(open) = self.opens.get(ino)
            && let Some(copy) = self.copy_of_open(&open, generation).await?
        {
            return Ok(Some(Closed::Copied(copy)));
        }
        // It may have been closed while that was looked for.
        if let Some(lent) = self.spool.lend(ino, generation)? {
            return Ok(Some(Closed::Waiting(lent)));
        }
        // A spool file goes only after the namespace knows what became of it.
        let inode = self.tree.read(|q| q.inode(ino))?;
        match &inode.body {
            Body::Stored { hash, .. } if inode.generation == generation => {
                Ok(self.sealed.open_local(hash)?.map(Closed::Stored))
            }
            Body::Stored { .. } | Body::Pending { .. } | Body::Empty => Ok(None),
        }
    }
}

impl Closed {
    /// Its length in bytes.
    pub fn size(&self) -> io::Result<u64> {
        match self {
            Closed::Waiting(lent) => lent.size(),
            Closed::Stored(file) => Ok(file.size()),
            Closed::Copied(copy) => Ok(copy.bytes.len() as u64),
        }
    }

    /// Reads until `buffer` is full or the end comes. An error once a writer has taken it back: what was read before counts,
    /// and nothing that comes after.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        match self {
            Closed::Waiting(lent) => {
                let n = lent.read_at(buffer, offset)?;
                match lent.is_taken() {
                    false => Ok(n),
                    true => Err(io::Error::other("a writer took the file back")),
                }
            }
            Closed::Stored(file) => file.read_at(buffer, offset),
            Closed::Copied(OpenCopy { bytes, .. }) => {
                let rest = usize::try_from(offset).ok().and_then(|at| bytes.get(at..));
                let rest = rest.unwrap_or_default();
                let n = rest.len().min(buffer.len());
                buffer[..n].copy_from_slice(&rest[..n]);
                Ok(n)
            }
        }
    }
}
