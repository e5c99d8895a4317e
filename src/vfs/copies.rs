//! Copies of files that are open for writing, for other nodes.
//!
//! The namespace knows of such a file since it was synced, or closed by one who had it open, so others may open it and
//! wait for it. They get it as the namespace knows it, or not at all: never in the middle of a write.

use std::fs::Metadata;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::SeekFrom;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use super::open::{Mode, OpenInode, Standing};
use super::sharing::is_untouched;
use super::transfer::blocking;
use super::{Result, Vfs};
use crate::content::disk;
use crate::tree::Commitment;
use crate::types::{Generation, Time};

/// Up to this size: it is kept in memory while it is sent.
pub(super) const MOST_BYTES: u64 = 8 << 20;
/// How many copies there are at a time. Whoever asks for one more is to come again.
const MOST: usize = 8;
/// For how long nobody may have written to it. A later write then shows in its times, however coarse these are.
const QUIET: Duration = Duration::from_millis(50);
/// The same where the kernel writes by itself.
const QUIET_KERNEL: Duration = Duration::from_millis(100);
/// The same for what was written since the last sync, which a program can be in the middle of: others have what was synced,
/// until it is plain that no more comes.
const QUIET_UNSYNCED: Duration = Duration::from_secs(2);
/// How long such a moment is waited for.
const MOMENT: Duration = Duration::from_secs(1);

/// Room for copies.
pub(super) struct Copies(Arc<Semaphore>);

impl Default for Copies {
    fn default() -> Self {
        Copies(Arc::new(Semaphore::new(MOST)))
    }
}

/// A copy of a file as one generation of it.
pub struct OpenCopy {
    /// All of it.
    pub bytes: Vec<u8>,
    _room: OwnedSemaphorePermit,
}

enum Tried {
    Copied(Vec<u8>),
    /// Somebody writes just now.
    Unquiet,
    /// It cannot be had under this generation. Where there is a later one, the namespace knows by now.
    Refused,
}

impl Vfs {
    /// What the namespace knows as this generation of a file that is open for writing here.
    pub(super) async fn copy_of_open(
        &self,
        open: &Arc<OpenInode>,
        generation: Generation,
    ) -> Result<Option<OpenCopy>> {
        let Ok(room) = self.copies.0.clone().try_acquire_owned() else {
            return Ok(None);
        };
        let until = Instant::now() + MOMENT;
        loop {
            match self.try_copy(open, generation).await? {
                Tried::Copied(bytes) => return Ok(Some(OpenCopy { bytes, _room: room })),
                Tried::Unquiet if Instant::now() < until => sleep(QUIET).await,
                Tried::Unquiet | Tried::Refused => return Ok(None),
            }
        }
    }

    async fn try_copy(&self, open: &Arc<OpenInode>, generation: Generation) -> Result<Tried> {
        // Whoever has it may be waiting for another node in turn.
        let Ok(mut transition) = timeout(MOMENT, open.transition.lock()).await else {
            return Ok(Tried::Refused);
        };
        let Some(file) = open.spool_file() else {
            return Ok(Tried::Refused);
        };
        let known = transition.announced && transition.standing == Standing::Sound;
        let before = file.metadata()?;
        if !known || transition.generation != generation || before.len() > MOST_BYTES {
            return Ok(Tried::Refused);
        }
        // The open file's, and this one; whoever has another may be in a write(2).
        let flushed = matches!(transition.mode, Mode::Passthrough(_));
        let quiet = if flushed { QUIET_KERNEL } else { QUIET };
        if !is_quiet(&before, quiet) || Arc::strong_count(&file) > 2 {
            return Ok(Tried::Unquiet);
        }
        if !is_untouched(open, &transition, &before) {
            if !is_quiet(&before, QUIET_UNSYNCED) {
                return Ok(Tried::Unquiet);
            }
            self.acknowledge_file(open, &file, &mut transition, Commitment::Committed)
                .await?;
            return Ok(Tried::Refused);
        }
        transition.lent = generation;
        let source = file.clone();
        let bytes = blocking(move || {
            if flushed {
                // From then on what is written through a mapping shows in its times, too.
                source.sync_data()?;
                // Times move when a write(2) begins, and a busy disk can hold it up then. This waits for its end.
                let _ = rustix::fs::seek(&*source, SeekFrom::Hole(0));
            }
            let mut bytes = vec![0; source.metadata()?.len().min(MOST_BYTES) as usize];
            let len = disk::read_full(&source, 0, &mut bytes)?;
            bytes.truncate(len);
            Ok(bytes)
        })
        .await?;
        let after = file.metadata()?;
        let same = !open.is_written() && state(&before) == state(&after);
        Ok(match same && bytes.len() as u64 == after.len() {
            true => Tried::Copied(bytes),
            false => Tried::Unquiet,
        })
    }
}

fn state(meta: &Metadata) -> (u64, Time, Time) {
    (meta.len(), disk::mtime(meta), disk::ctime(meta))
}

/// Whether nothing happened to it for a while. No program can set the change time back.
fn is_quiet(meta: &Metadata, quiet: Duration) -> bool {
    let since = Time::now().0.saturating_sub(disk::ctime(meta).0);
    since >= quiet.as_nanos() as i64
}
