//! Who may touch a spool file when: from its writers to a worker, and back.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;

use super::{Entry, Freeze, Known, Progress, Spool, Stage, TakeBack, closed};
use crate::content::lease::has_no_writer;
use crate::types::{Generation, Ino, Time};
use crate::windows;

/// What recovery never believes.
pub(super) const NONE: Generation = Generation(0);

impl Spool {
    /// Makes `file` the inode's spool file. What was there before goes at once only if it would not have outlasted the
    /// power either.
    pub(super) fn install(&self, ino: Ino, generation: Generation, file: &Arc<File>) {
        let mut entries = self.entries.lock();
        let mut entry = Entry::new(generation, Stage::Writing);
        entry.file = Arc::downgrade(file);
        if let Some(before) = entries.remove(&ino)
            && before.generation != generation
        {
            self.keep(ino, &before);
            entry.older = before.older;
            if before.lasting {
                entry.older.push(before.generation);
            } else {
                let _ = std::fs::remove_file(self.path(ino, before.generation));
            }
        }
        entries.insert(ino, entry);
    }

    /// Opens the inode's present spool file for writing, under a generation above the one that the namespace knows. A file
    /// that is not written and older than that is no version of this inode any more.
    pub fn take_back(&self, ino: Ino, known: Known) -> io::Result<TakeBack> {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(&ino) else {
            return Ok(TakeBack::Nothing);
        };
        if entry.is_lost() {
            return Ok(TakeBack::Busy);
        }
        let outdated = entry.stage != Stage::Writing && entry.is_outdated(known);
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
                let meta = std::fs::metadata(&path)?;
                // What outlasts the power does so until something else does: written over, it could come back as a mix.
                // Unless programs write to this very file anyway, through the kernel.
                let written =
                    entry.backing || (entry.was_backing && !has_no_writer(&File::open(&path)?));
                if meta.nlink() > 1 || (entry.lasting && !written) {
                    return Ok(TakeBack::Shared(path));
                }
                // Before there is a writer.
                self.keep_copy(ino, entry);
                // A publication that was cancelled late has made it read-only already.
                let mode = meta.mode() & 0o7777 | 0o600;
                std::fs::set_permissions(&path, Permissions::from_mode(mode))?;
                let file = OpenOptions::new().read(true).write(true).open(&path)?;
                if entry.seal.is_noted() {
                    closed::forget(&file)?;
                    // It may come back after power loss with some of what is written now.
                    if entry.lasting {
                        file.sync_all()?;
                    }
                }
                Arc::new(file)
            }
        };
        if entry.stage != Stage::Writing {
            let generation = entry.generation.max(known.generation).next();
            std::fs::rename(&path, self.path(ino, generation))?;
            windows::TAKE_BACK.passed();
            entry.generation = generation;
            entry.stage = Stage::Writing;
            entry.since = Time::now();
            entry.progress = Progress::new();
            entry.idle = false;
            std::mem::take(&mut entry.seal).take();
        }
        entry.file = Arc::downgrade(&file);
        if outdated {
            return Ok(TakeBack::Outdated(file));
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

    /// Takes a file that is being written out of the versions of its inode, until it is moved to a later generation.
    pub fn disown(&self, ino: Ino) -> io::Result<()> {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(&ino) {
            std::fs::rename(self.path(ino, entry.generation), self.path(ino, NONE))?;
            entry.generation = NONE;
        }
        Ok(())
    }

    /// Ends the writing. Returns the generation to be stored.
    pub fn seal(&self, ino: Ino) -> Option<Generation> {
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(&ino)?;
        if entry.stage == Stage::Writing {
            entry.stage = Stage::Sealed;
            entry.since = Time::now();
            windows::SEAL.passed();
        }
        Some(entry.generation)
    }

    /// Begins publishing, unless a writer took the file back: after this nobody writes to it.
    pub fn freeze(&self, ino: Ino, generation: Generation) -> Option<Freeze> {
        let mut entries = self.entries.lock();
        let entry = entries.get_mut(&ino)?;
        if entry.stage != Stage::Sealed || entry.generation != generation || entry.is_lost() {
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

    /// Ends publishing: the namespace refers to the content now, also after power loss, and the spool file is not needed.
    pub fn finish(&self, ino: Ino, generation: Generation) {
        self.let_go(ino, generation, Stage::Publishing);
        windows::SPOOL_GONE.passed();
    }

    /// Gives up a sealed generation that lost against another node's. A backing file stays for those who have it open.
    pub fn lose(&self, ino: Ino, generation: Generation) {
        self.let_go(ino, generation, Stage::Sealed);
    }

    fn let_go(&self, ino: Ino, generation: Generation, stage: Stage) {
        let mut entries = self.entries.lock();
        let mut retired = None;
        if let Some(entry) = entries.get_mut(&ino)
            && entry.generation == generation
            && entry.stage == stage
        {
            for older in entry.older.drain(..) {
                let _ = std::fs::remove_file(self.path(ino, older));
            }
            if entry.backing {
                entry.stage = Stage::Kept;
            } else {
                let path = self.path(ino, generation);
                // Only what was published: that outlasts the power already.
                match stage {
                    Stage::Publishing if !entry.seal.is_noted() => {
                        retired = self.spares.retire(&path);
                    }
                    _ => drop(std::fs::remove_file(path)),
                }
                entries.remove(&ino);
            }
        }
        drop(entries);
        if let Some(retired) = retired {
            self.spares.keep(retired);
        }
        self.changed.notify_waiters();
    }

    /// Forgets the spool file of an inode that is gone, and removes it. What lasts goes when the removal of its last name
    /// does: the power may still bring that back.
    pub fn discard(&self, ino: Ino) {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.remove(&ino) {
            self.keep(ino, &entry);
            let path = self.path(ino, entry.generation);
            if entry.lasting || !entry.older.is_empty() {
                let older = entry.older.iter().map(|g| self.path(ino, *g));
                self.condemned.add(older.chain([path]));
            } else {
                let _ = std::fs::remove_file(path);
                windows::DISCARD.passed();
            }
        }
        drop(entries);
        self.changed.notify_waiters();
    }
}
