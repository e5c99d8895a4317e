//! Sealed spool files given to other nodes while they wait to be stored.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Spool, Stage};
use crate::content::lease::has_no_writer;
use crate::types::{Generation, Ino};

/// A sealed file, open for reading. Its bytes are those of its generation until a writer takes it back, which shows before
/// the writer can write: bytes that were read count if it was not taken back afterwards.
pub struct Lent {
    /// The file.
    pub file: File,
    taken: Arc<AtomicBool>,
}

impl Lent {
    /// Whether a writer took it back meanwhile.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire)
    }
}

impl Spool {
    /// Opens the file that was closed as exactly this generation; `None` when there is none, or it is open for writing, be
    /// it through a mapping alone.
    pub fn lend(&self, ino: Ino, generation: Generation) -> io::Result<Option<Lent>> {
        Ok(match self.lend_present(ino, generation)? {
            Some(lent) => Some(lent),
            None => self.kept(ino, generation)?.map(|file| Lent {
                file,
                taken: Arc::default(),
            }),
        })
    }

    fn lend_present(&self, ino: Ino, generation: Generation) -> io::Result<Option<Lent>> {
        let entries = self.entries.lock();
        let Some(entry) = entries.get(&ino) else {
            return Ok(None);
        };
        if entry.generation != generation || entry.stage == Stage::Writing || entry.is_lost() {
            return Ok(None);
        }
        let file = File::open(self.path(ino, generation))?;
        if entry.was_backing && !has_no_writer(&file) {
            return Ok(None);
        }
        Ok(Some(Lent {
            file,
            taken: entry.taken.clone(),
        }))
    }
}
