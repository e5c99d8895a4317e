//! Sealed spool files given to other nodes while they wait to be stored.

use std::fs::File;
use std::io;

use super::{ClosedFile, Spool, Stage};
use crate::content::lease::has_no_writer;
use crate::types::{Generation, Ino};

impl Spool {
    /// Opens the file that was closed as exactly this generation; `None` when there is none, or it is open for writing, be
    /// it through a mapping alone. A writer can take it back at any time, which shows before the writer can write.
    pub fn lend(&self, ino: Ino, generation: Generation) -> io::Result<Option<ClosedFile>> {
        match self.lend_present(ino, generation)? {
            Some(lent) => Ok(Some(lent)),
            None => self.kept(ino, generation),
        }
    }

    fn lend_present(&self, ino: Ino, generation: Generation) -> io::Result<Option<ClosedFile>> {
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
        Ok(Some(ClosedFile::new(file, entry.seal.clone())))
    }
}
