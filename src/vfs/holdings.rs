//! The spool as the namespace knows it when it merges.

use std::io;

use crate::content::{Spool, disk};
use crate::tree::Holdings;
use crate::types::{Generation, Ino};

impl Holdings for Spool {
    fn keep_aside(&self, from: Ino, to: Ino) -> io::Result<bool> {
        Spool::keep_aside(self, from, to)
    }

    fn lose_soon(&self, versions: &[(Ino, Generation)]) {
        for (ino, generation) in versions {
            Spool::lose_soon(self, *ino, *generation);
        }
    }

    fn lose_not(&self, versions: &[(Ino, Generation)]) {
        for (ino, _) in versions {
            Spool::lose_not(self, *ino);
        }
    }

    fn give_up(&self, versions: &[(Ino, Generation)]) -> io::Result<()> {
        for (ino, generation) in versions {
            Spool::give_up(self, *ino, *generation)?;
        }
        disk::sync_dir(self.dir())
    }

    fn has(&self, ino: Ino, generation: Generation) -> bool {
        Spool::has(self, ino, generation)
    }

    fn drop_aside(&self, ino: Ino) {
        self.discard(ino);
    }
}
