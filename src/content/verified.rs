//! Reading content so that nothing wrong is ever returned, even when bits flip on the disk.
//!
//! A content of at most one block is hashed whole at every read. A longer one is read in whole blocks, each checked
//! against its sum ([`super::sums`]). What contradicts the sums is decided by the hash of the whole: either the sums are
//! made anew, or the content is damaged and goes into quarantine ([`super::shelf`]).

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use sha2::{Digest as _, Sha256};

use super::disk;
use super::shelf::Shelf;
use super::spool::ClosedFile;
use super::sums::{BLOCK, Sums};
use crate::types::ContentHash;

/// The bytes on the disk are not those of the content's name.
#[derive(Debug, thiserror::Error)]
#[error("content {0} is damaged")]
pub struct Damaged(pub ContentHash);

/// Whether an error says that content is damaged. It is out of the way by then, so opening it anew may help: the store may
/// have it whole, or somebody may have written it again.
pub fn is_damage(e: &io::Error) -> bool {
    damaged(e).is_some()
}

/// Which content such an error is about.
pub fn damaged(e: &io::Error) -> Option<ContentHash> {
    let damaged: &Damaged = e.get_ref()?.downcast_ref()?;
    Some(damaged.0)
}

/// An open content.
pub struct VerifiedFile {
    hash: ContentHash,
    file: File,
    size: u64,
    sums: RwLock<Option<Arc<Sums>>>,
    /// One reader makes the sums, the others wait for them.
    judging: Mutex<()>,
    shelf: Arc<Shelf>,
}

impl std::fmt::Debug for VerifiedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VerifiedFile({}, {} bytes)", self.hash, self.size)
    }
}

impl VerifiedFile {
    pub(super) fn new(hash: ContentHash, file: File, shelf: Arc<Shelf>) -> io::Result<Self> {
        Ok(VerifiedFile {
            hash,
            size: file.metadata()?.len(),
            file,
            sums: RwLock::new(None),
            judging: Mutex::new(()),
            shelf,
        })
    }

    pub(super) fn hash(&self) -> &ContentHash {
        &self.hash
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads into `buffer` from `offset` on; fewer bytes than it holds only at the end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let wanted = self.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        if wanted == 0 {
            // Also that here is the end is checked: the file may have been cut.
            self.check_size()?;
            return Ok(0);
        }
        let buffer = &mut buffer[..wanted];
        by_blocks(self.size, buffer, offset, |blocks, first| {
            self.read_blocks(blocks, first)
        })?;
        Ok(wanted)
    }

    /// Does what takes long before the first read where the sums are missing. Afterwards a read costs a read.
    pub fn prepare(&self) -> io::Result<()> {
        self.check_size()
    }

    /// Whether [`VerifiedFile::prepare`] has nothing to do.
    pub fn is_prepared(&self) -> bool {
        self.size <= BLOCK as u64 || self.sums.read().is_some()
    }

    fn check_size(&self) -> io::Result<()> {
        match self.size <= BLOCK as u64 {
            true => self.read_blocks(&mut vec![0; self.size as usize], 0),
            // They are kept for one size only.
            false => self.sums().map(drop),
        }
    }

    /// Fills `blocks` with whole blocks from `offset` on, checked.
    fn read_blocks(&self, blocks: &mut [u8], offset: u64) -> io::Result<()> {
        match self.file.read_exact_at(blocks, offset) {
            // Shorter than it was when it was opened.
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(e) => return Err(e),
            Ok(()) if self.agree(blocks, offset)? => return Ok(()),
            Ok(()) => {}
        }
        // Content never changes, so this is damage, unless the sums were wrong or the disk reads better now.
        self.judge(|_| true)?;
        self.file.read_exact_at(blocks, offset)?;
        match self.agree(blocks, offset)? {
            true => Ok(()),
            false => Err(io::Error::other(Damaged(self.hash))),
        }
    }

    fn agree(&self, blocks: &[u8], offset: u64) -> io::Result<bool> {
        if self.size <= BLOCK as u64 {
            return Ok(Sha256::digest(blocks).as_slice() == self.hash.0);
        }
        Ok(self.sums()?.agree(offset / BLOCK as u64, blocks))
    }

    fn sums(&self) -> io::Result<Arc<Sums>> {
        if let Some(sums) = &*self.sums.read() {
            return Ok(sums.clone());
        }
        if let Some(sums) = Sums::load(&self.shelf.path(&self.hash), self.size) {
            let sums = Arc::new(sums);
            *self.sums.write() = Some(sums.clone());
            return Ok(sums);
        }
        let _turn = self.judging.lock();
        let found_meanwhile = self.sums.read().clone();
        if let Some(sums) = found_meanwhile {
            return Ok(sums);
        }
        self.judge(|_| true)?;
        let sums = self.sums.read().clone();
        sums.ok_or_else(|| io::Error::other(Damaged(self.hash)))
    }

    /// Hashes the whole content, whatever its sums say, and makes these anew. Damaged content goes into quarantine and is
    /// an error. `pace` hears how many bytes were read, each time some were; once it says no, the answer is `false`.
    pub fn judge(&self, pace: impl Fn(u64) -> bool) -> io::Result<bool> {
        let Some(digest) = disk::hash_paced(&self.file, pace)? else {
            return Ok(false);
        };
        if digest.hash != self.hash || digest.size != self.size {
            self.shelf.quarantine(self);
            return Err(io::Error::other(Damaged(self.hash)));
        }
        self.shelf.keep_sums(self, &digest.sums);
        *self.sums.write() = Some(Arc::new(digest.sums));
        Ok(true)
    }

