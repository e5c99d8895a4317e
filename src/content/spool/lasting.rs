//! Which spool files outlast the power.
//!
//! The mark is a bit of the file's own mode, so that it goes wherever the file goes, and it is set after the bytes were
//! synced: it may be missing from a file that is whole, never be on one that is not. Nobody but this daemon sees the mode.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{Mode, fchmod};
use tokio::sync::Notify;

use super::{Spool, Stage};
use crate::types::{Generation, Ino, Time};
use crate::windows;

/// The mode bit of a file whose bytes were synced. A publication keeps it.
const LASTING: u32 = 0o100;

pub(super) fn is_lasting(meta: &Metadata) -> bool {
    meta.mode() & LASTING != 0
}

/// Notes that the bytes of `file` are on disk. The note itself is there after the next sync of the file.
pub(super) fn mark(file: &File) -> io::Result<()> {
    let mode = file.metadata()?.mode() & 0o7777 | LASTING;
    Ok(fchmod(file, Mode::from_raw_mode(mode))?)
}

/// Files that nothing refers to as soon as the namespace lasts as it is.
#[derive(Default)]
pub(super) struct Condemned {
    paths: Mutex<Vec<PathBuf>>,
    some: Notify,
}

impl Condemned {
    pub(super) fn add(&self, paths: impl Iterator<Item = PathBuf>) {
        self.paths.lock().extend(paths);
        self.some.notify_one();
    }
}

impl Spool {
    /// Whether the inode's present spool file is one that `file`, which was synced just now, must be marked as.
    fn unmarked(&self, ino: Ino, file: &File) -> io::Result<Option<Generation>> {
        let Some((generation, path)) = self
            .entries
            .lock()
            .get(&ino)
            .filter(|e| !e.lasting)
            .map(|e| (e.generation, self.path(ino, e.generation)))
        else {
            return Ok(None);
        };
        let same = |a: Metadata, b: Metadata| a.ino() == b.ino() && a.dev() == b.dev();
        match std::fs::metadata(path) {
            Ok(there) => Ok(same(there, file.metadata()?).then_some(generation)),
            // Stored meanwhile, which lasts.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Makes the bytes of `file`, and its place in the spool if it is the spool file of `ino`, survive power loss;
    /// `data_only`: not its times.
    pub fn sync(&self, ino: Ino, file: &File, data_only: bool) -> io::Result<()> {
        let unmarked = self.unmarked(ino, file)?;
        // Times are synced together with the mark.
        if data_only || unmarked.is_some() {
            file.sync_data()?;
        } else {
            file.sync_all()?;
        }
        windows::SYNC_DATA.pass()?;
        let Some(generation) = unmarked else {
            return Ok(());
        };
        mark(file)?;
        file.sync_all()?;
        crate::content::disk::sync_dir(&self.dir)?;
        windows::SYNC_MARK.pass()?;
        if let Some(entry) = self.entries.lock().get_mut(&ino)
            && entry.generation == generation
        {
            entry.lasting = true;
            for older in entry.older.drain(..) {
                let _ = std::fs::remove_file(self.path(ino, older));
            }
        }
        Ok(())
    }

    /// The file of this inode is about to be a later version, of which nothing was synced. Call it before the file gets that
    /// version's name: the disk keeps the order.
    pub fn unmark(&self, ino: Ino) -> io::Result<()> {
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(&ino)
            && entry.lasting
        {
            let file = File::open(self.path(ino, entry.generation))?;
            let mode = file.metadata()?.mode() & 0o7777 & !LASTING;
            fchmod(&file, Mode::from_raw_mode(mode))?;
            entry.lasting = false;
            entry.since = Time::now();
        }
        Ok(())
    }

    /// Files as they were `before` and still are, which nobody has synced.
    fn aged(&self, before: impl Fn(Stage, Time) -> bool) -> Vec<(Ino, Generation)> {
        let entries = self.entries.lock();
        entries
            .iter()
            .filter(|(_, e)| !e.lasting && e.stage != Stage::Kept && before(e.stage, e.since))
            .map(|(ino, e)| (*ino, e.generation))
            .collect()
    }

    /// Syncs and marks, all at once, what was sealed `sealed_nanos` ago, and what is written since `written_nanos` ago.
    /// Returns how many.
    pub fn sync_aged(&self, sealed_nanos: i64, written_nanos: i64) -> io::Result<usize> {
        let now = Time::now().0;
        let aged = self.aged(|stage, since| {
            let limit = if stage == Stage::Writing {
                written_nanos
            } else {
                sealed_nanos
            };
            now.saturating_sub(since.0) >= limit
        });
        if aged.is_empty() {
            return Ok(0);
        }
        let dir = File::open(&self.dir)?;
        rustix::fs::syncfs(&dir)?;
        for (ino, generation) in &aged {
            match File::open(self.path(*ino, *generation)) {
                Ok(file) => mark(&file)?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            }
            if let Some(entry) = self.entries.lock().get_mut(ino)
                && entry.generation == *generation
            {
                entry.lasting = true;
            }
        }
        // The marks as well.
        rustix::fs::syncfs(&dir)?;
        Ok(aged.len())
    }

    /// Waits until there are files of removed inodes that are to go once the namespace lasts.
    pub async fn condemned(&self) -> Vec<PathBuf> {
        loop {
            let some = self.condemned.some.notified();
            let paths = self.condemned_now();
            if !paths.is_empty() {
                return paths;
            }
            some.await;
        }
    }

    /// Those that there are now.
    pub fn condemned_now(&self) -> Vec<PathBuf> {
        std::mem::take(&mut *self.condemned.paths.lock())
    }

    /// Removes files that [`Spool::condemned`] named.
    pub fn remove_condemned(&self, paths: &[PathBuf]) {
        for path in paths {
            remove(path);
            windows::DISCARD.passed();
        }
    }

    /// Takes them back, to be named again.
    pub fn keep_condemned(&self, paths: Vec<PathBuf>) {
        self.condemned.add(paths.into_iter());
    }
}

fn remove(path: &Path) {
    if let Err(e) = std::fs::remove_file(path)
        && e.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!("{}: {e}", path.display());
    }
}
