//! What a closed version of a spool file was when it was hashed: from then on it is read as that and nothing else. A bit
//! that the disk turns is an error, and never content under another hash.
//!
//! The sums are in memory. What has to wait, as the store is away or refused it, carries its hash on the disk as well, for
//! the next start: in an attribute of the file, which counts as long as length and modification time are those that it
//! names.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rustix::fs::XattrFlags;

use super::{Entry, Known, Spool, Stage};
use crate::content::verified::{Damaged, ReadFile, by_blocks, check_copy};
use crate::content::{disk, sums::Digest};
use crate::types::{ContentHash, Generation, Ino, Time};

/// The attribute: hash, length, modification time.
const ATTRIBUTE: &str = "user.oncefs.closed";
const ATTRIBUTE_BYTES: usize = 32 + 8 + 8;

/// What is known of one closed version, shared by all who read it.
#[derive(Default)]
pub struct Seal {
    /// A writer took it back: its bytes are another version's.
    taken: AtomicBool,
    digest: OnceLock<Digest>,
    /// Its hash, as an earlier daemon left it on the disk.
    noted: Option<ContentHash>,
    /// The file has the attribute, be it outdated.
    is_noted: AtomicBool,
    /// And it is right.
    is_current: AtomicBool,
    damaged: AtomicBool,
    /// It could not be hashed, which is tried again when it is stored.
    put_off: AtomicBool,
    /// One reader hashes it, the others wait.
    judging: Mutex<()>,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seal({:?})", self.hash())
    }
}

impl Seal {
    /// As what was found on the disk says.
    pub(super) fn found(noted: Noted) -> Arc<Seal> {
        Arc::new(Seal {
            is_noted: AtomicBool::new(noted != Noted::Nothing),
            is_current: AtomicBool::new(matches!(noted, Noted::Hash(_))),
            noted: match noted {
                Noted::Hash(hash) => Some(hash),
                Noted::Nothing | Noted::Outdated => None,
            },
            ..Seal::default()
        })
    }

    /// That of a copy.
    pub(super) fn of_copy(&self) -> Arc<Seal> {
        Arc::new(Seal {
            digest: self.digest.clone(),
            noted: self.noted,
            ..Seal::default()
        })
    }

    /// That of the same file under another name.
    pub(super) fn of_link(&self) -> Arc<Seal> {
        Arc::new(Seal {
            digest: self.digest.clone(),
            noted: self.noted,
            is_noted: AtomicBool::new(self.is_noted()),
            is_current: AtomicBool::new(self.is_current.load(Ordering::Relaxed)),
            ..Seal::default()
        })
    }

    pub(super) fn take(&self) {
        self.taken.store(true, Ordering::Release);
    }

    fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire)
    }

    fn hash(&self) -> Option<ContentHash> {
        self.digest.get().map(|d| d.hash).or(self.noted)
    }

    /// Whether hashing it ahead can say something new.
    fn is_judged(&self) -> bool {
        self.digest.get().is_some() || self.is_damaged() || self.put_off.load(Ordering::Relaxed)
    }

    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    pub(super) fn is_noted(&self) -> bool {
        self.is_noted.load(Ordering::Relaxed)
    }

    /// An error where hashing it again would say what it said before. Only a worker does so, now and then.
    fn known_damage(&self) -> io::Result<()> {
        match self.noted {
            Some(noted) if self.is_damaged() && !self.is_taken() => {
                Err(io::Error::other(Damaged(noted)))
            }
            _ => Ok(()),
        }
    }

    /// The whole file was hashed. An error when it was something else before.
    fn hashed(&self, digest: Digest) -> io::Result<()> {
        if let Some(before) = self.hash().filter(|before| *before != digest.hash) {
            self.damaged.store(true, Ordering::Relaxed);
            return Err(io::Error::other(Damaged(before)));
        }
        self.damaged.store(false, Ordering::Relaxed);
        let _ = self.digest.set(digest);
        Ok(())
    }
}

/// A closed spool file, open for reading.
pub struct ClosedFile {
    file: File,
    seal: Arc<Seal>,
}

impl std::fmt::Debug for ClosedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClosedFile({:?})", self.seal)
    }
}

impl ClosedFile {
    pub(super) fn new(file: File, seal: Arc<Seal>) -> ClosedFile {
        ClosedFile { file, seal }
    }

    pub(in crate::content) fn file(&self) -> &File {
        &self.file
    }

    /// Its length in bytes.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Whether a writer took it back since it was opened. What was read before counts if it was not taken back afterwards.
    pub fn is_taken(&self) -> bool {
        self.seal.is_taken()
    }

    /// Whether [`ClosedFile::prepare`] has nothing to do.
    pub fn is_prepared(&self) -> bool {
        self.seal.noted.is_none() || self.seal.digest.get().is_some()
    }

    /// Does what takes long before the first read of what an earlier daemon hashed.
    pub fn prepare(&self) -> io::Result<()> {
        if self.is_prepared() {
            return Ok(());
        }
        self.seal.known_damage()?;
        let _turn = self.seal.judging.lock();
        if self.is_prepared() {
            return Ok(());
        }
        self.seal.known_damage()?;
        match disk::hash(&self.file, || !self.is_taken())? {
            Some(digest) if !self.is_taken() => self.seal.hashed(digest),
            // Nobody knows any more what it was.
            Some(_) | None => Ok(()),
        }
    }

