//! Space set aside, so that files can still be removed when the disk is full: removing is a change of the namespace, and
//! every change is written before it is answered.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tracing::{debug, warn};

use super::op::Op;

/// Enough for the namespace's files to grow by many thousand removals.
const BYTES: u64 = 8 << 20;
/// Set aside only while this many times as much is free.
const PLENTY: u64 = 8;

/// Whether an op is one that frees space, or helps to.
pub(super) fn frees_space(op: &Op) -> bool {
    matches!(
        op,
        Op::Unlink { .. } | Op::Rmdir { .. } | Op::Reap { .. } | Op::RemoveXattr { .. }
    )
}

/// The file that holds the space.
pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    /// Beside the database at `database`. Nothing is set aside yet.
    pub(super) fn new(database: &Path) -> Reserve {
        Reserve {
            path: database.with_extension("reserve"),
        }
    }

    fn free_bytes(&self) -> Option<u64> {
        let dir = self.path.parent()?;
        let stat = statvfs(dir).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Whether there is next to nothing left beside it.
    pub(super) fn is_needed(&self) -> bool {
        self.free_bytes().is_some_and(|free| free < BYTES / 8)
    }

    /// Frees the space. True when there was some.
    pub(super) fn give_up(&self) -> bool {
        let given = fs::remove_file(&self.path).is_ok();
        if given {
            warn!("the disk is full: the space set aside for removing files is used now");
        }
        given
    }

    /// Sets the space aside again when there is plenty.
    pub(super) fn renew(&self) {
        // By its length: a kill may have come between making the file and giving it its space.
        let set_aside = fs::metadata(&self.path).is_ok_and(|m| m.len() >= BYTES);
        if set_aside || self.free_bytes().is_none_or(|free| free < BYTES * PLENTY) {
            return;
        }
        let set_aside = File::create(&self.path)
            .and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, BYTES)?));
        if let Err(e) = set_aside {
            debug!("no space set aside: {e}");
            let _ = fs::remove_file(&self.path);
        }
    }
}
