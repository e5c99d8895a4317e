//! Files that are written, or sealed and not stored yet: `spool/<ino>.<generation>`.
//!
//! An inode has one spool file at most. Its [`Stage`] says who may touch it: writers while `Writing`, a worker reads it
//! while `Sealed` (and a writer may take it back at any time, under a new generation), nobody changes it while
//! `Publishing`, when it may share its inode with the sealed content. What is on disk is the truth; this map is its
//! index, rebuilt at start by [`Spool::scan`].
//!
//! After power loss a file may have its name and length and not its bytes. So a file whose bytes were synced carries a
//! mark (`lasting`), and goes only when something that lasts as well has taken its place.
//!
//! What was removed or written over before it was stored is kept for other machines a little longer (`keepsakes`).

mod aside;
mod closed;
mod files;
mod keepsakes;
mod lasting;
mod lend;
mod spares;
mod stages;

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};

pub use closed::ClosedFile;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::disk;
use super::lease::has_no_writer;
use super::verified::ReadFile;
use crate::types::{ContentHash, Generation, Ino, Status, Time};

/// Where a spool file stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Writers have it open.
    Writing,
    /// Closed by its last writer; waits for a worker or is being hashed or uploaded.
    Sealed,
    /// A worker makes it content. Lasts for a few local system calls and one namespace op.
    Publishing,
    /// Stored, but the kernel still reads it as a passthrough backing file; it goes with the last close.
    Kept,
}

struct Entry {
    generation: Generation,
    stage: Stage,
    file: Weak<File>,
    /// Open handles use it as a passthrough backing file, so it must not become shared content.
    backing: bool,
    /// They did, some time.
    was_backing: bool,
    /// When it was made, taken back or sealed.
    since: Time,
    /// Its bytes were synced: after power loss each of them is there, as it was then or as it was written later.
    lasting: bool,
    /// Lasting versions that this one is to replace, once it lasts itself.
    older: Vec<Generation>,
    progress: Progress,
    /// No worker needs to be told of it.
    idle: bool,
    /// Closed versions up to this one lose in the merge that is under way.
    lost: Option<Generation>,
    /// What it is known to be once it is closed, for those who read it.
    seal: Arc<closed::Seal>,
}

/// The version of an inode that the namespace knows.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Its number.
    pub generation: Generation,
    /// Its bytes wait at this node.
    pub here: bool,
}

impl Entry {
    fn new(generation: Generation, stage: Stage) -> Entry {
        Entry {
            generation,
            stage,
            file: Weak::new(),
            backing: false,
            was_backing: false,
            since: Time::now(),
            lasting: false,
            older: Vec::new(),
            progress: Progress::new(),
            idle: false,
            lost: None,
            seal: Arc::default(),
        }
    }

    /// Whether another node's version takes the place of this one, which is closed: soon nobody has it.
    fn is_lost(&self) -> bool {
        self.stage != Stage::Writing && self.lost.is_some_and(|lost| self.generation <= lost)
    }

    /// Whether it is what a reader is to see who finds `known` in the namespace.
    fn serves(&self, known: Known) -> bool {
        match self.is_lost() {
            true => self.generation == known.generation,
            false => self.stage == Stage::Writing || !self.is_outdated(known),
        }
    }

    /// Whether the namespace has another version in its place. Also one of the same number, which another node closed first
    /// while this one was open here and not told of; or the stored content, of which this is a damaged copy.
    fn is_outdated(&self, known: Known) -> bool {
        match self.stage {
            Stage::Sealed if !known.here => self.generation <= known.generation,
            Stage::Kept if self.seal.is_damaged() => true,
            _ => self.generation < known.generation,
        }
    }
}

/// What is known of a sealed file on its way into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Its hash, once known.
    pub hash: Option<ContentHash>,
    /// Where it stands.
    pub status: Status,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

impl Progress {
    fn new() -> Progress {
        Progress {
            hash: None,
            status: Status::Queued,
            error: None,
        }
    }
}