    /// Reads until `buffer` is full or the file ends. What a writer makes of the file is nobody's damage.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.prepare()?;
        let unchecked = |buffer: &mut [u8]| disk::read_full(&self.file, offset, buffer);
        let Some(digest) = self.seal.digest.get().filter(|_| !self.is_taken()) else {
            return unchecked(buffer);
        };
        let wanted = digest.size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let read = by_blocks(digest.size, &mut buffer[..wanted], offset, |blocks, at| {
            self.read_blocks(digest, blocks, at)
        });
        match read {
            Err(_) if self.is_taken() => unchecked(buffer),
            read => read.map(|()| wanted),
        }
    }

    fn read_blocks(&self, digest: &Digest, blocks: &mut [u8], at: u64) -> io::Result<()> {
        match self.file.read_exact_at(blocks, at) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(e) => return Err(e),
            Ok(()) if digest.sums.agree(at / BLOCK_BYTES, blocks) => return Ok(()),
            Ok(()) => {}
        }
        if !self.is_taken() {
            self.seal.damaged.store(true, Ordering::Relaxed);
        }
        Err(io::Error::other(Damaged(digest.hash)))
    }

    /// Reads a range and checks it.
    pub fn check_range(&self, mut at: u64, end: u64) -> io::Result<()> {
        let size = self.size()?;
        if let Some(digest) = self.seal.digest.get()
            && digest.size != size
            && !self.is_taken()
        {
            return Err(io::Error::other(Damaged(digest.hash)));
        }
        let end = end.min(size);
        let mut buffer = vec![0; disk::CHUNK.min(end.saturating_sub(at) as usize)];
        while at < end {
            match self.read_at(&mut buffer, at)? {
                0 => break,
                n => at += n as u64,
            }
        }
        Ok(())
    }

    /// Makes `to` (empty) equal to it, as [`disk::copy`] does, and checks the copy.
    pub(in crate::content) fn copy_to(&self, to: &File) -> io::Result<()> {
        self.prepare()?;
        disk::copy(&self.file, to)?;
        let Some(digest) = self.seal.digest.get() else {
            return Ok(());
        };
        match check_copy(to, digest.size, |at, blocks| {
            Ok(digest.sums.agree(at / BLOCK_BYTES, blocks))
        })? {
            false if !self.is_taken() => Err(io::Error::other(Damaged(digest.hash))),
            _ => Ok(()),
        }
    }
}

const BLOCK_BYTES: u64 = crate::content::sums::BLOCK as u64;

/// What a spool file says of itself on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noted {
    /// Nothing.
    Nothing,
    /// What it was before it was written to again.
    Outdated,
    /// Its hash.
    Hash(ContentHash),
}

/// What the closed file says that its hash is.
pub(super) fn noted(file: &File) -> io::Result<Noted> {
    let mut value = [0; ATTRIBUTE_BYTES + 1];
    let len = match rustix::fs::fgetxattr(file, ATTRIBUTE, &mut value) {
        Ok(len) => len,
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => return Ok(Noted::Nothing),
        Err(rustix::io::Errno::RANGE) => return Ok(Noted::Outdated),
        Err(e) => return Err(e.into()),
    };
    let meta = file.metadata()?;
    let rest = attribute(&ContentHash([0; 32]), meta.len(), disk::mtime(&meta));
    Ok(match value[..len].split_first_chunk::<32>() {
        Some((hash, of)) if *of == rest[32..] => Noted::Hash(ContentHash(*hash)),
        _ => Noted::Outdated,
    })
}

fn attribute(hash: &ContentHash, size: u64, mtime: Time) -> [u8; ATTRIBUTE_BYTES] {
    let mut value = [0; ATTRIBUTE_BYTES];
    value[..32].copy_from_slice(&hash.0);
    value[32..40].copy_from_slice(&size.to_le_bytes());
    value[40..].copy_from_slice(&mtime.0.to_le_bytes());
    value
}

