//! Files that are written, or sealed and not stored yet: `spool/<ino>.<generation>`.
//!
//! An inode has one spool file at most. Its [`Stage`] says who may touch it: writers while `Writing`, a worker reads it
//! while `Sealed` (and a writer may take it back at any time, under a new generation), nobody changes it while
//! `Publishing`, when it may share its inode with the sealed content. What is on disk is the truth; this map is its
//! index, rebuilt at start by [`Spool::scan`].

use std::collections::HashMap;
use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::disk;
use super::lease::has_no_writer;
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
    sealed_at: Time,
    progress: Progress,
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
    /// It shares its blocks with stored content: copy it instead (it stays as it is until the copy takes its place).
    Shared(PathBuf),
    /// The kernel holds it as a backing file, but another node has closed a later version: fill it with that before
    /// anybody writes. It is open for writing under this generation.
    Outdated(Generation, Arc<File>),
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
    /// Where.
    pub path: PathBuf,
}

/// The spool directory and its index.
pub struct Spool {
    dir: PathBuf,
    entries: Mutex<HashMap<Ino, Entry>>,
    changed: Notify,
}

impl Spool {
    /// The spool in `dir`, with nothing in its index yet.
    pub fn new(dir: PathBuf) -> Spool {
        Spool {
            dir,
            entries: Mutex::default(),
            changed: Notify::new(),
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

    /// Every spool file on disk. Copies that were never finished, and what is no spool file, are removed.
    pub fn scan(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let parsed = name
                .to_str()
                .and_then(|n| n.split_once('.'))
                .and_then(|(i, g)| Some((Ino(i.parse().ok()?), Generation(g.parse().ok()?))));
            let Some((ino, generation)) = parsed else {
                std::fs::remove_file(entry.path())?;
                continue;
            };
            let meta = entry.metadata()?;
            found.push(Found {
                ino,
                generation,
                size: meta.len(),
                mtime: disk::mtime(&meta),
                path: entry.path(),
            });
        }
        Ok(found)
    }

    /// Makes a new, empty spool file that writers have open, in place of whatever the inode had before.
    pub fn create(&self, ino: Ino, generation: Generation) -> io::Result<Arc<File>> {
        let file = Arc::new(new_file(&self.path(ino, generation))?);
        self.install(ino, generation, &file);
        Ok(file)
    }

    /// Makes a spool file that writers have open, filled from `from`.
    pub fn create_from(
        &self,
        ino: Ino,
        generation: Generation,
        from: &File,
    ) -> io::Result<Arc<File>> {
        // Under its final name it is always whole: a crash in the middle leaves only what `scan` removes.
        let path = self.path(ino, generation);
        let partial = self.dir.join(format!("{ino}.{generation}.copy"));
        let _ = std::fs::remove_file(&partial);
        let file = new_file(&partial)?;
        let copied = disk::copy(from, &file).and_then(|()| std::fs::rename(&partial, &path));
        if let Err(e) = copied {
            let _ = std::fs::remove_file(&partial);
            return Err(e);
        }
        let file = Arc::new(file);
        self.install(ino, generation, &file);
        Ok(file)
    }

    /// Makes sure that nobody else writes to a spool file of an earlier daemon. When that one was killed, programs may
    /// still write to its passthrough files through the kernel; they keep the old file, and a copy takes its place.
    pub fn part_from_writers(&self, found: &mut Found) -> io::Result<()> {
        let old = File::open(&found.path)?;
        if has_no_writer(&old) {
            return Ok(());
        }
        let partial = self
            .dir
            .join(format!("{}.{}.copy", found.ino, found.generation));
        let _ = std::fs::remove_file(&partial);
        let new = new_file(&partial)?;
        disk::copy(&old, &new)?;
        let meta = old.metadata()?;
        disk::set_mtime(&new, disk::mtime(&meta))?;
        std::fs::rename(&partial, &found.path)?;
        found.size = new.metadata()?.len();
        found.mtime = disk::mtime(&meta);
        Ok(())
    }

    /// Takes over a finished temporary file as a sealed spool file (an upload).
    pub fn adopt(&self, ino: Ino, generation: Generation, tmp: &Path) -> io::Result<()> {
        std::fs::rename(tmp, self.path(ino, generation))?;
        self.restore(ino, generation);
        Ok(())
    }

    /// Puts a spool file that is on disk into the index, sealed.
    pub fn restore(&self, ino: Ino, generation: Generation) {
        self.entries.lock().insert(
            ino,
            Entry {
                generation,
                stage: Stage::Sealed,
                file: Weak::new(),
                backing: false,
                was_backing: false,
                sealed_at: Time::now(),
                progress: Progress::new(),
            },
        );
    }

    fn install(&self, ino: Ino, generation: Generation, file: &Arc<File>) {
        let before = self.entries.lock().insert(
            ino,
            Entry {
                generation,
                stage: Stage::Writing,
                file: Arc::downgrade(file),
                backing: false,
                was_backing: false,
                sealed_at: Time::default(),
                progress: Progress::new(),
            },
        );
        if let Some(before) = before
            && before.generation != generation
        {
            let _ = std::fs::remove_file(self.path(ino, before.generation));
        }
    }

    /// Opens the inode's present spool file for writing, under a generation above `current`, the one that the namespace
    /// knows. A file that is not written and older than that is no version of this inode any more.
    pub fn take_back(&self, ino: Ino, current: Generation) -> io::Result<TakeBack> {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(&ino) else {
            return Ok(TakeBack::Nothing);
        };
        let outdated = entry.stage != Stage::Writing && entry.generation < current;
        if outdated && !entry.backing {
            return Ok(TakeBack::Nothing);
        }
        let path = self.path(ino, entry.generation);
        if entry.stage == Stage::Publishing {
            return Ok(TakeBack::Busy);
        }
        let present = match entry.stage {
            Stage::Writing => entry.file.upgrade(),
            Stage::Sealed | Stage::Publishing | Stage::Kept => None,
        };
        let file = match present {
            Some(file) => file,
            None => {
                if std::fs::metadata(&path)?.nlink() > 1 {
                    return Ok(TakeBack::Shared(path));
                }
                // A publication that was cancelled late has made it read-only already.
                std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
                Arc::new(OpenOptions::new().read(true).write(true).open(&path)?)
            }
        };
        if entry.stage != Stage::Writing {
            let generation = entry.generation.max(current).next();
            std::fs::rename(&path, self.path(ino, generation))?;
            entry.generation = generation;
            entry.stage = Stage::Writing;
            entry.progress = Progress::new();
        }
        entry.file = Arc::downgrade(&file);
        if outdated {
            return Ok(TakeBack::Outdated(entry.generation, file));
        }
        Ok(TakeBack::Writing(entry.generation, file))
    }

    /// Moves a file that is being written to a later generation: another node took the one it had.
    pub fn advance(&self, ino: Ino, to: Generation) -> io::Result<()> {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(&ino)
            && entry.generation < to
        {
            std::fs::rename(self.path(ino, entry.generation), self.path(ino, to))?;
            entry.generation = to;
        }
        Ok(())
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

    /// Whether open handles use the file as a passthrough backing file.
    pub fn is_backing(&self, ino: Ino) -> bool {
        self.entries.lock().get(&ino).is_some_and(|e| e.backing)
    }

    /// Ends the writing. Returns the generation to be stored.
    pub fn seal(&self, ino: Ino) -> Option<Generation> {
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(&ino)?;
        if entry.stage == Stage::Writing {
            entry.stage = Stage::Sealed;
            entry.sealed_at = Time::now();
        }
        Some(entry.generation)
    }

    /// Opens a sealed file for reading. `None` when there is no spool file, or only one older than `current`, the
    /// generation that the namespace knows.
    pub fn open_sealed(&self, ino: Ino, current: Generation) -> io::Result<Option<Arc<File>>> {
        let entries = self.entries.lock();
        let Some(entry) = entries.get(&ino) else {
            return Ok(None);
        };
        if entry.stage != Stage::Writing && entry.generation < current {
            return Ok(None);
        }
        let file = Arc::new(File::open(self.path(ino, entry.generation))?);
        Ok(Some(file))
    }

    /// The stage and generation of the inode's spool file.
    pub fn stage(&self, ino: Ino) -> Option<(Stage, Generation)> {
        let entries = self.entries.lock();
        entries.get(&ino).map(|e| (e.stage, e.generation))
    }

    /// Whether this generation is still sealed and so still to be stored.
    pub fn is_sealed(&self, ino: Ino, generation: Generation) -> bool {
        self.stage(ino) == Some((Stage::Sealed, generation))
    }

    /// When it was sealed.
    pub fn sealed_at(&self, ino: Ino) -> Option<Time> {
        self.entries.lock().get(&ino).map(|e| e.sealed_at)
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

    /// Begins publishing, unless a writer took the file back: after this nobody writes to it.
    pub fn freeze(&self, ino: Ino, generation: Generation) -> Option<Freeze> {
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(&ino)?;
        if entry.stage != Stage::Sealed || entry.generation != generation {
            return None;
        }
        entry.stage = Stage::Publishing;
        Some(if entry.backing {
            Freeze::Copy
        } else {
            Freeze::Share
        })
    }

    /// Gives a file that could not be published back to the waiting ones.
    pub fn thaw(&self, ino: Ino, generation: Generation) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(&ino)
            && entry.generation == generation
            && entry.stage == Stage::Publishing
        {
            entry.stage = Stage::Sealed;
        }
        drop(entries);
        self.changed.notify_waiters();
    }

    /// Ends publishing: the namespace refers to the content now, and the spool file is not needed.
    pub fn finish(&self, ino: Ino, generation: Generation) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(&ino)
            && entry.generation == generation
            && entry.stage == Stage::Publishing
        {
            if entry.backing {
                entry.stage = Stage::Kept;
            } else {
                let _ = std::fs::remove_file(self.path(ino, generation));
                entries.remove(&ino);
            }
        }
        drop(entries);
        self.changed.notify_waiters();
    }

    /// Gives the file a modification time while it waits: the one that recovery would find.
    pub fn set_sealed_mtime(&self, ino: Ino, time: Time) -> io::Result<()> {
        let entries = self.entries.lock();
        match entries.get(&ino) {
            Some(entry) if entry.stage == Stage::Sealed => {
                disk::set_mtime(&File::open(self.path(ino, entry.generation))?, time)
            }
            _ => Ok(()),
        }
    }

    /// Gives up a sealed generation that lost against another node's. A backing file stays for those who have it open.
    pub fn lose(&self, ino: Ino, generation: Generation) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(&ino)
            && entry.generation == generation
            && entry.stage == Stage::Sealed
        {
            if entry.backing {
                entry.stage = Stage::Kept;
            } else {
                let _ = std::fs::remove_file(self.path(ino, generation));
                entries.remove(&ino);
            }
        }
        drop(entries);
        self.changed.notify_waiters();
    }

