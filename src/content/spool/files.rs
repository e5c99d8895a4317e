//! Spool files on the disk: found, made, copied, taken over.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use super::closed::{self, Noted, Seal};
use super::lasting::{is_lasting, mark};
use super::{Entry, Found, Spool, Stage};
use crate::content::{disk, lease::has_no_writer, verified::ReadFile};
use crate::types::{Generation, Ino};
use crate::windows;

impl Spool {
    /// Whether a file of this generation of the inode, or of a later one, is on disk.
    pub fn holds(&self, ino: Ino, generation: Generation) -> bool {
        let later = |name: &str| {
            let (i, g) = name.split_once('.')?;
            let (i, g) = (i.parse().ok()?, g.parse().ok()?);
            Some(Ino(i) == ino && Generation(g) >= generation)
        };
        self.path(ino, generation).exists()
            || std::fs::read_dir(&self.dir).is_ok_and(|mut entries| {
                entries
                    .any(|e| e.is_ok_and(|e| e.file_name().to_str().and_then(later) == Some(true)))
            })
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
                lasting: is_lasting(&meta),
                path: entry.path(),
            });
        }
        Ok(found)
    }

    /// Makes a new, empty spool file that writers have open, in place of whatever the inode had before.
    pub fn create(&self, ino: Ino, generation: Generation) -> io::Result<Arc<File>> {
        let file = Arc::new(self.new_file(&self.path(ino, generation))?);
        windows::CREATE_SPOOL.passed();
        self.install(ino, generation, &file);
        Ok(file)
    }

    /// Makes a spool file that writers have open, filled from `from`.
    pub fn create_from(
        &self,
        ino: Ino,
        generation: Generation,
        from: &ReadFile,
    ) -> io::Result<Arc<File>> {
        // Under its final name it is always whole: a crash in the middle leaves only what `scan` removes.
        let path = self.path(ino, generation);
        let partial = self.dir.join(format!("{ino}.{generation}.copy"));
        let _ = std::fs::remove_file(&partial);
        let file = self.new_file(&partial)?;
        let copied = from
            .copy_to(&file)
            .and_then(|()| windows::COPY.pass())
            .and_then(|()| std::fs::rename(&partial, &path));
        if let Err(e) = copied {
            let _ = std::fs::remove_file(&partial);
            return Err(e);
        }
        windows::COPY_NAME.passed();
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
        let new = self.replace(found.ino, found.generation, &old, found.lasting)?;
        windows::RECOVER_PART.pass()?;
        let meta = new.metadata()?;
        found.size = meta.len();
        found.mtime = disk::mtime(&meta);
        Ok(())
    }

    /// Gives a file that somebody removed by hand its name again: what its writers have open is still all of it.
    pub fn put_back(&self, ino: Ino, generation: Generation, open: &File) -> io::Result<()> {
        self.replace(ino, generation, open, false).map(drop)
    }

    /// Puts a copy of `old` at the place of this generation. `lasting`: in place of bytes that last.
    fn replace(
        &self,
        ino: Ino,
        generation: Generation,
        old: &File,
        lasting: bool,
    ) -> io::Result<File> {
        let partial = self.dir.join(format!("{ino}.{generation}.copy"));
        let _ = std::fs::remove_file(&partial);
        let new = self.new_file(&partial)?;
        disk::copy(old, &new)?;
        disk::set_mtime(&new, disk::mtime(&old.metadata()?))?;
        if lasting {
            mark(&new)?;
            new.sync_all()?;
        }
        std::fs::rename(&partial, self.path(ino, generation))?;
        Ok(new)
    }

    /// Gives a spool file that was found another generation.
    pub fn rename(&self, found: &mut Found, to: Generation) -> io::Result<()> {
        let path = self.path(found.ino, to);
        std::fs::rename(&found.path, &path)?;
        found.path = path;
        found.generation = to;
        Ok(())
    }

    /// Takes over a finished temporary file as a sealed spool file (an upload).
    pub fn adopt(&self, ino: Ino, generation: Generation, tmp: &Path) -> io::Result<()> {
        std::fs::rename(tmp, self.path(ino, generation))?;
        let entry = Entry::new(generation, Stage::Sealed);
        self.entries.lock().insert(ino, entry);
        windows::UPLOAD.passed();
        Ok(())
    }

    /// Puts a spool file that is on disk into the index, sealed. `older`: lasting versions that it is to replace.
    pub fn restore(&self, found: &Found, older: Vec<Generation>) {
        let mut entry = Entry::new(found.generation, Stage::Sealed);
        let noted = File::open(&found.path).and_then(|file| closed::noted(&file));
        // What cannot be read is not believed, and goes before the file is written to.
        entry.seal = Seal::found(noted.unwrap_or(Noted::Outdated));
        entry.lasting = found.lasting;
        entry.older = older;
        self.entries.lock().insert(found.ino, entry);
    }

    fn new_file(&self, path: &Path) -> io::Result<File> {
        if let Some(file) = self.spares.make(path) {
            return Ok(file);
        }
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    }
}