/// What became of a request to write to the inode's present spool file.
pub enum TakeBack {
    /// There is none.
    Nothing,
    /// It is open for writing under this generation.
    Writing(Generation, Arc<File>),
    /// A worker is publishing it: wait on [`Spool::changed`] and ask again.
    Busy,
    /// It shares its blocks with stored content, or outlasts the power: copy it instead (it stays as it is until the copy
    /// takes its place).
    Shared(PathBuf),
    /// The kernel holds it as a backing file, but another node has closed a later version: fill it with that before
    /// anybody writes. It is open for writing.
    Outdated(Arc<File>),
}

/// How a worker must publish a sealed file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freeze {
    /// The file itself may become the content.
    Share,
    /// It is still a backing file: a copy must become the content.
    Copy,
}

/// One spool file found on disk.
#[derive(Clone, Debug)]
pub struct Found {
    /// The inode.
    pub ino: Ino,
    /// The generation.
    pub generation: Generation,
    /// Length in bytes.
    pub size: u64,
    /// Modification time.
    pub mtime: Time,
    /// Its bytes were synced.
    pub lasting: bool,
    /// Where.
    pub path: PathBuf,
}

/// The spool directory and its index.
pub struct Spool {
    dir: PathBuf,
    entries: Mutex<HashMap<Ino, Entry>>,
    changed: Notify,
    condemned: lasting::Condemned,
    spares: spares::Spares,
    keepsakes: keepsakes::Keepsakes,
    /// A worker has met damage here.
    has_damage: AtomicBool,
}

impl Spool {
    /// The spool in `dir`, with nothing in its index yet. In `spare`, on the same disk, it keeps files to use again.
    pub fn new(dir: PathBuf, spare: PathBuf) -> Spool {
        Spool {
            dir,
            spares: spares::Spares::new(spare),
            entries: Mutex::default(),
            changed: Notify::new(),
            condemned: lasting::Condemned::default(),
            keepsakes: keepsakes::Keepsakes::default(),
            has_damage: AtomicBool::new(false),
        }
    }

    /// Where the spool file of this generation lies.
    pub fn path(&self, ino: Ino, generation: Generation) -> PathBuf {
        self.dir.join(format!("{ino}.{generation}"))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Notes whether open handles use the file as a passthrough backing file. With the last of them a file that was
    /// only kept for them goes.
    pub fn set_backing(&self, ino: Ino, backing: bool) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(&ino) {
            entry.backing = backing;
            entry.was_backing |= backing;
            if !backing && entry.stage == Stage::Kept {
                let _ = std::fs::remove_file(self.path(ino, entry.generation));
                entries.remove(&ino);
            }
        }
    }

    /// Whether the kernel ever had the file as a backing file since it was made or found, so that a mapping of it can
    /// outlive every handle.
    pub fn may_be_mapped(&self, ino: Ino) -> bool {
        self.entries.lock().get(&ino).is_some_and(|e| e.was_backing)
    }

    /// The generation of a closed file that programs may still write to through mappings of it as a backing file.
    pub fn still_mapped(&self, ino: Ino) -> Option<Generation> {
        let (stage, generation) = self.stage(ino)?;
        if stage != Stage::Sealed || !self.may_be_mapped(ino) {
            return None;
        }
        let file = File::open(self.path(ino, generation)).ok()?;
        (!has_no_writer(&file)).then_some(generation)
    }

    /// Whether open handles use the file as a passthrough backing file.
    pub fn is_backing(&self, ino: Ino) -> bool {
        self.entries.lock().get(&ino).is_some_and(|e| e.backing)
    }

    /// Opens a sealed file for reading. `None` when there is no spool file, or only one older than what the namespace knows.
    pub fn open_sealed(&self, ino: Ino, known: Known) -> io::Result<Option<ReadFile>> {
        let entries = self.entries.lock();
        let Some(entry) = entries.get(&ino) else {
            return Ok(None);
        };
        if !entry.serves(known) {
            return Ok(None);
        }
        let file = File::open(self.path(ino, entry.generation))?;
        let closed = ClosedFile::new(file, entry.seal.clone());
        Ok(Some(ReadFile::Closed(Arc::new(closed))))
    }

    /// Whether [`Spool::open_sealed`] finds a file.
    pub fn serves(&self, ino: Ino, known: Known) -> bool {
        let entries = self.entries.lock();
        entries.get(&ino).is_some_and(|e| e.serves(known))
    }