    /// Whether every byte is right, by the cheaper way.
    pub fn check(&self) -> io::Result<()> {
        self.check_range(0, self.size)
    }

    /// Reads a range and checks it.
    fn check_range(&self, mut at: u64, end: u64) -> io::Result<()> {
        let end = end.min(self.size);
        self.check_size()?;
        at = at / BLOCK as u64 * BLOCK as u64;
        let mut buffer = vec![0; disk::CHUNK.min((end.max(at) - at) as usize)];
        while at < end {
            at += self.read_at(&mut buffer, at)? as u64;
        }
        Ok(())
    }

    /// Makes `to` (empty) equal to this content, as [`disk::copy`] does, and checks the copy.
    fn copy_to(&self, to: &File) -> io::Result<()> {
        self.check_size()?;
        disk::copy(&self.file, to)?;
        if check_copy(to, self.size, |at, blocks| self.agree(blocks, at))? {
            return Ok(());
        }
        Err(match self.judge(|_| true) {
            Ok(_) => io::Error::other(format!("the copy of {} is wrong", self.hash)),
            Err(e) => e,
        })
    }
}

/// Fills `buffer`, which lies within the `size` bytes of a file from `offset` on, from whole blocks that `read` fills.
pub(super) fn by_blocks(
    size: u64,
    buffer: &mut [u8],
    offset: u64,
    read: impl FnOnce(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    if buffer.is_empty() {
        return Ok(());
    }
    let block = BLOCK as u64;
    let first = offset / block * block;
    let last = (offset + buffer.len() as u64)
        .next_multiple_of(block)
        .min(size);
    if first == offset && last - first == buffer.len() as u64 {
        return read(buffer, first);
    }
    let mut blocks = vec![0; (last - first) as usize];
    read(&mut blocks, first)?;
    let from = (offset - first) as usize;
    buffer.copy_from_slice(&blocks[from..from + buffer.len()]);
    Ok(())
}

/// Whether a copy is what was copied: `size` bytes, of which `agree` says that each block is right.
pub(super) fn check_copy(
    copy: &File,
    size: u64,
    agree: impl Fn(u64, &[u8]) -> io::Result<bool>,
) -> io::Result<bool> {
    if copy.metadata()?.len() != size {
        return Ok(false);
    }
    let mut buffer = vec![0; disk::CHUNK.min(size as usize)];
    let mut at = 0;
    while at < size {
        let n = (size - at).min(buffer.len() as u64) as usize;
        copy.read_exact_at(&mut buffer[..n], at)?;
        if !agree(at, &buffer[..n])? {
            return Ok(false);
        }
        at += n as u64;
    }
    Ok(true)
}

/// A file that reads come from. For anything but its bytes, it is the file.
#[derive(Clone, Debug)]
pub enum ReadFile {
    /// A file of the spool that is being written.
    Plain(Arc<File>),
    /// One that is closed, checked as soon as it was hashed.
    Closed(Arc<ClosedFile>),
    /// Sealed content.
    Content(Arc<VerifiedFile>),
}

impl Deref for ReadFile {
    type Target = File;

    fn deref(&self) -> &File {
        match self {
            ReadFile::Plain(file) => file,
            ReadFile::Closed(closed) => closed.file(),
            ReadFile::Content(content) => content.file(),
        }
    }
}

impl ReadFile {
    /// Reads until `buffer` is full or the file ends.
    pub fn read_full(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            ReadFile::Plain(file) => disk::read_full(file, offset, buffer),
            ReadFile::Closed(closed) => closed.read_at(buffer, offset),
            ReadFile::Content(content) => content.read_at(buffer, offset),
        }
    }

    /// Makes `to` (empty) equal to it, with holes where it has some and blocks shared where the disk can.
    pub fn copy_to(&self, to: &File) -> io::Result<()> {
        match self {
            ReadFile::Plain(file) => disk::copy(file, to),
            ReadFile::Closed(closed) => closed.copy_to(to),
            ReadFile::Content(content) => content.copy_to(to),
        }
    }

    /// Makes sure that a range is right, for whoever then takes it from the file itself.
    pub fn check_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset.saturating_add(len);
        match self {
            ReadFile::Plain(_) => Ok(()),
            ReadFile::Closed(closed) => closed.check_range(offset, end),
            ReadFile::Content(content) => content.check_range(offset, end),
        }
    }

    /// Whether [`ReadFile::prepare`] has nothing to do.
    pub fn is_prepared(&self) -> bool {
        match self {
            ReadFile::Plain(_) => true,
            ReadFile::Closed(closed) => closed.is_prepared(),
            ReadFile::Content(content) => content.is_prepared(),
        }
    }

    /// Does what takes long before the first read, where reading needs it.
    pub fn prepare(&self) -> io::Result<()> {
        match self {
            ReadFile::Plain(_) => Ok(()),
            ReadFile::Closed(closed) => closed.prepare(),
            ReadFile::Content(content) => content.prepare(),
        }
    }

    /// Whether the two are the same open file.
    pub fn is(&self, other: &ReadFile) -> bool {
        match (self, other) {
            (ReadFile::Plain(a), ReadFile::Plain(b)) => Arc::ptr_eq(a, b),
            (ReadFile::Closed(a), ReadFile::Closed(b)) => Arc::ptr_eq(a, b),
            (ReadFile::Content(a), ReadFile::Content(b)) => Arc::ptr_eq(a, b),
            (ReadFile::Plain(_) | ReadFile::Closed(_) | ReadFile::Content(_), _) => false,
        }
    }
}
