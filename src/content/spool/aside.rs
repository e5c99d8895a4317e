//! Versions that lose against another node's in a merge: kept aside under another inode, and given up under their own.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::closed::Seal;
use super::stages::NONE;
use super::{Entry, Spool, Stage};
use crate::content::lease::has_no_writer;
use crate::content::{disk, verified::ReadFile};
use crate::types::{Generation, Ino};

impl Spool {
    /// Makes `to` have the bytes of `from`, as its first generation, sealed and lasting. Its inode need not be there yet.
    /// True when they are those of a closed version; false when a program is writing them, so that they are a mix.
    pub fn keep_aside(&self, from: Ino, to: Ino) -> io::Result<bool> {
        let (stage, generation, file, seal) = self.open_held(from)?;
        // On a full disk there is no room for a second file, and one with two names is as good.
        if stage == Stage::Sealed && self.link_aside(from, generation, &file, to)? {
            return Ok(true);
        }
        let file = Arc::new(file);
        let copied = self.copy_aside(&file, to);
        if copied.is_err() {
            self.discard(to);
        }
        copied?;
        let unchanged = stage != Stage::Writing && self.stage(from) == Some((stage, generation));
        if unchanged && let Some(entry) = self.entries.lock().get_mut(&to) {
            // Damage is no reason to give nothing, or to let the merge wait. It shows in the copy as it did here.
            entry.seal = seal.of_copy();
        }
        Ok(unchanged)
    }

    /// Opens what there is of an inode under the name that it has now.
    fn open_held(&self, ino: Ino) -> io::Result<(Stage, Generation, File, Arc<Seal>)> {
        let entries = self.entries.lock();
        let entry = entries.get(&ino).ok_or(io::ErrorKind::NotFound)?;
        let file = File::open(self.path(ino, entry.generation))?;
        Ok((entry.stage, entry.generation, file, entry.seal.clone()))
    }

    /// Gives a closed version that nobody can write to a second name. False when it cannot have one.
    fn link_aside(
        &self,
        from: Ino,
        generation: Generation,
        file: &File,
        to: Ino,
    ) -> io::Result<bool> {
        self.sync(from, file, false)?;
        {
            // While the index is locked no writer takes it back; whoever does later finds two names, and copies it.
            let mut entries = self.entries.lock();
            let can_be_shared = entries.get(&from).is_some_and(|e| {
                e.stage == Stage::Sealed
                    && e.generation == generation
                    && e.lasting
                    && !e.backing
                    && (!e.was_backing || has_no_writer(file))
            });
            let name = self.path(to, Generation(1));
            if !can_be_shared || std::fs::hard_link(self.path(from, generation), name).is_err() {
                return Ok(false);
            }
            let mut entry = Entry::new(Generation(1), Stage::Sealed);
            entry.lasting = true;
            if let Some(from) = entries.get(&from) {
                entry.seal = from.seal.of_link();
            }
            entries.insert(to, entry);
        }
        disk::sync_dir(&self.dir)?;
        Ok(true)
    }

    fn copy_aside(&self, source: &Arc<File>, to: Ino) -> io::Result<()> {
        let mtime = disk::mtime(&source.metadata()?);
        let copy = self.create_from(to, Generation(1), &ReadFile::Plain(source.clone()))?;
        disk::set_mtime(&copy, mtime)?;
        self.sync(to, &copy, false)?;
        self.seal(to);
        Ok(())
    }

    /// Says that `generation` and older ones are about to be given up: no worker and no writer gets hold of them any more.
    pub fn lose_soon(&self, ino: Ino, generation: Generation) {
        if let Some(entry) = self.entries.lock().get_mut(&ino) {
            entry.lost = Some(generation);
        }
    }

    /// They are not, after all.
    pub fn lose_not(&self, ino: Ino) {
        if let Some(entry) = self.entries.lock().get_mut(&ino) {
            entry.lost = None;
        }
        self.changed.notify_waiters();
    }

    /// Gives up what [`Spool::lose_soon`] named, `generation` and older ones, unless a program writes it: the namespace
    /// never had them.
    pub fn give_up(&self, ino: Ino, generation: Generation) -> io::Result<()> {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(&ino) else {
            return Ok(());
        };
        entry.older.retain(|older| {
            let lost = *older <= generation;
            if lost {
                let _ = std::fs::remove_file(self.path(ino, *older));
            }
            !lost
        });
        if entry.is_lost() {
            let path = self.path(ino, entry.generation);
            if entry.backing {
                std::fs::rename(path, self.path(ino, NONE))?;
                entry.generation = NONE;
                entry.stage = Stage::Kept;
            } else {
                let _ = std::fs::remove_file(path);
                entries.remove(&ino);
            }
        }
        if let Some(entry) = entries.get_mut(&ino) {
            entry.lost = None;
        }
        drop(entries);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Whether this version of the inode, or one that was made of it, is here to stay.
    pub fn has(&self, ino: Ino, generation: Generation) -> bool {
        let entries = self.entries.lock();
        entries
            .get(&ino)
            .is_some_and(|e| e.generation >= generation && !e.is_lost())
    }
}