    /// Length and times of a closed file that the namespace does not know of, as close(2) could not tell it. `current` is
    /// the generation that it knows.
    pub fn unannounced(&self, ino: Ino, current: Generation) -> Option<Metadata> {
        let entries = self.entries.lock();
        let entry = entries.get(&ino)?;
        let closed = matches!(entry.stage, Stage::Sealed | Stage::Publishing);
        if !closed || entry.generation <= current || entry.is_lost() {
            return None;
        }
        std::fs::metadata(self.path(ino, entry.generation)).ok()
    }

    /// The stage and generation of the inode's spool file.
    pub fn stage(&self, ino: Ino) -> Option<(Stage, Generation)> {
        let entries = self.entries.lock();
        entries.get(&ino).map(|e| (e.stage, e.generation))
    }

    /// Whether this generation is still sealed and so still to be stored.
    pub fn is_sealed(&self, ino: Ino, generation: Generation) -> bool {
        let entries = self.entries.lock();
        entries
            .get(&ino)
            .is_some_and(|e| e.stage == Stage::Sealed && e.generation == generation && !e.is_lost())
    }

    /// Whether a file that waits to be stored is not on the disk any more: somebody removed it by hand.
    pub fn is_missing(&self, ino: Ino) -> bool {
        let entries = self.entries.lock();
        // Asked with the index locked, so that it is not just getting another name.
        entries.get(&ino).is_some_and(|e| {
            e.stage == Stage::Sealed
                && matches!(self.path(ino, e.generation).try_exists(), Ok(false))
        })
    }

    /// When it was sealed.
    pub fn sealed_at(&self, ino: Ino) -> Option<Time> {
        self.entries.lock().get(&ino).map(|e| e.since)
    }

    /// How far the inode's spool file has come.
    pub fn progress(&self, ino: Ino) -> Option<(Stage, Progress)> {
        let entries = self.entries.lock();
        entries.get(&ino).map(|e| (e.stage, e.progress.clone()))
    }

    /// The inodes whose sealed file is known to hash to `hash`.
    pub fn with_hash(&self, hash: &ContentHash) -> Vec<Ino> {
        let entries = self.entries.lock();
        entries
            .iter()
            .filter(|(_, e)| e.stage != Stage::Writing && e.progress.hash == Some(*hash))
            .map(|(ino, _)| *ino)
            .collect()
    }

    /// Notes how far this generation has come.
    pub fn set_progress(&self, ino: Ino, generation: Generation, progress: Progress) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(&ino)
            && entry.generation == generation
        {
            entry.progress = progress;
        }
    }

    /// Whether [`Spool::sealed`] is to name this generation: not when its job can lead to nothing for now.
    pub fn set_waiting(&self, ino: Ino, generation: Generation, waiting: bool) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(&ino)
            && entry.generation == generation
        {
            entry.idle = !waiting;
        }
    }

    /// Gives the file a modification time while it waits: the one that recovery would find. At every stage: the last
    /// writer may be just about to seal it, and what is being published may come back.
    pub fn set_sealed_mtime(&self, ino: Ino, time: Time) -> io::Result<()> {
        let entries = self.entries.lock();
        match entries.get(&ino) {
            Some(entry) => {
                disk::set_mtime(&File::open(self.path(ino, entry.generation))?, time)?;
                self.renew_hash(ino, entry);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Completes at the next thaw, finish or discard of any file. Create it before asking what to wait for.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Up to `limit` sealed files, for workers whose queue overflowed.
    pub fn sealed(&self, limit: usize) -> Vec<(Ino, Generation)> {
        let entries = self.entries.lock();
        entries
            .iter()
            .filter(|(_, e)| {
                e.stage == Stage::Sealed && e.progress.status == Status::Queued && !e.idle
            })
            .take(limit)
            .map(|(ino, e)| (*ino, e.generation))
            .collect()
    }

    /// How many files are being written, and how many wait to be stored.
    pub fn counts(&self) -> (usize, usize) {
        let entries = self.entries.lock();
        let writing = entries
            .values()
            .filter(|e| e.stage == Stage::Writing)
            .count();
        let waiting = entries
            .values()
            .filter(|e| matches!(e.stage, Stage::Sealed | Stage::Publishing))
            .count();
        (writing, waiting)
    }
}

#[cfg(test)]
mod tests;
