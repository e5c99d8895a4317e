//! Versions that were removed or written over before they were stored. Another node may have opened one and not fetched
//! it yet, and can get it from nowhere else: so what is small is kept for it, for a few seconds.
//!
//! They have no name on the disk, so a daemon that ends leaves nothing of them.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::closed::Seal;
use super::{ClosedFile, Entry, Spool, Stage};
use crate::content::{disk, lease::has_no_writer};
use crate::types::{Generation, Ino};

/// For how long.
const LIFE: Duration = Duration::from_secs(10);
/// How large one may be that goes.
const GONE_BYTES: u64 = 8 << 20;
/// How large one may be that is about to be written over, and so must be copied.
const COPIED_BYTES: u64 = 1 << 20;
/// How much all of them may take of the disk,
const ALL_BYTES: u64 = 16 << 20;
/// which must have as much room as this: whoever removes files wants space.
const ROOM_BYTES: u64 = 8 * ALL_BYTES;
/// How many there may be. Each costs a descriptor.
const ALL: usize = 256;

struct Keepsake {
    ino: Ino,
    generation: Generation,
    file: File,
    seal: Arc<Seal>,
    bytes: u64,
    until: Instant,
}

/// Those that there are, the oldest first.
#[derive(Default)]
pub(super) struct Keepsakes {
    /// There are others who could ask.
    wanted: AtomicBool,
    all: Mutex<VecDeque<Keepsake>>,
}

impl Keepsakes {
    fn add(&self, ino: Ino, generation: Generation, file: File, seal: Arc<Seal>, bytes: u64) {
        let mut all = self.all.lock();
        all.push_back(Keepsake {
            ino,
            generation,
            file,
            seal,
            bytes,
            until: Instant::now() + LIFE,
        });
        let mut total: u64 = all.iter().map(|k| k.bytes).sum();
        while total > ALL_BYTES || all.len() > ALL {
            total -= all.pop_front().map_or(total, |oldest| oldest.bytes);
        }
    }
}

impl Spool {
    /// From now on there are other nodes that may ask for what goes.
    pub fn keep_for_others(&self) {
        self.keepsakes.wanted.store(true, Ordering::Relaxed);
    }

    /// Drops what was kept for long enough.
    pub fn forget_kept(&self) {
        let now = Instant::now();
        self.keepsakes.all.lock().retain(|k| now < k.until);
    }

    /// Opens what was kept of this generation.
    pub(super) fn kept(&self, ino: Ino, generation: Generation) -> io::Result<Option<ClosedFile>> {
        self.forget_kept();
        let all = self.keepsakes.all.lock();
        let found = all
            .iter()
            .find(|k| (k.ino, k.generation) == (ino, generation));
        found
            .map(|k| Ok(ClosedFile::new(k.file.try_clone()?, k.seal.clone())))
            .transpose()
    }

    /// Keeps a version that is about to lose its name, for good.
    pub(super) fn keep(&self, ino: Ino, entry: &Entry) {
        self.keep_if(ino, entry, GONE_BYTES, Ok);
    }

    /// Keeps a copy of a version that is about to be written over.
    pub(super) fn keep_copy(&self, ino: Ino, entry: &Entry) {
        self.keep_if(ino, entry, COPIED_BYTES, |file| {
            let copy = nameless(&self.dir)?;
            disk::copy(&file, &copy)?;
            Ok(copy)
        });
    }

    /// Keeps what `make` makes of a closed version, which nobody was promised: an error is no reason to do anything else.
    fn keep_if(
        &self,
        ino: Ino,
        entry: &Entry,
        most: u64,
        make: impl FnOnce(File) -> io::Result<File>,
    ) {
        let closed = matches!(entry.stage, Stage::Sealed | Stage::Publishing) && !entry.is_lost();
        if !closed || !self.keepsakes.wanted.load(Ordering::Relaxed) {
            return;
        }
        let kept = || -> io::Result<Option<(File, u64)>> {
            let file = File::open(self.path(ino, entry.generation))?;
            let bytes = file.metadata()?.len();
            let unfit = bytes > most || (entry.was_backing && !has_no_writer(&file));
            if unfit || !has_room(&self.dir)? {
                return Ok(None);
            }
            Ok(Some((make(file)?, bytes)))
        };
        match kept() {
            Ok(Some((file, bytes))) => {
                let seal = entry.seal.of_copy();
                self.keepsakes.add(ino, entry.generation, file, seal, bytes);
            }
            Ok(None) => {}
            Err(e) => tracing::debug!("inode {ino}: not kept for other nodes: {e}"),
        }
    }
}

fn has_room(dir: &Path) -> io::Result<bool> {
    let disk = rustix::fs::statvfs(dir)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize) >= ROOM_BYTES)
}

fn nameless(dir: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE)
        .mode(0o600)
        .open(dir)
}