    /// Forgets and removes the spool file of an inode that is gone.
    pub fn discard(&self, ino: Ino) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.remove(&ino) {
            let _ = std::fs::remove_file(self.path(ino, entry.generation));
        }
        drop(entries);
        self.changed.notify_waiters();
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
            .filter(|(_, e)| e.stage == Stage::Sealed && e.progress.status == Status::Queued)
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

fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn spool() -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::new(dir.path().to_owned());
        (dir, spool)
    }

    const INO: Ino = Ino(7);
    const G1: Generation = Generation(1);

    #[test]
    fn a_writer_takes_a_sealed_file_back_and_the_job_is_stale() {
        let (_d, spool) = spool();
        let file = spool.create(INO, G1).unwrap();
        (&*file).write_all(b"one").unwrap();
        assert_eq!(spool.seal(INO), Some(G1));
        let TakeBack::Writing(generation, again) = spool.take_back(INO, G1).unwrap() else {
            panic!("not given back");
        };
        assert_eq!(generation, Generation(2));
        assert_eq!(again.metadata().unwrap().len(), 3);
        assert!(!spool.is_sealed(INO, G1));
        assert!(spool.freeze(INO, G1).is_none());
    }

    #[test]
    fn nobody_writes_while_it_is_published() {
        let (_d, spool) = spool();
        spool.create(INO, G1).unwrap();
        spool.seal(INO);
        assert_eq!(spool.freeze(INO, G1), Some(Freeze::Share));
        assert!(matches!(spool.take_back(INO, G1).unwrap(), TakeBack::Busy));
        spool.finish(INO, G1);
        assert!(matches!(
            spool.take_back(INO, G1).unwrap(),
            TakeBack::Nothing
        ));
        assert!(spool.scan().unwrap().is_empty());
    }

    #[test]
    fn a_backing_file_outlives_its_publication() {
        let (_d, spool) = spool();
        spool.create(INO, G1).unwrap();
        spool.set_backing(INO, true);
        spool.seal(INO);
        assert_eq!(spool.freeze(INO, G1), Some(Freeze::Copy));
        spool.finish(INO, G1);
        assert_eq!(spool.stage(INO), Some((Stage::Kept, G1)));
        assert_eq!(spool.scan().unwrap().len(), 1);
        spool.set_backing(INO, false);
        assert!(spool.scan().unwrap().is_empty());
    }

    #[test]
    fn a_file_that_shares_its_blocks_with_content_is_never_written() {
        let (dir, spool) = spool();
        spool.create(INO, G1).unwrap();
        spool.seal(INO);
        std::fs::hard_link(spool.path(INO, G1), dir.path().join("../linked-content")).unwrap();
        let shared = matches!(spool.take_back(INO, G1).unwrap(), TakeBack::Shared(_));
        std::fs::remove_file(dir.path().join("../linked-content")).unwrap();
        assert!(shared);
    }
}