/// Takes the hash off a file that is about to be written to.
pub(super) fn forget(file: &File) -> io::Result<()> {
    match rustix::fs::fremovexattr(file, ATTRIBUTE) {
        Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

impl Spool {
    /// `file`, which is the inode's spool file as it is now, as what it is known to be.
    pub fn as_closed(&self, ino: Ino, file: File) -> ReadFile {
        let entries = self.entries.lock();
        let seal = entries.get(&ino).map(|e| e.seal.clone());
        ReadFile::Closed(Arc::new(ClosedFile::new(file, seal.unwrap_or_default())))
    }

    /// Notes what a closed version hashes to. An error when it is not what it was before; false when it is open again.
    pub fn set_digest(&self, ino: Ino, generation: Generation, digest: Digest) -> io::Result<bool> {
        let mut entries = self.entries.lock();
        match entries.get_mut(&ino) {
            Some(entry) if entry.generation == generation && entry.stage != Stage::Writing => {
                let as_before = entry.seal.hashed(digest);
                // What was closed, not what became of it.
                entry.progress.hash = entry.seal.hash();
                if as_before.is_err() {
                    self.has_damage.store(true, Ordering::Relaxed);
                }
                as_before.map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// The damaged files that were closed with this content.
    pub fn damaged_with(&self, hash: &ContentHash) -> Vec<(Ino, Generation)> {
        // Mostly there are none, and the files are many.
        if !self.has_damage.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let entries = self.entries.lock();
        let damaged = entries
            .iter()
            .filter(|(_, e)| e.seal.is_damaged() && e.seal.hash() == Some(*hash));
        damaged.map(|(ino, e)| (*ino, e.generation)).collect()
    }

    /// Which content was closed, where what waits is known not to be that.
    pub fn damaged(&self, ino: Ino) -> Option<ContentHash> {
        let entries = self.entries.lock();
        let seal = &entries.get(&ino)?.seal;
        seal.hash().filter(|_| seal.is_damaged())
    }

    /// Puts the hash of a file that has to wait on the disk. It only makes damage show, so where it cannot be kept, nothing
    /// is wrong.
    pub fn note_hash(&self, ino: Ino, generation: Generation) {
        let entries = self.entries.lock();
        if let Some(entry) = entries.get(&ino)
            && entry.generation == generation
            && entry.stage == Stage::Sealed
            && !entry.seal.is_current.load(Ordering::Relaxed)
        {
            self.put_hash(ino, entry);
        }
    }

    /// The same after its time was set.
    pub(super) fn renew_hash(&self, ino: Ino, entry: &Entry) {
        if entry.seal.is_current.swap(false, Ordering::Relaxed) && entry.stage != Stage::Writing {
            self.put_hash(ino, entry);
        }
    }

    fn put_hash(&self, ino: Ino, entry: &Entry) {
        let put = |hash: ContentHash| -> io::Result<()> {
            let file = File::open(self.path(ino, entry.generation))?;
            let meta = file.metadata()?;
            let mode = meta.mode() & 0o7777;
            // A publication that failed has made it read-only, and then nobody but root sets an attribute.
            if mode & 0o200 == 0 && meta.nlink() == 1 && entry.stage == Stage::Sealed {
                file.set_permissions(Permissions::from_mode(mode | 0o200))?;
            }
            let value = attribute(&hash, meta.len(), disk::mtime(&meta));
            rustix::fs::fsetxattr(&file, ATTRIBUTE, &value, XattrFlags::empty())?;
            entry.seal.is_noted.store(true, Ordering::Relaxed);
            entry.seal.is_current.store(true, Ordering::Relaxed);
            Ok(())
        };
        if let Some(Err(e)) = entry.seal.hash().map(put) {
            tracing::debug!("inode {ino}: its hash is not kept on the disk: {e}");
        }
    }

    /// It could not be hashed: [`Spool::unhashed`] does not name it again.
    pub fn put_off(&self, ino: Ino, generation: Generation) {
        let entries = self.entries.lock();
        if let Some(entry) = entries.get(&ino)
            && entry.generation == generation
        {
            entry.seal.put_off.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a file on the disk is not what it says that it was. Reads all of it.
    pub fn contradicts_itself(&self, ino: Ino, generation: Generation) -> io::Result<bool> {
        let file = match File::open(self.path(ino, generation)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        let Noted::Hash(hash) = noted(&file)? else {
            return Ok(false);
        };
        let digest = disk::hash(&file, || true)?;
        // A writer may have taken it back meanwhile.
        Ok(digest.is_some_and(|d| d.hash != hash) && noted(&file)? == Noted::Hash(hash))
    }

    /// Up to `limit` closed files that nobody has hashed since the start.
    pub fn unhashed(&self, limit: usize) -> Vec<(Ino, Generation)> {
        let entries = self.entries.lock();
        let unhashed = entries
            .iter()
            .filter(|(_, e)| e.stage == Stage::Sealed && !e.seal.is_judged());
        unhashed
            .take(limit)
            .map(|(ino, e)| (*ino, e.generation))
            .collect()
    }

    /// A closed file that has waited since `before`, or over a restart, or was found damaged, and of which it is known what it
    /// should be: whoever writes on goes on from that. Not where the namespace has another version in its place.
    pub fn waited(&self, ino: Ino, known: Known, before: Time) -> io::Result<Option<ClosedFile>> {
        let entries = self.entries.lock();
        let Some(entry) = entries.get(&ino) else {
            return Ok(None);
        };
        let goes_on = matches!(entry.stage, Stage::Sealed | Stage::Kept)
            && !entry.is_lost()
            && !entry.is_outdated(known);
        let seal = &entry.seal;
        let check = seal.hash().is_some()
            && (entry.since < before || seal.noted.is_some() || seal.is_damaged());
        if !goes_on || !check {
            return Ok(None);
        }
        let file = File::open(self.path(ino, entry.generation))?;
        Ok(Some(ClosedFile::new(file, entry.seal.clone())))
    }
}
